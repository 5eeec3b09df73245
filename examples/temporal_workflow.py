"""A Temporal workflow that sends a webhook when its step has ended.

In one terminal each:

    temporal server start-dev
    otel-step-hook listen
    STEP_COMPLETE_WEBHOOK=http://127.0.0.1:8787/hook python examples/temporal_workflow.py

The first terminal is a Temporal server, with its web page at http://localhost:8233. The second shows the webhook of the
step that the third has made. Needs: pip install 'otel-step-hook[cli,temporal]'
"""

import asyncio
import uuid
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.envconfig import ClientConfig
from temporalio.worker import Worker

from otel_step_hook.temporal import StepHookPlugin, notify_step_complete

TASK_QUEUE = "agents"


@activity.defn
async def create_step(task: str) -> str:
    """Do the work of one step, and return the id that it is known by elsewhere."""
    activity.logger.info("working on: %s", task)
    return f"step-{uuid.uuid4()}"


@workflow.defn
class Agent:
    """Does one step, and notifies the receiver of it."""

    @workflow.run
    async def run(self, task: str) -> str:
        """Return the id of the step. It is the same whether or not its webhook was delivered."""
        step_id = await workflow.execute_activity(create_step, task, start_to_close_timeout=timedelta(minutes=5))
        await notify_step_complete(step_id)
        return step_id


async def main() -> None:
    """Run a worker, and one workflow on it. Temporal's own variables, as TEMPORAL_ADDRESS, name another server."""
    config = ClientConfig.load_client_connect_config()
    config.setdefault("target_host", "localhost:7233")
    client = await Client.connect(**config)
    async with Worker(
        client, task_queue=TASK_QUEUE, workflows=[Agent], activities=[create_step], plugins=[StepHookPlugin()]
    ):
        step_id = await client.execute_workflow(
            Agent.run, "answer a question", id=f"agent-{uuid.uuid4()}", task_queue=TASK_QUEUE
        )
        print(f"{step_id} has ended")


if __name__ == "__main__":
    asyncio.run(main())
