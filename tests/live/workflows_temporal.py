"""Temporal workflows and activities, in a module that the sandbox can import again."""

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

_BEAT = 0.02  # seconds between two heartbeats: only in the answer to one Temporal tells of a cancellation
THROTTLE = timedelta(seconds=_BEAT)  # the SDK keeps heartbeats back for longer, if it may
attempts: list[int] = []  # of the activities that have begun
begun = threading.Event()


class ActivityError(Exception):
    """What an activity raises here."""


@dataclass
class Plan:
    """Which activity a workflow runs, and how often and how long it may try."""

    activity: str
    maximum_attempts: int = 0
    initial_interval: float = 0.01
    start_to_close: float = 30.0
    schedule_to_close: float = 3600.0
    non_retryable: list[str] = field(default_factory=list)
    is_local: bool = False


def _begin() -> int:
    attempts.append(activity.info().attempt)
    begun.set()
    return activity.info().attempt


@activity.defn
async def succeeds() -> str:
    """Succeed at once."""
    return f"attempt {_begin()}"


@activity.defn
def succeeds_in_thread() -> str:
    """Succeed at once, as synchronous code."""
    return f"attempt {_begin()}"


@activity.defn
async def third_time_lucky() -> str:
    """Fail twice."""
    if _begin() < 3:
        raise ActivityError
    return "third"


@activity.defn
def third_time_lucky_in_thread() -> str:
    """Fail twice, as synchronous code."""
    if _begin() < 3:
        raise ActivityError
    return "third"


@activity.defn
async def broken() -> None:
    """Fail always."""
    _begin()
    raise ActivityError


@activity.defn
async def refuses() -> None:
    """Fail for good."""
    _begin()
    raise ApplicationError("no", non_retryable=True)


@activity.defn
async def refuses_benignly() -> None:
    """Fail in a way that is no error to those who watch."""
    _begin()
    raise ApplicationError("not now", category=ApplicationErrorCategory.BENIGN)


@activity.defn
async def asks_for_time() -> None:
    """Fail, and ask for more time than there is."""
    _begin()
    raise ApplicationError("later", next_retry_delay=timedelta(hours=1))


@activity.defn
async def waits() -> None:
    """Wait to be cancelled."""
    _begin()
    while True:
        activity.heartbeat()
        await asyncio.sleep(_BEAT)


@activity.defn
def waits_in_thread() -> None:
    """Wait to be cancelled, as synchronous code."""
    _begin()
    while True:
        activity.heartbeat()
        time.sleep(_BEAT)  # synchronous code hears of a cancellation between two heartbeats, and has nothing to wait on


@activity.defn
async def waits_and_breaks() -> None:
    """Wait to be cancelled, and fail then."""
    try:
        await waits()
    except asyncio.CancelledError:
        raise ActivityError from None


@activity.defn
async def waits_and_succeeds() -> str:
    """Wait to be cancelled, and succeed all the same."""
    with contextlib.suppress(asyncio.CancelledError):
        await waits()
    return "saved"


@activity.defn
async def waits_once() -> str:
    """Wait to be cancelled in the first attempt, succeed in the next."""
    if _begin() == 1:
        while True:
            activity.heartbeat()
            await asyncio.sleep(_BEAT)
    return "second"


@activity.defn
async def hands_over() -> None:
    """Leave the end to somebody else."""
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
    hands_over,
]


@workflow.defn
class OneActivity:
    """Runs one activity."""

    @workflow.run
    async def run(self, plan: Plan) -> str:
        """Run it as *plan* says."""
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
    # Of another type it would be a mistake in the workflow's code, with which the plugin ends no span.
    raise ApplicationError("no")


async def _short_activity() -> None:
    await workflow.execute_activity("succeeds", start_to_close_timeout=timedelta(seconds=10))


@workflow.defn
class OwnSteps:
    """Has steps in its own code, with activities between them."""

    @workflow.run
    async def run(self) -> str:
        """Two steps that begin and end in one workflow task, which is replayed after each activity."""
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
    """Has a step around an activity."""

    @workflow.run
    async def run(self) -> str:
        """One step that begins in one workflow task and ends in another."""
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
        """One step that is open while the activity waits."""
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
        """Go on after it."""
        tracer = trace.get_tracer("application")
        try:
            with tracer.start_as_current_span("think", attributes={"step_id": "think-1"}):
                _refuse()
        except ApplicationError:
            await _short_activity()
        return "done"


WORKFLOWS = [OneActivity, OwnSteps, LongStep, OpenStep, FailingStep]
