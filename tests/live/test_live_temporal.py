"""Temporal, against a real server: each activity is a step, which is reported after its last attempt."""

import asyncio
import gc
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
import workflows_temporal as workflows
from observing import LIMIT, Observed, Reported
from opentelemetry import trace
from servers.build import binary
from temporalio.api.workflowservice.v1 import PauseActivityRequest, UnpauseActivityRequest
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.contrib.opentelemetry import (
    OpenTelemetryPlugin,
    ReplaySafeTracerProvider,
    TracingInterceptor,
    create_tracer_provider,
)
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Replayer, Worker
from workflows_temporal import Plan

pytestmark = pytest.mark.anyio

_SHIFT = '"10ms"'  # the most that the server's timers may be late; its default is a second
_STICKY = timedelta(milliseconds=200)  # how long the server waits for a worker that has stopped
Handle = WorkflowHandle[Any, Any]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of the server that all these tests share."""
    with asyncio.Runner() as runner:
        environment = runner.run(
            WorkflowEnvironment.start_local(
                dev_server_existing_path=str(binary("temporal-cli")),
                ip="127.0.0.1",
                dev_server_log_level="error",
                dev_server_extra_args=["--dynamic-config-value", f"history.timerProcessorMaxTimeShift={_SHIFT}"],
            )
        )
        yield environment.client.service_client.config.target_host
        runner.run(environment.shutdown())


@dataclass
class Engine:
    """A client with tracing, and a task queue that no other test uses."""

    client: Client
    observed: Observed
    interceptors: list[TracingInterceptor]
    plugins: list[OpenTelemetryPlugin]
    queue: str = field(default_factory=lambda: f"queue-{uuid.uuid4()}")

    @asynccontextmanager
    async def working(self, **options: Any) -> AsyncIterator[Worker]:
        """Run a worker until the block ends."""
        with ThreadPoolExecutor(2) as threads:
            worker = Worker(
                self.client,
                task_queue=self.queue,
                build_id="tests",  # without one the SDK hashes all imported modules, which takes seconds
                workflows=workflows.WORKFLOWS,
                activities=workflows.ACTIVITIES,
                activity_executor=threads,
                max_heartbeat_throttle_interval=workflows.THROTTLE,
                default_heartbeat_throttle_interval=workflows.THROTTLE,
                sticky_queue_schedule_to_start_timeout=_STICKY,
                **options,
            )
            async with worker:
                yield worker

    async def start(self, workflow: Any, *plan: Plan, **options: Any) -> Handle:
        return await self.client.start_workflow(
            workflow, args=list(plan), id=f"flow-{uuid.uuid4()}", task_queue=self.queue, **options
        )

    async def outcomes(self, plan: Plan) -> list[str]:
        """Run one activity in a workflow, and return the outcomes of its webhooks."""
        async with self.working():
            handle = await self.start(workflows.OneActivity.run, plan)
            with suppress(WorkflowFailureError):
                await asyncio.wait_for(handle.result(), LIMIT)
        return self.outcomes_of(plan, handle)

    def outcomes_of(self, plan: Plan, handle: Handle) -> list[str]:
        """Return the outcomes of all webhooks, after a check that each has the id of the only activity of *handle*."""
        reported = self.observed.reported()
        known = {(f"RunActivity:{plan.activity}", f"{handle.first_execution_run_id}/1")}
        assert {(each.name, each.step_id) for each in reported} <= known
        return [each.outcome for each in reported]


@pytest.fixture(params=["interceptor", "plugin"])
async def engine(
    request: pytest.FixtureRequest, observed: Observed, address: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Engine]:
    """Temporal with each of the two instrumentations of its SDK; both use the global provider."""
    workflows.attempts.clear()
    workflows.started.clear()
    provider: trace.TracerProvider = observed.provider
    if request.param == "plugin":
        ids = create_tracer_provider(shutdown_on_exit=False).id_generator()
        observed.provider.id_generator = ids  # type: ignore[assignment]  # -- the constructor takes any
        provider = ReplaySafeTracerProvider(observed.provider, ids)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)  # trace.set_tracer_provider() works once in a process
    interceptors = [TracingInterceptor()] if request.param == "interceptor" else []
    plugins = [OpenTelemetryPlugin(add_temporal_spans=True)] if request.param == "plugin" else []
    client = await Client.connect(address, interceptors=interceptors, plugins=plugins)
    yield Engine(client, observed, interceptors, plugins)
    gc.collect()  # collect workflows that a worker has left in memory now, and not during the next test


@pytest.mark.parametrize("activity", ["succeeds", "succeeds_in_thread"])
@pytest.mark.parametrize("is_local", [False, True])
async def test_an_activity_that_returns_is_a_success(engine: Engine, activity: str, *, is_local: bool) -> None:
    """Only the activity's span is a step, for local activities and for activities in threads, too."""
    assert await engine.outcomes(Plan(activity, is_local=is_local)) == ["success"]
    assert any(span.name.startswith("StartWorkflow:") for span in engine.observed.hooked.spans)


