"""The rules for the outcome of a step, one by one.

Spans with arbitrary content are in test_outcome_of_anything.py, real cancellations in test_cancellation*.py.
"""

import asyncio
import concurrent.futures
import enum
from collections.abc import Mapping, Sequence
from itertools import product

import pytest
import trio
from emitting import started
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Status, StatusCode

from otel_step_hook.steps.event import Outcome
from otel_step_hook.steps.frameworks import GENERIC
from otel_step_hook.steps.outcome import CANCELLATIONS, outcome_of

_SUCCESS, _FAILED, _CANCELLED = Outcome
_UNSET, _OK, _ERROR = StatusCode


class ApprovalRequired(Exception):  # noqa: N818 -- pydantic-ai has an exception of this name
    """An exception of the application that has the name of a pause of pydantic-ai."""


class GraphInterrupt(Exception):  # noqa: N818 -- LangGraph's own name
    """A pause."""

    __module__ = "langgraph.errors"


class _NodeInterrupt(GraphInterrupt):
    pass


class _Cancelled(asyncio.CancelledError):
    pass


def _trio_cancelled() -> BaseException:
    """Return a `trio.Cancelled`, which only trio itself can make."""
    caught: list[BaseException] = []

    async def main() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as cancelled:
                caught.append(cancelled)
                raise

    trio.run(main)
    return caught[0]


class _Status(str, enum.Enum):  # noqa: UP042 -- str() of such a member is not its value
    STOPPED = "Cancelled"


def _raised(kind: str) -> Event:
    return Event("exception", {"exception.type": kind, "exception.message": "why"})


def _outcome(
    code: StatusCode = _UNSET,
    description: str | None = None,
    *,
    events: Sequence[Event] = (),
    attributes: Mapping[str, object] | None = None,
    in_flight: BaseException | None = None,
) -> Outcome | None:
    span = ReadableSpan(
        "step",
        status=Status(code, description),
        events=events,
        attributes=attributes,  # type: ignore[arg-type]  # -- values of any type
    )
    return outcome_of(started(span), in_flight, GENERIC)


# 1. The attribute step.status


_STATUSES = {
    _SUCCESS: ("success", "succeeded", "ok", "completed"),
    _FAILED: ("failed", "failure", "error", "timeout"),
    _CANCELLED: ("cancelled", "canceled", "cancellation", " CANCELLED\n", _Status.STOPPED),
}


def test_step_status_decides() -> None:
    """``step.status`` overrules the span's status and any exception."""
    expected, found = {}, {}
    for outcome, values in _STATUSES.items():
        for case in product(values, StatusCode, (None, ValueError, asyncio.CancelledError)):
            value, code, kind = case
            expected[case] = outcome
            found[case] = _outcome(code, attributes={"step.status": value}, in_flight=kind and kind())
    assert found == expected
    assert len(found) == 117


def test_an_unknown_step_status_is_ignored() -> None:
    """If ``step.status`` has an unknown value, or no text, the other rules decide."""
    for value in ("", "running", b"failed", 1, None, ("failed",), {"failed": True}, 10**5000):
        found = [_outcome(code, attributes={"step.status": value}) for code in (_OK, _ERROR)]
        assert (type(value), found) == (type(value), [_SUCCESS, _FAILED])


# 2. The status ERROR


def test_an_error_is_a_failure() -> None:
    """ERROR means failed, unless an exception type or the start of the description names a cancellation."""
    assert _outcome(_ERROR) is _FAILED
    assert _outcome(_ERROR, "the payment was not Cancelled in time") is _FAILED
    assert _outcome(_ERROR, "ValueError: CancelledError") is _FAILED
    assert _outcome(_ERROR, events=[_raised("ValueError")], in_flight=ValueError()) is _FAILED
    assert _outcome(_ERROR, events=[_raised("_OTHER")], attributes={"error.type": "503"}) is _FAILED


