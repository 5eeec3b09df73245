"""The event: what is known of a step that has ended, and the identity it is reported under."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from opentelemetry.trace import SpanContext

SCOPE = "otel_step_hook"  # instrumentation scope of every span that this library makes; such a span is never a step
STEP_ID_KEYS = ("step_id", "step.id")  # attributes that make any span a step; the first is the specification's
MAX_STEP_ID = 16_384  # characters; a body beyond about 20 kB is refused by many receivers (Standard Webhooks)
_NAMESPACE = uuid.UUID("6e5b1f4a-5b0e-5c43-9a35-0f6f3a1c2d7e")  # ours, arbitrary; names are trace id + span id


class Outcome(StrEnum):
    """How a step ended."""

    SUCCESS = "success"
    FAILED = "failed"
    CANCELLED = "cancelled"

    __hash__ = str.__hash__  # as equality has it; enum's own is a call of a Python function


@dataclass(slots=True)  # not frozen, which costs the application's thread a microsecond for each step
class StepEvent:
    """A step that has ended. Times are unix nanoseconds; *details* are names with their values, such as ``run_id``.

    Nobody changes one.
    """

    step_id: str
    outcome: Outcome
    name: str
    context: SpanContext
    start_time: int
    end_time: int
    details: Mapping[str, str] = field(default_factory=dict)


def generated_step_id(context: SpanContext) -> str:
    """``step-`` and a UUID made from trace id and span id: the same for the same span, everywhere."""
    return f"step-{uuid.uuid5(_NAMESPACE, f'{context.trace_id:032x}{context.span_id:016x}')}"


def step_id_text(value: object) -> str:
    """*value* as the text of a step id; empty when it says nothing (None, blank).

    Takes any attribute value: text and bytes as they are, all else as JSON, which is how
    OpenTelemetry writes attributes as text. Raises ValueError when the text is longer than
    `MAX_STEP_ID`: cut short it would name another step.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        text = str.__str__(value)  # an enum member that is a str: its value, not its name
    elif isinstance(value, bytes):
        text = _decoded(value)
    else:
        text = json.dumps(value, default=_plain, sort_keys=True)
    if len(text) > MAX_STEP_ID:
        raise ValueError(f"a step id has {len(text)} characters; at most {MAX_STEP_ID} are sent")
    return text if text.strip() else ""


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    return _decoded(value) if isinstance(value, bytes) else repr(value)


def _decoded(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
