"""How the attempts of Temporal activities are reported, in Temporal's own test environment.

The tests against a real server are in tests/live.
"""

import asyncio
import dataclasses
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import ModuleType, SimpleNamespace

import pytest
from emitting import StepRecorder
from opentelemetry.sdk.trace import TracerProvider
from temporalio import activity, workflow  # noqa: F401 -- the reader asks temporalio.workflow once it is imported
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.testing import ActivityEnvironment

from otel_step_hook.steps.runtime import is_replaying


class _Foreign(Exception):  # noqa: N818 -- stands for the exception of any client library
    """An exception whose attributes have the names of those of Temporal's ApplicationError, and another meaning."""

    type = "server_error"
    non_retryable = True
    next_retry_delay = timedelta(hours=1)


REPORTED_FAILED, REPORTED_CANCELLED, NOT_REPORTED = ["failed"], ["cancelled"], list[str]()


class Activities:
    """Runs activities, each inside the span that Temporal's interceptors make."""

    def __init__(self, recorder: StepRecorder) -> None:
        self._provider = TracerProvider(shutdown_on_exit=False)
        self._provider.add_span_processor(recorder)
        self._recorder = recorder
        self.environment = ActivityEnvironment()
        # The environment's start times are in 1970, so that each timeout would have expired: remove the timeouts.
        self.environment.info = dataclasses.replace(
            self.environment.info, schedule_to_close_timeout=None, start_to_close_timeout=None
        )

    def run(self, error: BaseException | None, **info: object) -> list[str]:
        """Run an activity that raises *error*, if any, under an `activity.Info` with these fields changed.

        Returns the outcomes of all steps that have been reported so far.
        """

        def work() -> None:
            attributes = {"temporalActivityID": "1", "temporalRunID": "run"}
            tracer = self._provider.get_tracer("temporalio.contrib.opentelemetry._interceptor")
            with tracer.start_as_current_span("RunActivity:work", attributes=attributes):
                if error is not None:
                    raise error

        self.environment.info = dataclasses.replace(self.environment.info, **info)  # type: ignore[arg-type]  # -- its fields
        with suppress(BaseException):
            self.environment.run(work)
        return [str(event.outcome) for event in self._recorder.events]


@pytest.fixture
def activities() -> Activities:
    """Activities whose reported steps are recorded."""
    return Activities(StepRecorder())


def test_an_activity_that_succeeds_is_reported(activities: Activities) -> None:
    """A success is reported at any attempt."""
    assert activities.run(None, attempt=3, retry_policy=RetryPolicy()) == ["success"]


@pytest.mark.parametrize(
    ("error", "policy", "reported"),
    [
        (ValueError("no"), RetryPolicy(), NOT_REPORTED),
        (ValueError("no"), RetryPolicy(maximum_attempts=3), NOT_REPORTED),
        (ValueError("no"), RetryPolicy(maximum_attempts=2), REPORTED_FAILED),
        (ValueError("no"), RetryPolicy(maximum_attempts=1), REPORTED_FAILED),
        (ValueError("no"), RetryPolicy(non_retryable_error_types=["ValueError"]), REPORTED_FAILED),
        (LookupError("no"), RetryPolicy(non_retryable_error_types=["ValueError"]), NOT_REPORTED),
        (ApplicationError("no"), RetryPolicy(), NOT_REPORTED),
        (ApplicationError("no", non_retryable=True), RetryPolicy(), REPORTED_FAILED),
        (ApplicationError("no", type="Odd"), RetryPolicy(non_retryable_error_types=["Odd"]), REPORTED_FAILED),
        (ApplicationError("no"), RetryPolicy(non_retryable_error_types=["ApplicationError"]), NOT_REPORTED),
        (_Foreign("no"), RetryPolicy(), NOT_REPORTED),
        (_Foreign("no"), RetryPolicy(non_retryable_error_types=["_Foreign"]), REPORTED_FAILED),
        (_Foreign("no"), RetryPolicy(non_retryable_error_types=["server_error"]), NOT_REPORTED),
        (ValueError("no"), None, REPORTED_FAILED),
    ],
)
def test_a_failed_attempt_is_reported_if_no_other_follows(
    error: Exception, policy: RetryPolicy | None, reported: list[str], activities: Activities
) -> None:
    """Retry policy, attempt number and error decide; if the retry policy is unknown, each failure is reported."""
    assert activities.run(error, attempt=2, retry_policy=policy) == reported


@pytest.mark.parametrize(
    ("limit", "attempt", "error", "reported"),
    [
        (3600, 1, ValueError(), NOT_REPORTED),
        (0.5, 1, ValueError(), REPORTED_FAILED),  # the next attempt would start after one second
        (7, 3, ValueError(), NOT_REPORTED),  # after four seconds
        (7, 4, ValueError(), REPORTED_FAILED),  # after eight seconds
        (200, 4000, ValueError(), NOT_REPORTED),  # after a hundred seconds, the longest interval
        (7, 1, ApplicationError("no", next_retry_delay=timedelta(seconds=30)), REPORTED_FAILED),
        (60, 1, ApplicationError("no", next_retry_delay=timedelta(seconds=30)), NOT_REPORTED),
    ],
)
def test_a_failed_attempt_is_reported_if_the_next_would_exceed_the_timeout(
    limit: float, attempt: int, error: Exception, reported: list[str], activities: Activities
) -> None:
    """The interval before the next attempt counts, which the retry policy or the error gives."""
    scheduled, timeout = datetime.now(UTC), timedelta(seconds=limit)
    info = {"attempt": attempt, "scheduled_time": scheduled, "schedule_to_close_timeout": timeout}
    assert activities.run(error, retry_policy=RetryPolicy(), **info) == reported


