"""How a step ended: the order of evidence. First rule that decides, in the order of the code."""

import re

from opentelemetry.trace import StatusCode

from otel_step_hook.steps.event import Outcome
from otel_step_hook.steps.profile import Attributes, Profile, Verdict, as_text
from otel_step_hook.steps.spans import StartedSpan

# Compared by the last dotted part: asyncio.exceptions.CancelledError, trio.Cancelled, a bare CancelledError, …
CANCELLATIONS = frozenset({"CancelledError", "Cancelled", "KeyboardInterrupt", "SystemExit", "GreenletExit"})
# A step that pauses, or hands its end over to somebody else, has not ended: nothing is sent.
PAUSES = frozenset(
    {
        "GraphInterrupt",
        "NodeInterrupt",
        "CallDeferred",
        "ApprovalRequired",
        "_CompleteAsyncError",
        "BreakpointException",
        "HumanFeedbackPending",
    }
)
# Whose they are: an exception of the same name from elsewhere is one like any other.
_PAUSING_PACKAGES = frozenset({"langgraph", "pydantic_ai", "temporalio", "haystack", "crewai"})
# In flight without meaning a failure: how generators end.
CONTROL_FLOW = frozenset({"GeneratorExit", "StopIteration", "StopAsyncIteration"})

_STEP_STATUS = {
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
_LEADING_NAME = re.compile(r"[A-Za-z_][\w.]*(?=\s*(?:[:(]|$))")  # not a sentence that begins so


def step_status_outcome(attributes: Attributes) -> Outcome | None:
    """What the attribute ``step.status`` says, if anything."""
    if "step.status" not in attributes:
        return None
    return _STEP_STATUS.get(as_text(attributes["step.status"]).strip().lower())


def outcome_of(span: StartedSpan, exception: BaseException | None, profile: Profile) -> Outcome | None:
    """How the step of *span* ended, or None when it has not: it has only paused, or will be tried again.

    *exception* is the one in flight when the span ended, unless it already was when the span
    began. *profile* is that of the framework. Never raises, whatever the span holds, unless a
    profile of the user's does.
    """
    said = step_status_outcome(span.attributes) or profile.outcome(span, exception)
    if said is not None:
        return None if isinstance(said, Verdict) else Outcome(said)
    flying = _kind(exception) if exception is not None else ""
    status = span.status.status_code
    if status is StatusCode.ERROR:
        return _of_error(span, exception)
    if flying == "cancellation":
        return Outcome.CANCELLED
    if flying == "pause":
        return None
    if status is StatusCode.OK:
        return None if _is_pause(_last_exception(span)) else Outcome.SUCCESS
    return _of_unset(span, exception)


def _of_error(span: StartedSpan, exception: BaseException | None) -> Outcome | None:
    flying = _kind(exception)
    given = (_last_exception(span), as_text(span.attributes.get("error.type")), _leading_name(span.status.description))
    names = tuple(map(bare_name, given))
    if flying == "cancellation" or not CANCELLATIONS.isdisjoint(names):
        return Outcome.CANCELLED
    if flying == "pause" or (_is_pause(*given) and not _is_not_a_pause(exception)):
        return None
    # A generator that its consumer closed early has done what was asked of it, unless something else is recorded.
    return Outcome.SUCCESS if {name for name in names if name} == {"GeneratorExit"} else Outcome.FAILED


def _of_unset(span: StartedSpan, exception: BaseException | None) -> Outcome | None:
    last = _last_exception(span)
    if last and bare_name(last) in CANCELLATIONS:
        return Outcome.CANCELLED
    if last and _is_pause(last) and not _is_not_a_pause(exception):
        return None
    return Outcome.FAILED if exception is not None and _kind(exception) == "exception" else Outcome.SUCCESS


def is_cancellation(exception: BaseException | None) -> bool:
    """Whether *exception* is a cancellation, or a group of nothing else."""
    return _kind(exception) == "cancellation"


def is_failure(exception: BaseException | None) -> bool:
    """Whether *exception* means that something has failed: it is no cancellation, pause or control flow."""
    return _kind(exception) == "exception"


def _kind(exception: BaseException | None) -> str:
    """``cancellation``, ``pause``, ``exception``, or nothing for none and for mere control flow.

    A group is a cancellation when all of its leaves are: trio and TaskGroup wrap them so.
    """
    if exception is None:
        return ""
    if isinstance(exception, BaseExceptionGroup):
        kinds = {_kind(inner) for inner in exception.exceptions} - {""}
        return kinds.pop() if len(kinds) == 1 else "exception" if kinds else ""
    bases = type(exception).__mro__
    names = {base.__name__ for base in bases}
    if names & CANCELLATIONS:
        return "cancellation"
    if names & PAUSES and any(base.__name__ in PAUSES and _is_pausing_package(base.__module__) for base in bases):
        return "pause"
    return "" if names & CONTROL_FLOW else "exception"


def _is_pause(*names: str) -> bool:
    """Whether the first of these names that could be a pause's is one: it does not say whose it is, or says so."""
    for name in names:
        module, _, last = name.rpartition(".")
        if last in PAUSES:
            return not module or _is_pausing_package(module)
    return False


def _is_not_a_pause(exception: BaseException | None) -> bool:
    """Whether *exception* has the name of a pause and is none: the object knows better than a name on its span."""
    has_name = any(base.__name__ in PAUSES for base in type(exception).__mro__)
    return has_name and _kind(exception) != "pause"


def _is_pausing_package(module: object) -> bool:
    return as_text(module).partition(".")[0] in _PAUSING_PACKAGES


def _last_exception(span: StartedSpan) -> str:
    """The type of the last exception event; empty without one."""
    for event in reversed(span.events):
        if event.name == "exception":
            return as_text((event.attributes or {}).get("exception.type"))
    return ""


def bare_name(name: str) -> str:
    """``CancelledError`` of ``asyncio.exceptions.CancelledError``."""
    return name.rpartition(".")[2]


def _leading_name(description: str | None) -> str:
    """``CancelledError`` of ``CancelledError: stopped`` and of ``CancelledError()Traceback…``; ``?`` of a sentence."""
    found = _LEADING_NAME.match(description or "")
    return found.group() if found else "?" * bool(description)
