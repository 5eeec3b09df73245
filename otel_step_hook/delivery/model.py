"""What delivery works on: an endpoint, a delivery to it, and the pipeline its spans go through. Pure."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import Span

from otel_step_hook.steps.event import Outcome, StepEvent

Headers = list[tuple[str, str]]
Payload = Literal["step_id", "full"]
Result = Literal["delivered", "discarded", "handed_over"]  # the last to another system, which owns it from then on


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files: the authorities to trust, and our own certificate with its key; None for the usual."""

    certificate: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """All that belongs to one receiver.

    *name* is in spans, metrics, log lines and rows, where the URL, which may hold a secret, never is. *url* has neither
    user information nor fragment. *headers* are those of every request, ``authorization`` included. *timeout* is what
    one attempt may take in all, in seconds.
    """

    name: str
    url: str = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    signing_keys: tuple[bytes, ...] = field(default=(), repr=False)
    payload: Payload = "step_id"
    outcomes: frozenset[Outcome] = frozenset(Outcome)
    timeout: float = 15.0
    tls: TlsFiles = TlsFiles()
    proxy: str | None = field(default=None, repr=False)


class Pipeline(NamedTuple):
    """Where the spans of one provider go: its processors and its resource.

    *processor* is None where the SDK does not show it: then the global provider is used.
    """

    processor: SpanProcessor | None
    resource: Resource


@dataclass(slots=True, eq=False)
class Delivery:
    """One event on its way to one endpoint, over all attempts. Owned by the worker's thread.

    *id* is the webhook id. *submitted_at* is when we saw the step end, in monotonic seconds of this process. *body* is
    the same for every attempt; empty before the first. *error_type* says why the last attempt failed.
    """

    id: str
    event: StepEvent
    pipeline: Pipeline
    submitted_at: float
    body: bytes = b""
    attempts: int = 0
    error_type: str = "expired"  # this when no attempt was ever made
    span: Span | None = None
