"""Temporal workflows and activities, in a module that Temporal's sandbox can import again."""

import asyncio
import contextlib
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

with workflow.unsafe.imports_passed_through():
    from opentelemetry import trace

_BEAT = 0.02  # seconds between two heartbeats: the answer to a heartbeat is what delivers a cancellation
THROTTLE = timedelta(seconds=_BEAT)  # by default the SDK sends heartbeats less often
attempts: list[int] = []  # the attempt number of each activity that has started
started = threading.Event()


class ActivityError(Exception):
    """The exception of an activity."""


@dataclass
class Plan:
    """The activity that a workflow runs, with its retry policy and its timeouts in seconds."""

    activity: str
    maximum_attempts: int = 0
    initial_interval: float = 0.01
    start_to_close: float = 30.0
    schedule_to_close: float = 3600.0
    non_retryable: list[str] = field(default_factory=list)
    is_local: bool = False


def _begin() -> int:
    attempts.append(activity.info().attempt)
    started.set()
    return activity.info().attempt


@activity.defn
async def succeeds() -> str:
    """Succeed."""
    return f"attempt {_begin()}"


@activity.defn
def succeeds_in_thread() -> str:
    """Succeed, in synchronous code."""
    return f"attempt {_begin()}"


@activity.defn
async def third_time_lucky() -> str:
    """Fail twice, and then succeed."""
    if _begin() < 3:
        raise ActivityError
    return "third"


@activity.defn
def third_time_lucky_in_thread() -> str:
    """Fail twice, and then succeed, in synchronous code."""
    if _begin() < 3:
        raise ActivityError
    return "third"


@activity.defn
async def broken() -> None:
    """Fail at each attempt."""
    _begin()
    raise ActivityError


@activity.defn
async def refuses() -> None:
    """Fail with an error that is not retried."""
    _begin()
    raise ApplicationError("no", non_retryable=True)


@activity.defn
async def refuses_benignly() -> None:
    """Fail with a benign error, which Temporal does not log as an error."""
    _begin()
    raise ApplicationError("not now", category=ApplicationErrorCategory.BENIGN)


@activity.defn
async def asks_for_time() -> None:
    """Fail with an error whose `next_retry_delay` exceeds the timeout."""
    _begin()
    raise ApplicationError("later", next_retry_delay=timedelta(hours=1))


@activity.defn
async def waits() -> None:
    """Wait until it is cancelled."""
    _begin()
    while True:
        activity.heartbeat()
        await asyncio.sleep(_BEAT)


@activity.defn
def waits_in_thread() -> None:
    """Wait until it is cancelled, in synchronous code."""
    _begin()
    while True:
        activity.heartbeat()
        time.sleep(_BEAT)  # the SDK raises the cancellation in this thread; there is no event to wait for


@activity.defn
async def waits_and_breaks() -> None:
    """Wait until it is cancelled, and then fail."""
    try:
        await waits()
    except asyncio.CancelledError:
        raise ActivityError from None


@activity.defn
async def waits_and_succeeds() -> str:
    """Wait until it is cancelled, and then succeed."""
    with contextlib.suppress(asyncio.CancelledError):
        await waits()
    return "saved"


@activity.defn
async def waits_once() -> str:
    """Wait until it is cancelled in the first attempt, and succeed in the next."""
    if _begin() == 1:
        while True:
            activity.heartbeat()
            await asyncio.sleep(_BEAT)
    return "second"


@activity.defn
async def completes_asynchronously() -> None:
    """Return without an end; the test completes the activity by its id."""
    _begin()
    activity.raise_complete_async()


ACTIVITIES = [
    succeeds,
    succeeds_in_thread,
    third_time_lucky,
    third_time_lucky_in_thread,
    broken,
    refuses,
    refuses_benignly,
    asks_for_time,
    waits,
    waits_in_thread,
    waits_and_breaks,
    waits_and_succeeds,
    waits_once,
    completes_asynchronously,
]


@workflow.defn
class OneActivity:
    """Runs one activity."""

    @workflow.run
    async def run(self, plan: Plan) -> str:
        """Run the activity of *plan*."""
        policy = RetryPolicy(
            initial_interval=timedelta(seconds=plan.initial_interval),
            backoff_coefficient=1.0,
            maximum_attempts=plan.maximum_attempts,
            non_retryable_error_types=plan.non_retryable,
        )
        limit = timedelta(seconds=plan.start_to_close)
        if plan.is_local:
            return str(
                await workflow.execute_local_activity(plan.activity, start_to_close_timeout=limit, retry_policy=policy)
            )
        result = await workflow.execute_activity(
            plan.activity,
            start_to_close_timeout=limit,
            schedule_to_close_timeout=timedelta(seconds=plan.schedule_to_close),
            heartbeat_timeout=timedelta(seconds=20),
            retry_policy=policy,
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )
        return str(result)


def _refuse() -> None:
    # Another exception would fail only the workflow task, and the plugin ends no span then.
    raise ApplicationError("no")


async def _short_activity() -> None:
    await workflow.execute_activity("succeeds", start_to_close_timeout=timedelta(seconds=10))


@workflow.defn
class OwnSteps:
    """Has steps in its own code, with activities between them."""

    @workflow.run
    async def run(self) -> str:
        """Run two steps that start and end in one workflow task, which is replayed after each activity."""
        tracer = trace.get_tracer("application")
        with tracer.start_as_current_span("think", attributes={"step_id": "think-1"}):
            pass
        await _short_activity()
        with tracer.start_as_current_span("think", attributes={"step_id": "think-2"}):
            pass
        await _short_activity()
        return "done"


@workflow.defn
class LongStep:
    """Has a step around an activity that succeeds."""

    @workflow.run
    async def run(self) -> str:
        """Run a step that starts in one workflow task and ends in another."""
        tracer = trace.get_tracer("application")
        with tracer.start_as_current_span("think", attributes={"step_id": "think-1"}):
            await _short_activity()
        await _short_activity()
        return "done"


@workflow.defn
class OpenStep:
    """Has a step around an activity that takes two attempts."""

    @workflow.run
    async def run(self) -> str:
        """Run a step that is open while the activity waits."""
        tracer = trace.get_tracer("application")
        with tracer.start_as_current_span("think", attributes={"step_id": "think-1"}):
            await workflow.execute_activity(
                "waits_once",
                start_to_close_timeout=timedelta(seconds=30),
                heartbeat_timeout=timedelta(seconds=20),
                retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=10)),
            )
        return "done"


@workflow.defn
class FailingStep:
    """Has a step that fails."""

    @workflow.run
    async def run(self) -> str:
        """Handle the exception of the failed step."""
        tracer = trace.get_tracer("application")
        try:
            with tracer.start_as_current_span("think", attributes={"step_id": "think-1"}):
                _refuse()
        except ApplicationError:
            await _short_activity()
        return "done"


WORKFLOWS = [OneActivity, OwnSteps, LongStep, OpenStep, FailingStep]
