"""How a step ended: the order of evidence. First rule that decides, in the order of the code."""

import re
from collections.abc import Mapping

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from otel_step_hook.steps.event import Outcome

# Compared by the last dotted part: asyncio.exceptions.CancelledError, trio.Cancelled, a bare CancelledError, …
CANCELLATIONS = frozenset({"CancelledError", "Cancelled", "KeyboardInterrupt", "SystemExit", "GreenletExit"})
# A step that pauses has not ended: nothing is sent.
PAUSES = frozenset({"GraphInterrupt", "NodeInterrupt", "CallDeferred", "ApprovalRequired"})
# In flight without meaning a failure: how generators end.
CONTROL_FLOW = frozenset({"GeneratorExit", "StopIteration", "StopAsyncIteration"})

_WORDS = {
    "success": Outcome.SUCCESS,
    "succeeded": Outcome.SUCCESS,
    "ok": Outcome.SUCCESS,
    "completed": Outcome.SUCCESS,
    "failed": Outcome.FAILED,
    "failure": Outcome.FAILED,
    "error": Outcome.FAILED,
    "timeout": Outcome.FAILED,
    "cancelled": Outcome.CANCELLED,
    "canceled": Outcome.CANCELLED,
    "cancellation": Outcome.CANCELLED,
}
_STATUS_WORD = "step.status"
_LEADING_NAME = re.compile(r"[A-Za-z_][\w.]*")


def outcome_of(span: ReadableSpan, attributes: Mapping[str, object], exception: BaseException | None) -> Outcome | None:
    """How the step of *span* ended, or None when it has only paused.

    *exception* is the one in flight when the span ended, unless it already was when the span
    began. Never raises, whatever the span holds.
    """
    if said := _WORDS.get(_text(attributes.get(_STATUS_WORD)).strip().lower()):
        return said
    flying = _kind(exception)
    status = span.status.status_code
    if status is StatusCode.ERROR:
        return _of_error(span, attributes, flying)
    if flying == "cancellation":
        return Outcome.CANCELLED
    if flying == "pause":
        return None
    if status is StatusCode.OK:
        return None if _last_exception(span) in PAUSES else Outcome.SUCCESS
    return _of_unset(span, flying)


def _of_error(span: ReadableSpan, attributes: Mapping[str, object], flying: str) -> Outcome | None:
    names = (
        _last_exception(span),
        _last_part(_text(attributes.get("error.type"))),
        _last_part(_leading_name(span.status.description)),
    )
    if flying == "cancellation" or not CANCELLATIONS.isdisjoint(names):
        return Outcome.CANCELLED
    if flying == "pause" or not PAUSES.isdisjoint(names):
        return None
    # A generator that its consumer closed early has done what was asked of it, unless something else is told.
    return Outcome.SUCCESS if {name for name in names if name} == {"GeneratorExit"} else Outcome.FAILED


def _of_unset(span: ReadableSpan, flying: str) -> Outcome | None:
    last = _last_exception(span)
    if last in CANCELLATIONS:
        return Outcome.CANCELLED
    if last in PAUSES:
        return None
    return Outcome.FAILED if flying == "exception" else Outcome.SUCCESS


def _kind(exception: BaseException | None) -> str:
    """``cancellation``, ``pause``, ``exception``, or nothing for none and for mere control flow.

    A group is a cancellation when all of its leaves are: trio and TaskGroup wrap them so.
    """
    if exception is None:
        return ""
    if isinstance(exception, BaseExceptionGroup):
        kinds = {_kind(inner) for inner in exception.exceptions} - {""}
        return kinds.pop() if len(kinds) == 1 else "exception" if kinds else ""
    names = {base.__name__ for base in type(exception).__mro__}
    if names & CANCELLATIONS:
        return "cancellation"
    if names & PAUSES:
        return "pause"
    return "" if names & CONTROL_FLOW else "exception"


def _last_exception(span: ReadableSpan) -> str:
    """The last part of the type of the last exception event; empty without one."""
    for event in reversed(span.events):
        if event.name == "exception":
            return _last_part(_text((event.attributes or {}).get("exception.type")))
    return ""


def _text(value: object) -> str:
    # Of an enum member that is text its value, not its name; what is no text says nothing.
    return str.__str__(value) if isinstance(value, str) else ""


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]


def _leading_name(description: str | None) -> str:
    """``CancelledError`` of ``CancelledError: stopped`` and of ``CancelledError()Traceback…``."""
    found = _LEADING_NAME.match(description or "")
    return found.group() if found else ""