_MANY, _LAST = RetryPolicy(), RetryPolicy(maximum_attempts=1)


@pytest.mark.parametrize("error", [asyncio.CancelledError(), CancelledError()])
@pytest.mark.parametrize(
    ("details", "policy", "reported"),
    [
        (None, _MANY, REPORTED_CANCELLED),
        ({}, _MANY, REPORTED_CANCELLED),
        ({"cancel_requested": True}, _MANY, REPORTED_CANCELLED),
        ({"not_found": True}, _MANY, REPORTED_CANCELLED),  # the workflow has ended
        ({"timed_out": True}, _MANY, NOT_REPORTED),
        ({"timed_out": True}, _LAST, REPORTED_FAILED),
        ({"worker_shutdown": True}, _MANY, NOT_REPORTED),
        ({"worker_shutdown": True}, _LAST, REPORTED_FAILED),
        ({"paused": True}, _MANY, NOT_REPORTED),
        ({"paused": True}, _LAST, REPORTED_FAILED),
        ({"reset": True}, _LAST, NOT_REPORTED),  # the activity starts again at attempt 1
    ],
)
def test_a_cancellation_is_reported_if_it_was_requested(
    error: BaseException,
    details: dict[str, bool] | None,
    policy: RetryPolicy,
    reported: list[str],
    activities: Activities,
) -> None:
    """A cancellation that only ends this attempt is not reported if another follows; else the activity has failed."""
    if details is not None:
        activities.environment.cancel(activity.ActivityCancellationDetails(**details))
    assert activities.run(error, attempt=1, retry_policy=policy) == reported


@pytest.mark.parametrize("limit", ["start_to_close_timeout", "schedule_to_close_timeout"])
@pytest.mark.parametrize(("policy", "reported"), [(_MANY, NOT_REPORTED), (_LAST, REPORTED_FAILED)])
def test_an_unknown_activity_whose_timeout_has_expired_has_timed_out(
    limit: str, policy: RetryPolicy, reported: list[str], activities: Activities
) -> None:
    """After a timeout the server only says `not_found`; if it was that of the whole activity, the step has failed."""
    activities.environment.cancel(activity.ActivityCancellationDetails(not_found=True))
    outcomes = activities.run(asyncio.CancelledError(), attempt=1, retry_policy=policy, **{limit: timedelta(seconds=1)})
    assert outcomes == (REPORTED_FAILED if limit == "schedule_to_close_timeout" else reported)


def test_an_error_after_a_cancellation_request_is_a_failure(activities: Activities) -> None:
    """The server makes no other attempt then, whatever the retry policy allows."""
    activities.environment.cancel()
    assert activities.run(ValueError("no"), attempt=1, retry_policy=_MANY) == REPORTED_FAILED


def test_partly_imported_modules_are_not_asked(activities: Activities, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another thread imports Temporal, its modules lack functions, and the general rules decide."""
    # Empty modules stand for an import that has not finished.
    for name in ("temporalio.workflow", "temporalio.activity"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert activities.run(ValueError("no"), attempt=1, retry_policy=_MANY) == REPORTED_FAILED


def _raise(*_: object) -> object:
    raise RuntimeError("no running event loop")


def test_an_old_release_leaves_the_decision_to_the_general_rules(
    activities: Activities, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that raises without an event loop, and has no cancellation details, reports every failed attempt."""
    # Stands for temporalio 1.11, which cannot be installed beside the current release.
    old = SimpleNamespace(in_activity=lambda: True, info=activity.info)
    monkeypatch.setitem(sys.modules, "temporalio.workflow", SimpleNamespace(in_workflow=_raise))
    monkeypatch.setitem(sys.modules, "temporalio.activity", old)
    assert activities.run(ValueError("no"), attempt=1, retry_policy=None) == REPORTED_FAILED
    old.info = _raise
    assert activities.run(ValueError("no"), attempt=1) == [*REPORTED_FAILED] * 2


def test_code_outside_of_a_workflow_is_no_replay() -> None:
    """Ordinary code has no workflow history to replay."""
    assert "temporalio.workflow" in sys.modules
    assert not is_replaying()


@pytest.mark.parametrize(("replaying", "events"), [(True, 0), (False, 1)])
def test_a_step_that_ends_during_a_replay_is_not_reported(
    *, replaying: bool, events: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was reported when the workflow code ran for the first time."""
    # Stands for a server and a workflow history, which the tests in tests/live use.
    unsafe = SimpleNamespace(is_replaying=lambda: replaying)
    monkeypatch.setitem(sys.modules, "temporalio.workflow", SimpleNamespace(in_workflow=lambda: True, unsafe=unsafe))
    recorder = StepRecorder()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(recorder)
    provider.get_tracer("tests").start_span("step", attributes={"step_id": "1"}).end()
    assert len(recorder.events) == events