@pytest.mark.parametrize("activity", ["third_time_lucky", "third_time_lucky_in_thread"])
@pytest.mark.parametrize("is_local", [False, True])
async def test_an_activity_that_succeeds_after_failures_is_one_success(
    engine: Engine, activity: str, *, is_local: bool
) -> None:
    """Failed attempts that are followed by another are not reported, whether the server or the worker retries."""
    assert await engine.outcomes(Plan(activity, is_local=is_local)) == ["success"]
    assert workflows.attempts == [1, 2, 3]


@pytest.mark.parametrize("is_local", [False, True])
async def test_an_activity_that_fails_too_often_is_one_failure(engine: Engine, *, is_local: bool) -> None:
    """The failure of the last attempt that the retry policy allows is reported."""
    assert await engine.outcomes(Plan("broken", maximum_attempts=2, is_local=is_local)) == ["failed"]
    assert workflows.attempts == [1, 2]


async def test_a_non_retryable_error_is_one_failure(engine: Engine) -> None:
    """An error with `non_retryable=True` is reported at the first attempt."""
    assert await engine.outcomes(Plan("refuses")) == ["failed"]
    assert workflows.attempts == [1]


async def test_an_error_that_the_policy_does_not_retry_is_one_failure(engine: Engine) -> None:
    """An error whose type is in `non_retryable_error_types` is reported at the first attempt."""
    assert await engine.outcomes(Plan("broken", non_retryable=["ActivityError"])) == ["failed"]
    assert workflows.attempts == [1]


async def test_a_benign_error_is_a_failure(engine: Engine) -> None:
    """The status of the span is not ERROR after a benign error, but the activity has failed for the workflow."""
    assert await engine.outcomes(Plan("refuses_benignly", maximum_attempts=2)) == ["failed"]
    assert workflows.attempts == [1, 2]


async def test_a_failure_is_reported_if_the_next_attempt_would_exceed_the_timeout(engine: Engine) -> None:
    """The server makes no attempt that would start after `schedule_to_close_timeout`."""
    plan = Plan("broken", initial_interval=60.0, schedule_to_close=30.0)
    assert await engine.outcomes(plan) == ["failed"]
    assert workflows.attempts == [1]


async def test_a_failure_is_reported_if_its_own_delay_would_exceed_the_timeout(engine: Engine) -> None:
    """The `next_retry_delay` of an error counts instead of the interval of the retry policy."""
    assert await engine.outcomes(Plan("asks_for_time", schedule_to_close=30.0)) == ["failed"]
    assert workflows.attempts == [1]


async def test_a_failure_is_reported_if_the_next_attempt_would_exceed_the_workflows_timeout(engine: Engine) -> None:
    """The timeout of the workflow limits its activities like their own."""
    plan = Plan("broken", initial_interval=60.0)
    async with engine.working():
        handle = await engine.start(workflows.OneActivity.run, plan, run_timeout=timedelta(seconds=30))
        assert await asyncio.to_thread(workflows.started.wait, LIMIT)
        with pytest.raises(WorkflowFailureError):
            await asyncio.wait_for(handle.result(), LIMIT)
    assert engine.outcomes_of(plan, handle) == ["failed"]


@pytest.mark.parametrize(
    ("activity", "outcome"),
    [
        ("waits", "cancelled"),
        ("waits_in_thread", "cancelled"),
        ("waits_and_breaks", "failed"),
        ("waits_and_succeeds", "success"),
    ],
)
async def test_a_cancelled_activity_is_reported_once(engine: Engine, activity: str, outcome: str) -> None:
    """An activity may end in any way after its cancellation: the server makes no other attempt."""
    plan = Plan(activity)
    async with engine.working():
        handle = await engine.start(workflows.OneActivity.run, plan)
        assert await asyncio.to_thread(workflows.started.wait, LIMIT)
        await handle.cancel()
        with suppress(WorkflowFailureError):
            await asyncio.wait_for(handle.result(), LIMIT)
    assert workflows.attempts == [1]
    assert engine.outcomes_of(plan, handle) == [outcome]


async def test_an_activity_of_a_terminated_workflow_is_reported_as_cancelled(engine: Engine) -> None:
    """The answer to its next heartbeat cancels the activity."""
    plan = Plan("waits")
    async with engine.working():
        handle = await engine.start(workflows.OneActivity.run, plan)
        assert await asyncio.to_thread(workflows.started.wait, LIMIT)
        await handle.terminate()
        received = await asyncio.to_thread(engine.observed.receiver.wait_for, 1, LIMIT)
    assert len(received) == 1
    assert engine.outcomes_of(plan, handle) == ["cancelled"]


async def test_an_attempt_that_takes_too_long_is_not_reported_if_another_follows(engine: Engine) -> None:
    """The server ends an attempt after `start_to_close_timeout`; the step ends with the next attempt."""
    assert await engine.outcomes(Plan("waits_once", start_to_close=0.5)) == ["success"]
    assert workflows.attempts == [1, 2]


async def test_an_activity_whose_last_attempt_takes_too_long_has_failed(engine: Engine) -> None:
    """The workflow gets a TimeoutError, and not a cancellation."""
    assert await engine.outcomes(Plan("waits", start_to_close=0.5, maximum_attempts=1)) == ["failed"]


