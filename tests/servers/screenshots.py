"""Makes the pictures of Temporal's web page that `docs/` shows: the list of activities, and one that is being retried.

python tests/servers/screenshots.py docs/_static
"""

import asyncio
import logging
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as pytest does

from servers.browser import Browser, browser
from servers.build import ServerError
from servers.running import LIMIT
from servers.temporal import NAMESPACE, TemporalServer
from temporalio import activity
from temporalio.client import ActivityHandle, Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

_QUEUE = "otel-step-hook"
_ATTEMPTS = 3  # of the activity that is being retried


@activity.defn(name="send_step_complete_webhook")
async def _send(answer: str) -> str:
    if answer != "204":
        refusal = f"the receiver answered {answer}"
        raise ApplicationError(refusal, non_retryable=answer.startswith("410"))
    return "delivered"


async def _start(client: Client, step_id: str, answer: str) -> ActivityHandle[str]:
    return await client.start_activity(
        _send,
        answer,
        id=f"{step_id}/default",
        task_queue=_QUEUE,
        summary=f"{step_id}: success",
        start_to_close_timeout=timedelta(seconds=15),
        schedule_to_close_timeout=timedelta(minutes=5),
    )


async def _take(client: Client, server: TemporalServer, page: Browser, folder: Path) -> None:
    """Let four activities run, and write the pictures into *folder*."""
    for number in (1, 2):
        await (await _start(client, f"step-{number}", "204")).result()
    await _start(client, "step-3", "410 Gone")
    retried = await _start(client, "step-4", "503 Service Unavailable")
    async with asyncio.timeout(LIMIT):
        while (await retried.describe()).attempt < _ATTEMPTS:  # noqa: ASYNC110 -- the server announces no attempt
            await asyncio.sleep(0.1)
    activities = f"{server.ui}/namespaces/{NAMESPACE}/activities"
    page.screenshot(activities, folder / "temporal-activities.png", shows="1–4 of 4", width=1850, height=600)
    one = f"{activities}/{retried.id.replace('/', '%2F')}/{retried.run_id}/details"
    page.screenshot(one, folder / "temporal-activity.png", shows="Last Failure", height=1300)


async def _main(folder: Path) -> None:
    logging.disable()  # the failures are what is shown
    with tempfile.TemporaryDirectory() as state, browser() as page, TemporalServer(Path(state)) as server:
        client = await Client.connect(server.address)
        async with Worker(client, task_queue=_QUEUE, activities=[_send]):
            await _take(client, server, page, folder)


if __name__ == "__main__":
    try:
        asyncio.run(_main(Path(sys.argv[1])))
    except ServerError as error:
        sys.exit(str(error))
