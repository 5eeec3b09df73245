"""What Temporal says of the activity that is running, by its own test environment. A real server: tests/live."""

import asyncio
import dataclasses
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import ModuleType, SimpleNamespace

import pytest
from emitting import StepRecorder
from opentelemetry.sdk.trace import TracerProvider
from temporalio import activity, workflow  # noqa: F401 -- workflows: imported, so that they are asked
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.testing import ActivityEnvironment

from otel_step_hook.steps.runtime import is_replaying


class _Foreign(Exception):  # noqa: N818 -- whatever a client library raises
    """Has attributes that Temporal's own error has, too, and that mean something else here."""

    type = "server_error"
    non_retryable = True
    next_retry_delay = timedelta(hours=1)


TOLD_FAILED, TOLD_CANCELLED, NOT_TOLD = ["failed"], ["cancelled"], list[str]()


class Activities:
    """Runs activities, each with the span that Temporal's interceptors make of it."""

    def __init__(self, recorder: StepRecorder) -> None:
        self._provider = TracerProvider(shutdown_on_exit=False)
        self._provider.add_span_processor(recorder)
        self._recorder = recorder
        self.environment = ActivityEnvironment()
        # Its times are those of 1970: without limits they do not matter.
        self.environment.info = dataclasses.replace(
            self.environment.info, schedule_to_close_timeout=None, start_to_close_timeout=None
        )

    def run(self, error: BaseException | None, **info: object) -> list[str]:
        """Run one that raises *error*, or nothing, with so much changed in its `activity.Info`; how it is told."""

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
    """Activities whose steps are written down."""
    return Activities(StepRecorder())


def test_an_activity_that_succeeds_is_told(activities: Activities) -> None:
    """At any attempt."""
    assert activities.run(None, attempt=3, retry_policy=RetryPolicy()) == ["success"]


@pytest.mark.parametrize(
    ("error", "policy", "told"),
    [
        (ValueError("no"), RetryPolicy(), NOT_TOLD),
        (ValueError("no"), RetryPolicy(maximum_attempts=3), NOT_TOLD),
        (ValueError("no"), RetryPolicy(maximum_attempts=2), TOLD_FAILED),
        (ValueError("no"), RetryPolicy(maximum_attempts=1), TOLD_FAILED),
        (ValueError("no"), RetryPolicy(non_retryable_error_types=["ValueError"]), TOLD_FAILED),
        (LookupError("no"), RetryPolicy(non_retryable_error_types=["ValueError"]), NOT_TOLD),
        (ApplicationError("no"), RetryPolicy(), NOT_TOLD),
        (ApplicationError("no", non_retryable=True), RetryPolicy(), TOLD_FAILED),
        (ApplicationError("no", type="Odd"), RetryPolicy(non_retryable_error_types=["Odd"]), TOLD_FAILED),
        (ApplicationError("no"), RetryPolicy(non_retryable_error_types=["ApplicationError"]), NOT_TOLD),
        (_Foreign("no"), RetryPolicy(), NOT_TOLD),
        (_Foreign("no"), RetryPolicy(non_retryable_error_types=["_Foreign"]), TOLD_FAILED),
        (_Foreign("no"), RetryPolicy(non_retryable_error_types=["server_error"]), NOT_TOLD),
        (ValueError("no"), None, TOLD_FAILED),
    ],
)
def test_an_attempt_is_told_if_there_will_be_no_other(
    error: Exception, policy: RetryPolicy | None, told: list[str], activities: Activities
) -> None:
    """By the policy, the number of the attempt and the error; where Temporal tells no policy, each failure is told."""
    assert activities.run(error, attempt=2, retry_policy=policy) == told


@pytest.mark.parametrize(
    ("limit", "attempt", "error", "told"),
    [
        (3600, 1, ValueError(), NOT_TOLD),
        (0.5, 1, ValueError(), TOLD_FAILED),  # the next attempt would be in a second
        (7, 3, ValueError(), NOT_TOLD),  # in four
        (7, 4, ValueError(), TOLD_FAILED),  # in eight
        (200, 4000, ValueError(), NOT_TOLD),  # in a hundred, which no wait exceeds
        (7, 1, ApplicationError("no", next_retry_delay=timedelta(seconds=30)), TOLD_FAILED),
        (60, 1, ApplicationError("no", next_retry_delay=timedelta(seconds=30)), NOT_TOLD),
    ],
)
def test_an_attempt_is_the_last_if_no_other_fits_into_the_time(
    limit: float, attempt: int, error: Exception, told: list[str], activities: Activities
) -> None:
    """The wait before the next one counts, as the policy or the error says."""
    scheduled, timeout = datetime.now(UTC), timedelta(seconds=limit)
    info = {"attempt": attempt, "scheduled_time": scheduled, "schedule_to_close_timeout": timeout}
    assert activities.run(error, retry_policy=RetryPolicy(), **info) == told


