"""`StepEvent`, which describes a step that has ended, and the ids of steps."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from opentelemetry.trace import SpanContext

SCOPE = "otel_step_hook"  # instrumentation scope of every span that this library makes; such a span is never a step
STEP_ID_KEYS = ("step_id", "step.id")  # attributes that make any span a step; the first is named as in the webhook
MAX_STEP_ID = 16_384  # characters; many receivers refuse a body beyond about 20 kB (Standard Webhooks)
# What frameworks write where they have no id, in lower case: `<not specified>` Google ADK, `unknown` Microsoft's
# agent-framework; the others are a missing value as text. As an id, it would be the same for many steps.
_PLACEHOLDERS = frozenset({"<not specified>", "not specified", "<unknown>", "unknown", "none", "null", "undefined"})
_NAMESPACE = uuid.UUID("6e5b1f4a-5b0e-5c43-9a35-0f6f3a1c2d7e")  # arbitrary; names in it are trace id + span id


class Outcome(StrEnum):
    """How a step ended."""

    SUCCESS = "success"
    FAILED = "failed"
    CANCELLED = "cancelled"

    __hash__ = str.__hash__  # equality is that of `str`, too; the one of `Enum` is a slow Python function


@dataclass(slots=True)  # not frozen, which would cost the application's thread a microsecond for each step
class StepEvent:
    """A step that has ended. Times are in unix nanoseconds; *details* are further values by name, such as ``run_id``.

    It is never changed.
    """

    step_id: str
    outcome: Outcome
    name: str
    context: SpanContext
    start_time: int
    end_time: int
    details: Mapping[str, str] = field(default_factory=dict)


def generated_step_id(context: SpanContext) -> str:
    """Return ``step-`` and a UUID made from trace id and span id, always the same for the same span."""
    return f"step-{uuid.uuid5(_NAMESPACE, f'{context.trace_id:032x}{context.span_id:016x}')}"


def step_id_text(value: object) -> str:
    """Return *value* as the text of a step id; empty text for None, blank text, and a placeholder such as ``unknown``.

    *value* is any attribute's value. Text stays as it is, bytes are read as UTF-8, and all else becomes JSON, as in
    OpenTelemetry's own text form of attributes. Raises ValueError for more characters than `MAX_STEP_ID`: cut short,
    the id could be another step's.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        text = str.__str__(value)  # of an enum member that is a str, its value and not its name
    elif isinstance(value, bytes):
        text = _decoded(value)
    else:
        text = json.dumps(value, default=_plain, sort_keys=True)
    if len(text) > MAX_STEP_ID:
        raise ValueError(f"a step id has {len(text)} characters; at most {MAX_STEP_ID} are sent")
    bare = text.strip()
    return "" if not bare or bare.casefold() in _PLACEHOLDERS else text


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    return _decoded(value) if isinstance(value, bytes) else repr(value)


def _decoded(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
