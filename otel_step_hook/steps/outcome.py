"""How a step ended. The rules are asked in the order of the code, and the first that decides wins."""

import re

from opentelemetry.trace import StatusCode

from otel_step_hook.steps.event import Outcome
from otel_step_hook.steps.profile import Attributes, Profile, Verdict, as_text
from otel_step_hook.steps.spans import StartedSpan

# Compared with the last dotted part of a name: asyncio.exceptions.CancelledError, trio.Cancelled, CancelledError, …
CANCELLATIONS = frozenset({"CancelledError", "Cancelled", "KeyboardInterrupt", "SystemExit", "GreenletExit"})
# With these exceptions a step pauses, or leaves its completion to another party: it has not ended, nothing is sent.
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
# The packages that define them. An exception of the same name from another package is an ordinary exception.
_PAUSING_PACKAGES = frozenset({"langgraph", "pydantic_ai", "temporalio", "haystack", "crewai"})
# Exceptions by which a step that is done makes another one run. With their modules: an exception of the application may
# have the same name.
_HANDOVERS = frozenset({"langgraph.errors.ParentCommand"})
# Exceptions that end generators: in flight, they are no failures.
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
_LEADING_NAME = re.compile(r"[A-Za-z_][\w.]*(?=\s*(?:[:(]|$))")  # a name alone, not the beginning of a sentence


def step_status_outcome(attributes: Attributes) -> Outcome | None:
    """Return the outcome that the attribute ``step.status`` names, or None."""
    if "step.status" not in attributes:
        return None
    return _STEP_STATUS.get(as_text(attributes["step.status"]).strip().lower())


def outcome_of(span: StartedSpan, exception: BaseException | None, profile: Profile) -> Outcome | None:
    """Return how the step of *span* ended, or None when it has not ended: it has paused, or will be tried again.

    *exception* is the one in flight when the span ended, unless it was in flight already when the span began.
    *profile* is that of the framework. Never raises for any span, unless a rule of a user's profile does.
    """
    reported_outcome = step_status_outcome(span.attributes) or profile.outcome(span, exception)
    if reported_outcome is not None:
        return None if isinstance(reported_outcome, Verdict) else Outcome(reported_outcome)
    kind = _kind(exception) if exception is not None else ""
    status = span.status.status_code
    if status is StatusCode.ERROR:
        return _of_error(span, exception)
    if kind == "cancellation":
        return Outcome.CANCELLED
    if kind == "pause":
        return None
    if status is StatusCode.OK:
        return None if _is_pause(_last_exception(span)) else Outcome.SUCCESS
    return _of_unset(span, exception)


def _of_error(span: StartedSpan, exception: BaseException | None) -> Outcome | None:
    kind = _kind(exception)
    recorded = (
        _last_exception(span),
        as_text(span.attributes.get("error.type")),
        leading_name(span.status.description),
    )
    names = tuple(map(bare_name, recorded))
    if kind == "cancellation" or not CANCELLATIONS.isdisjoint(names):
        return Outcome.CANCELLED
    if kind == "pause" or (_is_pause(*recorded) and not _is_not_a_pause(exception)):
        return None
    if recorded[0] in _HANDOVERS or (_is_handover(exception) and not recorded[0]):
        return Outcome.SUCCESS
    # A consumer that closes a generator early has got what it wanted, unless another exception is recorded.
    return Outcome.SUCCESS if {name for name in names if name} == {"GeneratorExit"} else Outcome.FAILED


def _of_unset(span: StartedSpan, exception: BaseException | None) -> Outcome | None:
    last = _last_exception(span)
    error_type = as_text(span.attributes["error.type"]).strip() if "error.type" in span.attributes else ""
    if last or error_type:
        if not CANCELLATIONS.isdisjoint((bare_name(last), bare_name(error_type))):
            return Outcome.CANCELLED
        if _is_pause(last, error_type) and not _is_not_a_pause(exception):
            return None
        # The conventions set `error.type` on operations that have failed, and on no others.
        if error_type and bare_name(error_type) not in CONTROL_FLOW:
            return Outcome.FAILED
    return Outcome.FAILED if exception is not None and _kind(exception) == "exception" else Outcome.SUCCESS


def is_cancellation(exception: BaseException | None) -> bool:
    """Whether *exception* is a cancellation, or a group of cancellations only."""
    return _kind(exception) == "cancellation"


def is_failure(exception: BaseException | None) -> bool:
    """Whether *exception* is a failure: no cancellation, no pause and no control flow."""
    return _kind(exception) == "exception"


def _kind(exception: BaseException | None) -> str:
    """Return ``cancellation``, ``pause``, ``exception``, or empty text for None and for control flow.

    A group has the kind that all of its exceptions have, or is an ``exception`` if they differ: trio and
    `asyncio.TaskGroup` wrap cancellations in groups.
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
    return "" if names & CONTROL_FLOW or _is_handover(exception) else "exception"


def _is_handover(exception: BaseException | None) -> bool:
    return any(f"{base.__module__}.{base.__name__}" in _HANDOVERS for base in type(exception).__mro__)


def _is_pause(*names: str) -> bool:
    """Whether the first of *names* that is in `PAUSES` has no module, or a module of a package that defines pauses."""
    for name in names:
        module, _, last = name.rpartition(".")
        if last in PAUSES:
            return not module or _is_pausing_package(module)
    return False


def _is_not_a_pause(exception: BaseException | None) -> bool:
    """Whether *exception* shares its name with a pause and is none: the object outweighs a name on the span."""
    has_name = any(base.__name__ in PAUSES for base in type(exception).__mro__)
    return has_name and _kind(exception) != "pause"


def _is_pausing_package(module: object) -> bool:
    return as_text(module).partition(".")[0] in _PAUSING_PACKAGES


def _last_exception(span: StartedSpan) -> str:
    """Return the type in the last exception event; empty text without one."""
    for event in reversed(span.events):
        if event.name == "exception":
            return as_text((event.attributes or {}).get("exception.type"))
    return ""


def bare_name(name: str) -> str:
    """Return the last dotted part of *name*: ``CancelledError`` of ``asyncio.exceptions.CancelledError``."""
    return name.rpartition(".")[2]


def leading_name(description: str | None) -> str:
    """Return the exception's name at the beginning of *description*, or ``?`` if it begins with none.

    It is ``CancelledError`` in ``CancelledError: stopped`` and in ``CancelledError()Traceback…``.
    """
    found = _LEADING_NAME.match(description or "")
    return found.group() if found else "?" * bool(description)