async def test_an_attempt_that_ends_with_its_worker_is_not_reported_if_another_follows(engine: Engine) -> None:
    """When a worker stops, the server makes the next attempt on another worker."""
    plan = Plan("waits_once")
    async with engine.working():
        handle = await engine.start(workflows.OneActivity.run, plan)
        assert await asyncio.to_thread(workflows.started.wait, LIMIT)
    assert engine.outcomes_of(plan, handle) == []
    async with engine.working():
        assert await asyncio.wait_for(handle.result(), LIMIT) == "second"
    assert engine.outcomes_of(plan, handle) == ["success"]


async def test_a_last_attempt_that_ends_with_its_worker_has_failed(engine: Engine) -> None:
    """If the retry policy allows no other attempt, the activity fails when its worker stops."""
    plan = Plan("waits", maximum_attempts=1)
    async with engine.working():
        handle = await engine.start(workflows.OneActivity.run, plan)
        assert await asyncio.to_thread(workflows.started.wait, LIMIT)
    async with engine.working():
        with pytest.raises(WorkflowFailureError):
            await asyncio.wait_for(handle.result(), LIMIT)
    assert engine.outcomes_of(plan, handle) == ["failed"]


async def test_a_paused_activity_is_reported_when_it_has_ended(engine: Engine) -> None:
    """Pausing an activity ends its attempt, which is not reported; the next attempt decides the outcome."""
    plan = Plan("waits_once")
    async with engine.working():
        handle = await engine.start(workflows.OneActivity.run, plan)
        assert await asyncio.to_thread(workflows.started.wait, LIMIT)
        ids: dict[str, Any] = {
            "namespace": "default",
            "execution": {"workflow_id": handle.id, "run_id": handle.first_execution_run_id},
            "id": "1",
        }
        await engine.client.workflow_service.pause_activity(PauseActivityRequest(**ids))
        async with asyncio.timeout(LIMIT):
            while not engine.observed.hooked.named("RunActivity:waits_once"):  # noqa: ASYNC110 -- no event to wait for
                await asyncio.sleep(0.02)
        assert engine.outcomes_of(plan, handle) == []
        await engine.client.workflow_service.unpause_activity(UnpauseActivityRequest(**ids))
        assert await asyncio.wait_for(handle.result(), LIMIT) == "second"
    assert engine.outcomes_of(plan, handle) == ["success"]


async def test_an_activity_that_is_completed_asynchronously_is_not_reported(engine: Engine) -> None:
    """No span ends when an activity is completed from outside of its function."""
    plan = Plan("completes_asynchronously")
    async with engine.working():
        handle = await engine.start(workflows.OneActivity.run, plan)
        assert await asyncio.to_thread(workflows.started.wait, LIMIT)
        elsewhere = engine.client.get_async_activity_handle(
            workflow_id=handle.id, run_id=handle.first_execution_run_id, activity_id="1"
        )
        await elsewhere.complete("done elsewhere")
        assert await asyncio.wait_for(handle.result(), LIMIT) == "done elsewhere"
    assert engine.outcomes_of(plan, handle) == []


def _own_steps(engine: Engine) -> list[Reported]:
    return [each for each in engine.observed.reported() if not each.name.startswith("RunActivity:")]


@pytest.mark.parametrize(
    ("workflow", "expected"),
    [
        (workflows.OwnSteps, [Reported("think", "think-1", "success"), Reported("think", "think-2", "success")]),
        (workflows.LongStep, [Reported("think", "think-1", "success")]),
        (workflows.FailingStep, [Reported("think", "think-1", "failed")]),
    ],
)
@pytest.mark.parametrize("cached", [0, 100])
async def test_steps_of_workflow_code_are_reported_once(
    engine: Engine, workflow: Any, expected: list[Reported], cached: int
) -> None:
    """Steps are not reported again when a worker without a cache, or a `Replayer`, replays the workflow."""
    async with engine.working(max_cached_workflows=cached):
        handle = await engine.start(workflow.run)
        assert await asyncio.wait_for(handle.result(), LIMIT) == "done"
    assert _own_steps(engine) == expected
    replayer = Replayer(
        build_id="tests", workflows=workflows.WORKFLOWS, interceptors=engine.interceptors, plugins=engine.plugins
    )
    await replayer.replay_workflow(await handle.fetch_history())
    assert _own_steps(engine) == expected


@pytest.mark.parametrize("cached", [0, 100])
async def test_a_step_of_workflow_code_does_not_end_with_its_worker(engine: Engine, cached: int) -> None:
    """When a worker evicts a workflow inside a step, the step has not ended; it ends on the next worker."""
    async with engine.working(max_cached_workflows=cached):
        handle = await engine.start(workflows.OpenStep.run)
        assert await asyncio.to_thread(workflows.started.wait, LIMIT)
    gc.collect()
    assert _own_steps(engine) == []
    async with engine.working(max_cached_workflows=cached):
        assert await asyncio.wait_for(handle.result(), LIMIT) == "done"
    gc.collect()
    assert _own_steps(engine) == [Reported("think", "think-1", "success")]
