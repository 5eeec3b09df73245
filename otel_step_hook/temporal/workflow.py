"""The workflow of one webhook, for servers without standalone activities, and the line for a user's own workflows.

A workflow's sandbox imports this module again.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from otel_step_hook.temporal.arguments import (
        ACTIVITY,
        WORKFLOW,
        WebhookArguments,
        WebhookResult,
        event_of_workflow,
        summary,
    )
    from otel_step_hook.temporal.options import retry_policy

_SHORTEST = timedelta(seconds=1)  # what is left for the activity when the workflow's first task came late


@workflow.defn(name=WORKFLOW)
class SendStepCompleteWebhook:
    """Delivers one webhook by one activity: what a standalone activity does on a newer server."""

    @workflow.run
    async def run(self, arguments: WebhookArguments) -> WebhookResult:
        """Run the activity within what is left of its schedule-to-close timeout since the workflow began."""
        waited = workflow.now() - workflow.info().start_time
        left = max(_SHORTEST, timedelta(seconds=arguments.schedule_to_close) - waited)
        return await _execute(arguments, left)


async def notify_step_complete(
    step_id: str,
    outcome: str = "success",
    *,
    endpoints: Sequence[str] = ("default",),
    task_queue: str | None = None,
    timeout: float = 15,
    schedule_to_close: float = 30,
) -> bool:
    """Send the webhook of a step that has ended, from a workflow, and return whether each endpoint has got it.

    One activity for each name in *endpoints*, all at once: the worker finds URL and secrets of that name in its own
    settings. *task_queue* is by default that of the workflow, whose worker has a `StepHookPlugin`. *timeout* of an
    attempt, and *schedule_to_close*, from the first attempt to the last, are in seconds: a workflow does not read the
    worker's settings of these names, which may change before a replay.

    A webhook that is not delivered is logged and shown by Temporal, and does not fail the workflow. Deterministic under
    replay. Raises nothing but the workflow's own cancellation, once the webhooks are delivered or given up, and
    ValueError for an *outcome* that there is not.
    """
    event = event_of_workflow(step_id, outcome, workflow.info(), int(workflow.time_ns()))
    all_arguments = (
        WebhookArguments(name, event.webhook_id, "", event.fields, {}, timeout, schedule_to_close) for name in endpoints
    )
    left = timedelta(seconds=schedule_to_close)
    notifying = asyncio.gather(*(_notify(arguments, left, task_queue) for arguments in all_arguments))
    try:
        return all(await asyncio.shield(notifying))
    except asyncio.CancelledError:
        # With the workflow, Temporal ends its activities that wait for their next attempt.
        while workflow.cancellation_reason() is not None and not notifying.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(notifying)
        raise


async def _notify(arguments: WebhookArguments, schedule_to_close: timedelta, task_queue: str | None) -> bool:
    try:
        done = await _execute(arguments, schedule_to_close, task_queue)
    except ActivityError as error:
        text = "the webhook of step %s was not delivered to endpoint %s: %s"
        workflow.logger.warning(text, arguments.event["step_id"], arguments.endpoint, error.cause or error)
        return False
    return done.result == "delivered"


async def _execute(
    arguments: WebhookArguments, schedule_to_close: timedelta, task_queue: str | None = None
) -> WebhookResult:
    result: WebhookResult = await workflow.execute_activity(
        ACTIVITY,
        arguments,
        result_type=WebhookResult,
        task_queue=task_queue,
        start_to_close_timeout=timedelta(seconds=arguments.start_to_close),
        schedule_to_close_timeout=schedule_to_close,
        retry_policy=retry_policy(),
        # An attempt takes no notice of a cancellation: the request may have arrived.
        cancellation_type=workflow.ActivityCancellationType.ABANDON,
        summary=summary(arguments.event),
    )
    return result