@pytest.mark.parametrize(
    "kind",
    [
        *sorted(CANCELLATIONS),
        "asyncio.exceptions.CancelledError",
        "trio.Cancelled",
        "concurrent.futures._base.CancelledError",
    ],
)
def test_an_error_that_is_a_cancellation_is_cancelled(kind: str) -> None:
    """Under ERROR, the last event, ``error.type`` or the type at the start of the description makes it cancelled."""
    assert _outcome(_ERROR, events=[_raised("ValueError"), _raised(kind)]) is _CANCELLED
    assert _outcome(_ERROR, attributes={"error.type": kind}) is _CANCELLED
    assert _outcome(_ERROR, f"{kind}: stopped") is _CANCELLED
    assert _outcome(_ERROR, f"{kind}()Traceback (most recent call last)") is _CANCELLED


def test_a_recorded_cancellation_before_the_last_exception_is_ignored() -> None:
    """Only the last recorded exception counts."""
    assert _outcome(_ERROR, events=[_raised("CancelledError"), _raised("ValueError")]) is _FAILED
    assert _outcome(events=[_raised("CancelledError"), _raised("ValueError")]) is _SUCCESS


def test_other_events_are_ignored() -> None:
    """An event of another name, or without a type, is no recorded exception, not even as the last event."""
    other = [Event("retry", {"exception.type": "CancelledError"}), Event("exception")]
    assert _outcome(_ERROR, events=other[:1]) is _FAILED
    assert _outcome(_ERROR, events=[_raised("trio.Cancelled"), other[0]]) is _CANCELLED
    assert _outcome(_ERROR, events=other) is _FAILED


@pytest.mark.parametrize("code", [_ERROR, _UNSET, _OK])
def test_a_paused_step_has_no_outcome(code: StatusCode) -> None:
    """A graph that waits for a human has not ended, whatever status the instrumentation has set."""
    assert _outcome(code, events=[_raised("langgraph.errors.GraphInterrupt")]) is None
    assert _outcome(code, in_flight=GraphInterrupt()) is None
    assert _outcome(code, in_flight=_NodeInterrupt()) is None


def test_an_error_that_names_a_pause_has_no_outcome() -> None:
    """Under ERROR, the description or ``error.type`` may name the pause as well."""
    assert _outcome(_ERROR, "GraphInterrupt(())") is None
    assert _outcome(_ERROR, attributes={"error.type": "NodeInterrupt"}) is None


@pytest.mark.parametrize("code", [_ERROR, _UNSET])
def test_a_recorded_pause_overrules_another_exception_in_flight(code: StatusCode) -> None:
    """A callback may end the span while another exception is handled; the recorded exception counts."""
    assert _outcome(code, events=[_raised("langgraph.errors.GraphInterrupt")], in_flight=ValueError()) is None


@pytest.mark.parametrize(("code", "outcome"), [(_ERROR, _FAILED), (_UNSET, _SUCCESS), (_OK, _SUCCESS)])
def test_an_exception_of_the_application_with_the_name_of_a_pause_is_no_pause(
    code: StatusCode, outcome: Outcome
) -> None:
    """An exception of another package counts like any other, although it has the name of a pause."""
    raised = [_raised("app.ApprovalRequired")]
    assert _outcome(code, events=raised) is outcome
    assert _outcome(_ERROR, "ApprovalRequired: by two", events=raised) is _FAILED
    assert _outcome(_ERROR, "ApprovalRequired: by two", in_flight=ApprovalRequired("by two")) is _FAILED
    assert _outcome(events=[_raised("ApprovalRequired")], in_flight=ApprovalRequired("by two")) is _FAILED
    assert _outcome(_ERROR, attributes={"error.type": "app.NodeInterrupt"}) is _FAILED


