"""A Temporal worker that sends webhooks and does nothing else: owns its connection, and how it begins and ends."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from otel_step_hook.temporal.activity import WebhookActivities
from otel_step_hook.temporal.workflow import SendStepCompleteWebhook

_CONNECT_TIME = timedelta(seconds=10)  # for the first call; a server that restarts takes some seconds


class WorkerError(Exception):
    """The server cannot be used; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """The arguments of `Client.connect`, and limits; attempts in flight at the end get *shutdown_timeout* seconds."""

    config: dict[str, Any]
    task_queue: str
    concurrency: int
    shutdown_timeout: float


async def run_worker(
    options: WorkerOptions, activities: WebhookActivities, stop: asyncio.Event, on_ready: Callable[[Client], None]
) -> None:
    """Make attempts until *stop* is set; then finish those in flight. *on_ready* is called once the worker polls.

    Raises `WorkerError` when the server cannot be used, and RuntimeError when the worker cannot go on.
    """
    stopped, connecting = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(connected(options.config))
    try:
        # An address that accepts connections and never answers takes half a minute to fail.
        await asyncio.wait({connecting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if connecting.done():
            client = connecting.result()
            async with activities.run():
                await _work(_worker(client, options, activities), stopped, lambda: on_ready(client))
    finally:
        connecting.cancel()
        stopped.cancel()


def _worker(client: Client, options: WorkerOptions, activities: WebhookActivities) -> Worker:
    return Worker(
        client,
        task_queue=options.task_queue,
        activities=[activities.send_step_complete_webhook],
        workflows=[SendStepCompleteWebhook],
        workflow_runner=UnsandboxedWorkflowRunner(),  # the one workflow is ours
        max_concurrent_activities=options.concurrency,
        graceful_shutdown_timeout=timedelta(seconds=options.shutdown_timeout),
    )


async def _work(worker: Worker, stopped: asyncio.Future[Any], on_ready: Callable[[], None]) -> None:
    """Run *worker* until *stopped* is done."""
    running = asyncio.ensure_future(worker.run())
    on_ready()
    await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
    await worker.shutdown()
    await running  # raises what the worker has ended with, if it has not been stopped


async def connected(config: dict[str, Any]) -> Client:
    """Return a client for the running event loop whose namespace is there. Raises `WorkerError`."""
    address = config["target_host"]
    try:
        client = await Client.connect(**config)
        request = DescribeNamespaceRequest(namespace=client.namespace)
        await client.workflow_service.describe_namespace(request, timeout=_CONNECT_TIME)
    except RuntimeError:
        raise WorkerError(
            f"no Temporal server answers at {address}; start one, or set TEMPORAL_ADDRESS to host:port"
        ) from None
    except RPCError as error:
        raise WorkerError(
            f"the Temporal server at {address} refuses namespace {config.get('namespace', 'default')} "
            f"({error.status.name}: {error.message}); check TEMPORAL_NAMESPACE and TEMPORAL_API_KEY"
        ) from None
    return client
