"""Workflows with steps in their own code, in a module that Temporal's sandbox can import again."""

import asyncio
from datetime import timedelta

from temporalio import workflow

from otel_step_hook.temporal import notify_step_complete

with workflow.unsafe.imports_passed_through():
    from opentelemetry import trace
    from temporal_workflow import create_step

ACTIVITIES = 3  # each is followed by a workflow task, in which a worker without a cache replays all before it


@workflow.defn
class Thinking:
    """Has a step around each activity, and notifies of the last one."""

    @workflow.run
    async def run(self, task: str) -> str:
        """Return the id of the last activity's step."""
        step_id = ""
        for number in range(ACTIVITIES):
            tracer = trace.get_tracer("application")
            with tracer.start_as_current_span("think", attributes={"step_id": f"think-{number}"}):
                step_id = await workflow.execute_activity(
                    create_step, task, start_to_close_timeout=timedelta(seconds=30)
                )
        await notify_step_complete(step_id)
        return step_id


@workflow.defn
class Impatient:
    """Waits for its webhook for a second."""

    @workflow.run
    async def run(self, task: str) -> str:
        """Return whether the webhook was delivered, or that this took too long."""
        try:
            return str(await asyncio.wait_for(notify_step_complete(task), 1))
        except TimeoutError:
            return "too late"
