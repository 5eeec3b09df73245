"""Makes the pictures of Temporal's web page that `docs/` shows: the list of webhooks, and one that is being retried.

python tests/servers/screenshots.py docs/_static
"""

import asyncio
import logging
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as pytest does

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from servers.browser import Browser, browser
from servers.build import ServerError
from servers.temporal import NAMESPACE, TemporalServer
from temporalio.client import Client
from temporalio.worker import Worker

from otel_step_hook import StepHookProcessor, StepHookSettings
from otel_step_hook.temporal import StepHookPlugin
from otel_step_hook.testing import ScriptedReceiver

_STEPS = (("step-01-plan", 204), ("step-02-search", 204), ("step-03-book", 410), ("step-04-report", 503))
_ATTEMPTS = 3  # of the last step, which is being retried when the pictures are made


async def _end_steps(receiver: ScriptedReceiver, settings: StepHookSettings) -> None:
    """End the steps one after the other, as an application does, and wait until each was tried."""
    provider = TracerProvider(resource=Resource({"service.name": "agent"}), shutdown_on_exit=False)
    provider.add_span_processor(StepHookProcessor(settings))
    for number, (step_id, answer) in enumerate(_STEPS, 1):
        receiver.answers(*[answer] * (_ATTEMPTS if number == len(_STEPS) else 1))
        provider.get_tracer("agent").start_span("step", attributes={"step_id": step_id}).end()
        await asyncio.to_thread(receiver.wait_for, number)
    receiver.answers(*[503] * 100)
    await asyncio.to_thread(receiver.wait_for, len(_STEPS) + _ATTEMPTS - 1)
    await asyncio.to_thread(provider.shutdown)


async def _take(client: Client, server: TemporalServer, page: Browser, folder: Path) -> None:
    """Write the pictures of the activities into *folder*."""
    activities = f"{server.ui}/namespaces/{NAMESPACE}/activities"
    page.screenshot(activities, folder / "temporal-list.png", shows="1–4 of 4", width=1850, height=600)
    (retried,) = [one async for one in client.list_activities("ExecutionStatus = 'Running'")]
    one = f"{activities}/{retried.activity_id.replace('/', '%2F')}/{retried.activity_run_id}"
    page.screenshot(f"{one}/details", folder / "temporal-activity.png", shows="Last Failure", height=1400)
    page.screenshot(f"{one}/metadata", folder / "temporal-summary.png", shows="User Metadata", height=500)


async def _main(folder: Path) -> None:
    logging.disable()  # the failures are what is shown
    with (
        tempfile.TemporaryDirectory() as state,
        browser() as page,
        TemporalServer(Path(state)) as server,
        ScriptedReceiver() as receiver,
    ):
        os.environ["TEMPORAL_ADDRESS"] = server.address
        client = await Client.connect(server.address)
        settings = StepHookSettings(webhook=receiver.url, engine="temporal", schedule_to_close=300, initial_backoff=2)
        async with Worker(client, task_queue=settings.task_queue, plugins=[StepHookPlugin(settings)]):
            await _end_steps(receiver, settings)
            await _take(client, server, page, folder)


if __name__ == "__main__":
    try:
        asyncio.run(_main(Path(sys.argv[1])))
    except ServerError as error:
        sys.exit(str(error))