_MANY, _LAST = RetryPolicy(), RetryPolicy(maximum_attempts=1)


@pytest.mark.parametrize("error", [asyncio.CancelledError(), CancelledError()])
@pytest.mark.parametrize(
    ("details", "policy", "told"),
    [
        (None, _MANY, TOLD_CANCELLED),
        ({}, _MANY, TOLD_CANCELLED),
        ({"cancel_requested": True}, _MANY, TOLD_CANCELLED),
        ({"not_found": True}, _MANY, TOLD_CANCELLED),  # the workflow is over
        ({"timed_out": True}, _MANY, NOT_TOLD),
        ({"timed_out": True}, _LAST, TOLD_FAILED),
        ({"worker_shutdown": True}, _MANY, NOT_TOLD),
        ({"worker_shutdown": True}, _LAST, TOLD_FAILED),
        ({"paused": True}, _MANY, NOT_TOLD),
        ({"paused": True}, _LAST, TOLD_FAILED),
        ({"reset": True}, _LAST, NOT_TOLD),  # it begins anew
    ],
)
def test_a_cancellation_is_told_if_somebody_has_asked_for_it(
    error: BaseException,
    details: dict[str, bool] | None,
    policy: RetryPolicy,
    told: list[str],
    activities: Activities,
) -> None:
    """Not one by which Temporal only takes this attempt away: there will be another, or the activity has failed."""
    if details is not None:
        activities.environment.cancel(activity.ActivityCancellationDetails(**details))
    assert activities.run(error, attempt=1, retry_policy=policy) == told


@pytest.mark.parametrize("limit", ["start_to_close_timeout", "schedule_to_close_timeout"])
@pytest.mark.parametrize(("policy", "told"), [(_MANY, NOT_TOLD), (_LAST, TOLD_FAILED)])
def test_an_attempt_that_the_server_has_given_up_has_run_out_of_time(
    limit: str, policy: RetryPolicy, told: list[str], activities: Activities
) -> None:
    """Of a server that no longer knows it nothing else is heard; a whole activity that is out of time has failed."""
    activities.environment.cancel(activity.ActivityCancellationDetails(not_found=True))
    outcomes = activities.run(asyncio.CancelledError(), attempt=1, retry_policy=policy, **{limit: timedelta(seconds=1)})
    assert outcomes == (TOLD_FAILED if limit == "schedule_to_close_timeout" else told)


def test_an_error_after_a_request_to_cancel_is_not_tried_again(activities: Activities) -> None:
    """Whatever the policy says."""
    activities.environment.cancel()
    assert activities.run(ValueError("no"), attempt=1, retry_policy=_MANY) == TOLD_FAILED


def test_modules_that_are_being_imported_say_nothing(activities: Activities, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may be in the middle of it: nothing is asked of what is not there yet."""
    # In the place of an import that hangs in the middle.
    for name in ("temporalio.workflow", "temporalio.activity"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert activities.run(ValueError("no"), attempt=1, retry_policy=_MANY) == TOLD_FAILED


def _raise(*_: object) -> object:
    raise RuntimeError("no running event loop")


def test_what_an_old_release_cannot_answer_is_not_known(
    activities: Activities, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It raises where no event loop runs, and tells nothing of cancellations: every failed attempt is told."""
    # In the place of temporalio 1.11, which does not go together with the release that is installed here.
    old = SimpleNamespace(in_activity=lambda: True, info=activity.info)
    monkeypatch.setitem(sys.modules, "temporalio.workflow", SimpleNamespace(in_workflow=_raise))
    monkeypatch.setitem(sys.modules, "temporalio.activity", old)
    assert activities.run(ValueError("no"), attempt=1, retry_policy=None) == TOLD_FAILED
    old.info = _raise
    assert activities.run(ValueError("no"), attempt=1) == [*TOLD_FAILED] * 2


def test_outside_of_a_workflow_nothing_is_replayed() -> None:
    """Ordinary code has no history."""
    assert "temporalio.workflow" in sys.modules
    assert not is_replaying()


@pytest.mark.parametrize(("replaying", "events"), [(True, 0), (False, 1)])
def test_a_step_that_ends_while_a_workflow_is_replayed_is_not_told(
    *, replaying: bool, events: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended when the workflow ran first."""
    # In the place of a server and a history, which tests/live has.
    unsafe = SimpleNamespace(is_replaying=lambda: replaying)
    monkeypatch.setitem(sys.modules, "temporalio.workflow", SimpleNamespace(in_workflow=lambda: True, unsafe=unsafe))
    recorder = StepRecorder()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(recorder)
    provider.get_tracer("tests").start_span("step", attributes={"step_id": "1"}).end()
    assert len(recorder.events) == events
