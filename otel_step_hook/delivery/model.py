"""The values that delivery works on: an endpoint, a delivery to it, and the pipeline of its spans. Pure."""

import weakref
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import Span

from otel_step_hook.steps.event import Outcome, StepEvent

Headers = list[tuple[str, str]]
Payload = Literal["step_id", "full"]
HttpClient = Literal["auto", "aiohttp", "httpx"]
Result = Literal["delivered", "discarded", "handed_over"]  # handed over to another system, which owns it from then on


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files: the authorities to trust (None: the usual ones), and a client certificate with its key."""

    certificate: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One receiver, and how webhooks are sent to it.

    *name* stands for it in spans, metrics, log lines and rows: the URL may hold a secret and never stands there. *url*
    has neither user information nor fragment. *headers* are sent with every request, ``authorization`` included.
    *timeout* limits one attempt in all, in seconds. *http_client* is the library that sends:
    ``auto`` is aiohttp where it can be used, and httpx elsewhere. With *public_only*, addresses that are not public are
    refused.
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
    http_client: HttpClient = "auto"
    public_only: bool = False


class Pipeline(NamedTuple):
    """Where the spans of one provider go: its processors and its resource.

    *processor* is None where the SDK does not show it; then the global provider is used.
    """

    processor: SpanProcessor | None
    resource: Resource


class KnownPipeline:
    """A pipeline whose processor may be garbage-collected: it holds the hook, and that its worker."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.resource = pipeline.resource
        self._processor = None if pipeline.processor is None else weakref.ref(pipeline.processor)

    @property
    def processor(self) -> SpanProcessor | None:
        """The processor, or None if there is none any more."""
        return None if self._processor is None else self._processor()

    def is_of(self, pipeline: Pipeline) -> bool:
        """Whether it is that of *pipeline*: after a garbage collection, another object may have the same id."""
        processor = None if self._processor is None else self._processor()
        return processor is pipeline.processor and self.resource is pipeline.resource


def pipeline_key(pipeline: Pipeline) -> tuple[int, int]:
    """Return a key for *pipeline*, by identity: comparing resources takes long."""
    return id(pipeline.processor), id(pipeline.resource)


class Counts(NamedTuple):
    """How many events are not finished, how many of those are lost with the process, and how many are discarded."""

    waiting: int
    in_memory: int
    discarded: int = 0


@dataclass(slots=True, eq=False)
class Delivery:
    """The delivery of one event to one endpoint, over all attempts. For the worker thread only.

    *id* is the webhook id. *submitted_at* is when the hook saw the step end, in monotonic seconds of this process.
    *body* is the same for every attempt, and empty before the first. *error_type* is why the last attempt failed.
    """

    id: str
    event: StepEvent
    pipeline: Pipeline
    submitted_at: float
    body: bytes = b""
    attempts: int = 0
    error_type: str = "expired"  # the value when no attempt was made
    redeliveries: int = 0  # how often somebody has asked for it again after it was discarded
    span: Span | None = None
