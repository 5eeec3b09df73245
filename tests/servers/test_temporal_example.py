"""The example of `notify_step_complete`: a webhook for each step, and a workflow that ends as it would without."""

import asyncio
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import temporal_workflow as example
from processes import Program
from servers.temporal_workers import Handle, Server, Workflows
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import CancelledError

from otel_step_hook import EndpointSettings
from otel_step_hook.temporal import StepHookPlugin
from otel_step_hook.temporal.arguments import ACTIVITY
from otel_step_hook.testing import Answer, ScriptedReceiver

pytest_plugins = ["servers.temporal_fixtures"]
pytestmark = [pytest.mark.servers, pytest.mark.anyio]

_GONE = 410


@pytest.fixture
def receiver() -> Iterator[ScriptedReceiver]:
    """The receiver of the webhooks that workflows ask for."""
    with ScriptedReceiver() as receiver:
        yield receiver


@pytest.fixture
async def workflows(temporal_server: Server) -> Workflows:
    """A client without tracing."""
    return Workflows(await Client.connect(temporal_server.address))


async def _run(workflows: Workflows, plugin: StepHookPlugin) -> str:
    """Run the example's workflow on a worker with *plugin*, and return the id of its step."""
    async with workflows.working(plugin):
        return str(await (await workflows.start()).result())


async def _activities(handle: Handle) -> list[str]:
    """What has happened to which activity, in this order."""
    happened, names = [], {}
    for event in (await handle.fetch_history()).events:
        if event.HasField("activity_task_scheduled_event_attributes"):
            names[event.event_id] = event.activity_task_scheduled_event_attributes.activity_type.name
            happened.append(f"{names[event.event_id]} scheduled")
        if event.HasField("activity_task_completed_event_attributes"):
            scheduled = event.activity_task_completed_event_attributes.scheduled_event_id
            happened.append(f"{names[scheduled]} completed")
    return happened


async def test_the_program_runs(temporal_server: Server, receiver: ScriptedReceiver) -> None:
    """It ends with the id of its step, of which the receiver has been notified."""
    variables = {"TEMPORAL_ADDRESS": temporal_server.address, "STEP_COMPLETE_WEBHOOK": receiver.url}
    ended = await asyncio.to_thread(Program(sys.executable, str(Path(example.__file__)), **variables).ended)
    (webhook,) = receiver.received
    assert (ended.code, ended.out, ended.noise) == (0, [f"{webhook.step_id} has ended"], [])


async def test_the_webhook_is_sent_after_the_step(workflows: Workflows, receiver: ScriptedReceiver) -> None:
    """Its activity is scheduled once the activity of the step has completed."""
    async with workflows.working(StepHookPlugin(webhook=receiver.url)):
        handle = await workflows.start()
        step_id = await handle.result()
    assert [webhook.step_id for webhook in receiver.received] == [step_id]
    assert await _activities(handle) == [
        "create_step scheduled",
        "create_step completed",
        f"{ACTIVITY} scheduled",
        f"{ACTIVITY} completed",
    ]


async def test_a_refusal_for_good_does_not_fail_the_workflow(
    workflows: Workflows, receiver: ScriptedReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """The workflow logs why the webhook was not delivered, and returns its result."""
    receiver.answers(_GONE)
    step_id = await _run(workflows, StepHookPlugin(webhook=receiver.url))
    (line,) = [one for one in caplog.records if one.name == "temporalio.workflow"]
    assert (line.levelno, len(receiver.received)) == (logging.WARNING, 1)
    assert line.getMessage().startswith(
        f"the webhook of step {step_id} was not delivered to endpoint default: "
        f"{_GONE}: the receiver of endpoint default answered 410"
    )


async def test_without_a_webhook_nothing_is_sent(workflows: Workflows, caplog: pytest.LogCaptureFixture) -> None:
    """A worker without STEP_COMPLETE_WEBHOOK runs the same workflow, and has nothing to warn of."""
    assert (await _run(workflows, StepHookPlugin())).startswith("step-")
    assert [line for line in caplog.records if line.levelno >= logging.WARNING] == []


async def test_an_unknown_endpoint_does_not_fail_the_workflow(
    workflows: Workflows, receiver: ScriptedReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker whose endpoints have other names sends nothing; the workflow logs their names."""
    other = EndpointSettings(name="billing", webhook=receiver.url)
    assert (await _run(workflows, StepHookPlugin(endpoints=[other]))).startswith("step-")
    (line,) = [one.getMessage() for one in caplog.records if one.name == "temporalio.workflow"]
    assert "this worker knows no endpoint 'default'; expected one of: billing" in line
    assert receiver.received == []


@pytest.mark.parametrize("moment", ["during an attempt", "between attempts"])
async def test_a_cancelled_workflow_still_sends_its_webhook(
    workflows: Workflows, receiver: ScriptedReceiver, moment: str
) -> None:
    """The workflow is cancelled once the webhook is delivered, with all the attempts that this takes."""
    refused = Answer(503, {"retry-after": "3"}, delay=2.0 if moment == "during an attempt" else 0.0)
    receiver.answers(refused)
    async with workflows.working(StepHookPlugin(webhook=receiver.url)):
        handle = await workflows.start()
        await asyncio.to_thread(receiver.wait_for, 1)
        if moment == "between attempts":
            await _wait_for_failure(handle)
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as raised:
            await handle.result()
    assert isinstance(raised.value.cause, CancelledError)
    first, second = receiver.received
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert (await _activities(handle))[-1] == f"{ACTIVITY} completed"


async def _wait_for_failure(handle: Handle) -> None:
    """Wait until the server knows that an attempt has failed."""
    pending = (await handle.describe()).raw_description.pending_activities
    while not any(one.HasField("last_failure") for one in pending):
        await asyncio.sleep(0.02)  # there is no event to wait for
        pending = (await handle.describe()).raw_description.pending_activities
