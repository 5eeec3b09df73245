"""Events and resources as JSON, in the form in which an outbox stores them. Pure."""

import hashlib
import json

from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanContext, TraceFlags, TraceState, format_span_id, format_trace_id

from otel_step_hook.steps.event import Outcome, StepEvent


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 -- an object of somebody else, whose event must be stored all the same
        return type(value).__name__


_JSON = json.JSONEncoder(separators=(",", ":"), default=_text)  # a profile's details may hold any object


def event_json(event: StepEvent) -> str:
    """Return *event* as JSON, in ASCII. Details that JSON has no form for become text."""
    context = event.context
    fields: dict[str, object] = {
        "step_id": event.step_id,
        "outcome": str(event.outcome),
        "name": str(event.name),
        "trace_id": format_trace_id(context.trace_id),
        "span_id": format_span_id(context.span_id),
        "trace_flags": int(context.trace_flags),
        "trace_state": context.trace_state.to_header() if context.trace_state else "",
        "start_time": event.start_time,
        "end_time": event.end_time,
        "details": dict(event.details),
    }
    try:
        return _JSON.encode(fields)
    except (TypeError, ValueError, RecursionError):  # keys that are no text, or values that hold themselves
        details = {_text(key): _text(value) for key, value in event.details.items()}
        return _JSON.encode(fields | {"details": details})


def event_from_json(text: str) -> StepEvent:
    """Return the event that `event_json` has made *text* of."""
    known = json.loads(text)
    trace_state = TraceState.from_header([known["trace_state"]]) if known["trace_state"] else TraceState()
    context = SpanContext(
        int(known["trace_id"], 16),
        int(known["span_id"], 16),
        is_remote=False,
        trace_flags=TraceFlags(known["trace_flags"]),
        trace_state=trace_state,
    )
    outcome = Outcome(known["outcome"])
    return StepEvent(
        known["step_id"], outcome, known["name"], context, known["start_time"], known["end_time"], known["details"]
    )


def resource_json(resource: Resource) -> tuple[str, str]:
    """Return the hash of *resource*, and its JSON."""
    content = _JSON.encode({"attributes": dict(resource.attributes), "schema_url": resource.schema_url})
    return hashlib.sha256(content.encode()).hexdigest()[:32], content


def resource_from_json(text: str) -> Resource:
    """Return the resource that `resource_json` has made *text* of."""
    known = json.loads(text)
    return Resource(known["attributes"], known["schema_url"])
