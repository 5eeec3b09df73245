"""Records histories of workflows on both Temporal servers, which `tests/unit/temporal/test_replay.py` replays.

    PYTHONPATH=tests:examples python -m servers.recording

writes `tests/corpus/temporal-histories` anew. Run it when a workflow changes in a way that its histories do not allow,
and say in the changelog that workflows which run meanwhile must end before the upgrade.
"""

import asyncio
import json
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanContext
from servers.temporal import OlderTemporalServer, TemporalServer
from servers.temporal_workers import LIMIT, Handle, Server, Workflows
from servers.thinking import Impatient
from temporalio.client import Client, WorkflowFailureError

from otel_step_hook.delivery.model import Delivery, Pipeline
from otel_step_hook.steps.event import Outcome, StepEvent
from otel_step_hook.temporal import StepHookPlugin
from otel_step_hook.temporal.arguments import WORKFLOW, arguments_of
from otel_step_hook.testing import Answer, ScriptedReceiver

HISTORIES = Path(__file__).parents[1] / "corpus" / "temporal-histories"
_REFUSED = 410
_RETRIED = Answer(503, {"retry-after": "2"})  # seconds: the test cancels the workflow, or it times out, before that

Start = Callable[[Workflows], Awaitable[Handle]]


async def record(server: Server, folder: Path) -> None:
    """Run all scenarios on *server*, and write a file for each into *folder*."""
    version = {TemporalServer: "1.32", OlderTemporalServer: "1.29"}[type(server)]
    workflows = Workflows(await Client.connect(server.address, identity="recording"))  # the default is pid and host
    with ScriptedReceiver() as receiver:
        async with workflows.working(StepHookPlugin(webhook=receiver.url)):
            for name, start, answers in (
                ("webhook-delivered", _start_webhook, (503, 204)),
                ("webhook-refused", _start_webhook, (_REFUSED,)),
                ("agent-delivered", Workflows.start, (204,)),
                ("agent-refused", Workflows.start, (_REFUSED,)),
                ("agent-cancelled", _cancelled, (_RETRIED, 204)),
                ("impatient", lambda workflows: workflows.start(Impatient), (_RETRIED, 204)),
            ):
                receiver.answers(*answers)
                handle = await start(workflows)
                with suppress(WorkflowFailureError):
                    await handle.result()
                history = (await handle.fetch_history()).to_json_dict()
                text = json.dumps({"workflow": handle.id, **history}, separators=(",", ":"))
                (folder / f"{version}-{name}.json").write_text(f"{text}\n")


async def _start_webhook(workflows: Workflows) -> Handle:
    """Start the workflow that an older server gets for a webhook."""
    event = StepEvent("step-1", Outcome.SUCCESS, "step", SpanContext(1, 2, is_remote=True), 0, 1)
    delivery = Delivery(
        "msg_1", event, Pipeline(None, Resource({"service.name": "tests"})), 0.0, b'{"step_id":"step-1"}'
    )
    arguments = arguments_of(delivery, "default", start_to_close=15, schedule_to_close=30)
    return await workflows.client.start_workflow(
        WORKFLOW, arguments, id="default/msg_1", task_queue=workflows.queue, execution_timeout=LIMIT
    )


async def _cancelled(workflows: Workflows) -> Handle:
    """Start the example's workflow, and cancel it while its webhook waits for the second attempt."""
    handle = await workflows.start()
    pending = (await handle.describe()).raw_description.pending_activities
    while not any(one.HasField("last_failure") for one in pending):
        await asyncio.sleep(0.02)
        pending = (await handle.describe()).raw_description.pending_activities
    await handle.cancel()
    return handle


def main() -> None:
    """Write all histories anew."""
    HISTORIES.mkdir(exist_ok=True)
    for kind in (TemporalServer, OlderTemporalServer):
        with tempfile.TemporaryDirectory() as folder, kind(Path(folder)) as server:
            asyncio.run(record(server, HISTORIES))


if __name__ == "__main__":
    main()
