"""How a step ended, rule by rule. Any span whatever: test_outcome_of_anything.py. Real ones: test_cancellation*.py."""

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


class ApprovalRequired(Exception):  # noqa: N818 -- the name is the point
    """The application's own; pydantic-ai has one of that name."""


class GraphInterrupt(Exception):  # noqa: N818 -- LangGraph's own name
    """A pause."""

    __module__ = "langgraph.errors"


class _NodeInterrupt(GraphInterrupt):
    pass


class _Cancelled(asyncio.CancelledError):
    pass


def _trio_cancelled() -> BaseException:
    """One that trio itself has made: it allows nobody else to."""
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


class _Word(str, enum.Enum):  # noqa: UP042 -- the old way, whose str() is not the value
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
        attributes=attributes,  # type: ignore[arg-type]  # -- anything may be in there
    )
    return outcome_of(started(span), in_flight, GENERIC)


# 1. What the user says


_STATUSES = {
    _SUCCESS: ("success", "succeeded", "ok", "completed"),
    _FAILED: ("failed", "failure", "error", "timeout"),
    _CANCELLED: ("cancelled", "canceled", "cancellation", " CANCELLED\n", _Word.STOPPED),
}


def test_the_step_status_of_the_user_decides() -> None:
    """``step.status`` is stronger than the span's status and than any exception."""
    expected, found = {}, {}
    for outcome, words in _STATUSES.items():
        for case in product(words, StatusCode, (None, ValueError, asyncio.CancelledError)):
            word, code, kind = case
            expected[case] = outcome
            found[case] = _outcome(code, attributes={"step.status": word}, in_flight=kind and kind())
    assert found == expected
    assert len(found) == 117


def test_a_step_status_that_says_nothing_is_passed_over() -> None:
    """An unknown one, or one that is no text, leaves the decision to the other rules."""
    for word in ("", "running", b"failed", 1, None, ("failed",), {"failed": True}, 10**5000):
        found = [_outcome(code, attributes={"step.status": word}) for code in (_OK, _ERROR)]
        assert (type(word), found) == (type(word), [_SUCCESS, _FAILED])


# 2. The status ERROR


def test_an_error_is_a_failure() -> None:
    """Without other evidence ERROR means failed, whatever its description says."""
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
    """The last event, ``error.type`` and the description's first word are each enough."""
    assert _outcome(_ERROR, events=[_raised("ValueError"), _raised(kind)]) is _CANCELLED
    assert _outcome(_ERROR, attributes={"error.type": kind}) is _CANCELLED
    assert _outcome(_ERROR, f"{kind}: stopped") is _CANCELLED
    assert _outcome(_ERROR, f"{kind}()Traceback (most recent call last)") is _CANCELLED


def test_a_cancellation_that_was_survived_is_not_the_last_word() -> None:
    """Only the last exception that was recorded tells how it ended."""
    assert _outcome(_ERROR, events=[_raised("CancelledError"), _raised("ValueError")]) is _FAILED
    assert _outcome(events=[_raised("CancelledError"), _raised("ValueError")]) is _SUCCESS


def test_other_events_are_no_exceptions() -> None:
    """An event of another name, or without a type, says nothing, not even between two others."""
    other = [Event("retry", {"exception.type": "CancelledError"}), Event("exception")]
    assert _outcome(_ERROR, events=other[:1]) is _FAILED
    assert _outcome(_ERROR, events=[_raised("trio.Cancelled"), other[0]]) is _CANCELLED
    assert _outcome(_ERROR, events=other) is _FAILED


@pytest.mark.parametrize("code", [_ERROR, _UNSET, _OK])
def test_a_pause_is_no_end(code: StatusCode) -> None:
    """A graph that waits for a human has not ended: nothing is sent, whatever the instrumentation made of it."""
    assert _outcome(code, events=[_raised("langgraph.errors.GraphInterrupt")]) is None
    assert _outcome(code, in_flight=GraphInterrupt()) is None
    assert _outcome(code, in_flight=_NodeInterrupt()) is None


