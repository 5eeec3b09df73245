"""The parts of a request, made from an event: body, headers and webhook id. Pure."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime

from opentelemetry.trace import format_span_id, format_trace_id

from otel_step_hook.delivery.model import Endpoint, Headers
from otel_step_hook.delivery.signing import sign
from otel_step_hook.steps.event import StepEvent
from otel_step_hook.version import __version__

USER_AGENT = f"otel-step-hook/{__version__}"
# In JSON of ASCII alone: an escaped backslash, the two halves of one character, and half a character by itself.
_ESCAPES = re.compile(r"\\\\|\\ud[89ab]..\\ud[c-f]..|\\(ud[89a-f]..)")
_MAX_TIME = 253_402_300_799_999_999_999  # unix nanoseconds: the end of the year 9999, where ISO 8601 ends


def webhook_id(event: StepEvent) -> str:
    """Return ``msg_`` and a hash of step, span and outcome: the same for every attempt, in every process."""
    context = event.context
    named = f"{event.step_id}\0{context.trace_id:032x}\0{context.span_id:016x}\0{event.outcome}"
    digest = hashlib.sha256(named.encode("utf-8", "surrogatepass")).digest()[:20]
    return f"msg_{base64.b32encode(digest).decode('ascii').lower()}"


def body(event: StepEvent, payload: str) -> bytes:
    """Return the JSON that every attempt sends, byte for byte the same; *payload* is ``step_id`` or ``full``.

    A lone surrogate, which strict parsers of JSON refuse (RFC 8259 8.2), becomes text: a backslash, ``u``, four digits.
    """
    fields: dict[str, object] = {"step_id": event.step_id}
    if payload == "full":
        fields |= {
            "type": f"step.{event.outcome}",
            "timestamp": _iso(event.end_time),
            "data": {
                "step_id": event.step_id,
                "outcome": event.outcome,
                "name": str(event.name),  # the SDK accepts any object as a name
                "trace_id": format_trace_id(event.context.trace_id),
                "span_id": format_span_id(event.context.span_id),
                "started_at": _iso(event.start_time),
                "ended_at": _iso(event.end_time),
                **event.details,
            },
        }
    return _ESCAPES.sub(_valid, json.dumps(fields)).encode("ascii")


def _valid(escape: re.Match[str]) -> str:
    return f"\\\\{escape[1]}" if escape[1] else escape[0]


def _iso(nanoseconds: int) -> str:
    # A float has too few digits for nanoseconds since 1970, so seconds and the rest are converted separately.
    # `Span.end` accepts any time: a float, seconds in place of nanoseconds, the year 30000.
    seconds, rest = divmod(min(max(int(nanoseconds), 0), _MAX_TIME), 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


_FIXED = (
    ("content-type", "application/json"),
    ("user-agent", USER_AGENT),
    ("accept", "*/*"),
    ("accept-encoding", "identity"),
)


def attempt_headers(
    endpoint: Endpoint, message_id: str, content: bytes, *, timestamp: int, trace: Sequence[tuple[str, str]]
) -> Headers:
    """Return all headers of an attempt made at *timestamp* (unix seconds); *trace* holds those of its trace context."""
    headers = [*_FIXED, *endpoint.headers]
    headers += [("webhook-id", message_id), ("webhook-timestamp", str(timestamp)), *trace]
    if endpoint.signing_keys:
        signature = sign(endpoint.signing_keys, webhook_id=message_id, timestamp=timestamp, body=content)
        headers.append(("webhook-signature", signature))
    return headers