def test_a_generator_closed_early_has_succeeded() -> None:
    """GeneratorExit is a success, unless description or ``error.type`` names a failure."""
    closed = [_raised("GeneratorExit")]
    assert _outcome(_ERROR, "GeneratorExit: ", events=closed, in_flight=GeneratorExit()) is _SUCCESS
    assert _outcome(in_flight=GeneratorExit()) is _SUCCESS
    assert _outcome(_ERROR, "database is down", events=closed, in_flight=GeneratorExit()) is _FAILED
    assert _outcome(_ERROR, events=closed, attributes={"error.type": "TimeoutError"}) is _FAILED
    assert _outcome(_ERROR, "database is down", in_flight=GeneratorExit()) is _FAILED


# 3. to 5. An exception in flight, OK, UNSET


def test_a_cancellation_in_flight_is_cancelled() -> None:
    """A step that ends while a cancellation passes through it is cancelled, even under OK."""
    cancellations = (
        asyncio.CancelledError(),
        _Cancelled(),
        concurrent.futures.CancelledError(),
        KeyboardInterrupt(),
        SystemExit(0),
        _trio_cancelled(),
        BaseExceptionGroup("", [asyncio.CancelledError(), BaseExceptionGroup("", [_trio_cancelled()])]),
        BaseExceptionGroup("", [asyncio.CancelledError(), GeneratorExit()]),
    )
    found = {(code, one): _outcome(code, in_flight=one) for code, one in product(StatusCode, cancellations)}
    assert found == dict.fromkeys(found, _CANCELLED)
    assert len(found) == 24


@pytest.mark.parametrize(
    "in_flight",
    [
        ValueError(),
        TimeoutError(),
        ExceptionGroup("", [ValueError(), TimeoutError()]),
        BaseExceptionGroup("", [asyncio.CancelledError(), ValueError()]),
        BaseExceptionGroup("", [asyncio.CancelledError(), GraphInterrupt()]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_exception_in_flight_is_a_failure_under_unset(in_flight: BaseException) -> None:
    """An exception, or a group with at least one failure, means failed under UNSET; OK overrules it."""
    assert _outcome(_UNSET, in_flight=in_flight) is _FAILED
    assert _outcome(_OK, in_flight=in_flight) is _SUCCESS


@pytest.mark.parametrize(
    "in_flight",
    [
        GeneratorExit(),
        StopIteration(),
        StopAsyncIteration(),
        BaseExceptionGroup("", [GeneratorExit(), StopIteration()]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_control_flow_in_flight_is_ignored(in_flight: BaseException) -> None:
    """The exceptions by which generators end do not change the outcome."""
    assert _outcome(_UNSET, in_flight=in_flight) is _SUCCESS
    assert _outcome(_ERROR, in_flight=in_flight) is _FAILED


def test_a_recorded_cancellation_under_unset_is_cancelled() -> None:
    """A recorded cancellation is enough, without a status."""
    assert _outcome(events=[_raised("asyncio.exceptions.CancelledError")]) is _CANCELLED


def test_a_recorded_exception_under_unset_is_no_failure() -> None:
    """A step that records an exception and sets no status has handled it."""
    assert _outcome(events=[_raised("ValueError")]) is _SUCCESS


@pytest.mark.parametrize(
    ("error_type", "outcome"),
    [
        ("ValueError", _FAILED),
        ("tool_error", _FAILED),
        ("asyncio.exceptions.CancelledError", _CANCELLED),
        ("CancelledError", _CANCELLED),
        ("GraphInterrupt", None),
        ("app.GraphInterrupt", _FAILED),
        ("GeneratorExit", _SUCCESS),
        (" ", _SUCCESS),
    ],
)
def test_an_error_type_under_unset_decides(error_type: str, outcome: Outcome | None) -> None:
    """Only an operation that has not succeeded has ``error.type``, although its span has no status."""
    assert _outcome(attributes={"error.type": error_type}) is outcome
    assert _outcome(attributes={"error.type": error_type}, in_flight=GeneratorExit()) is outcome


def test_ok_overrules_recorded_exceptions() -> None:
    """OK means success, although a failure or a cancellation has been recorded."""
    assert _outcome(_OK, events=[_raised("ValueError")]) is _SUCCESS
    assert _outcome(_OK, events=[_raised("CancelledError")]) is _SUCCESS