def test_an_error_named_as_a_pause_is_no_end() -> None:
    """Under ERROR the description and ``error.type`` tell of a pause as well."""
    assert _outcome(_ERROR, "GraphInterrupt(())") is None
    assert _outcome(_ERROR, attributes={"error.type": "NodeInterrupt"}) is None


@pytest.mark.parametrize("code", [_ERROR, _UNSET])
def test_a_pause_that_is_told_while_another_exception_is_in_flight_is_no_end(code: StatusCode) -> None:
    """A callback may end the span inside of somebody's handler; the span's own exception counts."""
    assert _outcome(code, events=[_raised("langgraph.errors.GraphInterrupt")], in_flight=ValueError()) is None


@pytest.mark.parametrize(("code", "outcome"), [(_ERROR, _FAILED), (_UNSET, _SUCCESS), (_OK, _SUCCESS)])
def test_an_exception_that_shares_a_pauses_name_is_none(code: StatusCode, outcome: Outcome) -> None:
    """It is the application's own, and means what other exceptions mean; a name alone does not overrule it."""
    raised = [_raised("app.ApprovalRequired")]
    assert _outcome(code, events=raised) is outcome
    assert _outcome(_ERROR, "ApprovalRequired: by two", events=raised) is _FAILED
    assert _outcome(_ERROR, "ApprovalRequired: by two", in_flight=ApprovalRequired("by two")) is _FAILED
    assert _outcome(events=[_raised("ApprovalRequired")], in_flight=ApprovalRequired("by two")) is _FAILED
    assert _outcome(_ERROR, attributes={"error.type": "app.NodeInterrupt"}) is _FAILED


def test_a_generator_closed_early_has_succeeded() -> None:
    """Its consumer had enough; unless the step tells of a failure besides."""
    closed = [_raised("GeneratorExit")]
    assert _outcome(_ERROR, "GeneratorExit: ", events=closed, in_flight=GeneratorExit()) is _SUCCESS
    assert _outcome(in_flight=GeneratorExit()) is _SUCCESS
    assert _outcome(_ERROR, "database is down", events=closed, in_flight=GeneratorExit()) is _FAILED
    assert _outcome(_ERROR, events=closed, attributes={"error.type": "TimeoutError"}) is _FAILED
    assert _outcome(_ERROR, "database is down", in_flight=GeneratorExit()) is _FAILED


# 3. to 5. An exception in flight, OK, UNSET


def test_a_cancellation_in_flight_is_cancelled() -> None:
    """A step that ends while a cancellation passes through it was cancelled, even under OK."""
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
def test_an_exception_in_flight_is_a_failure_that_nobody_recorded(in_flight: BaseException) -> None:
    """Under UNSET it means failed; a group too, when but one of its members failed; OK is stronger."""
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
def test_control_flow_in_flight_means_nothing(in_flight: BaseException) -> None:
    """Generators end by exceptions, which says nothing about the step."""
    assert _outcome(_UNSET, in_flight=in_flight) is _SUCCESS
    assert _outcome(_ERROR, in_flight=in_flight) is _FAILED


def test_a_recorded_cancellation_under_unset_is_cancelled() -> None:
    """A handler that records what stopped the step, and sets no status, has said enough."""
    assert _outcome(events=[_raised("asyncio.exceptions.CancelledError")]) is _CANCELLED


def test_a_recorded_exception_under_unset_is_no_failure() -> None:
    """An exception that was recorded and survived, without a status, is none of the step's own."""
    assert _outcome(events=[_raised("ValueError")]) is _SUCCESS


def test_ok_is_success() -> None:
    """OK is the word of whoever wrote the step."""
    assert _outcome(_OK, events=[_raised("ValueError")]) is _SUCCESS
    assert _outcome(_OK, events=[_raised("CancelledError")]) is _SUCCESS
