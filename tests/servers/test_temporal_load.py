"""Two workers, thousands of deliveries, and a receiver that refuses, is slow, and closes connections."""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Program
from servers.temporal import TemporalServer
from servers.temporal_programs import Programs, delivered_by
from temporalio.client import Client

pytest_plugins = ["servers.temporal_fixtures"]
pytestmark = [pytest.mark.servers, pytest.mark.anyio, pytest.mark.timeout(900)]

_COUNT = 2000
_LIMIT = 600.0  # seconds for all of them, which take one or two minutes on a quiet machine
_PAUSE = 0.5  # seconds between two questions to the server, which are work for it

# In a process of its own, since it forks: pytest has threads of Temporal's SDK. At the end it prints what has arrived.
_RECEIVER = """
import json, os, sys
from pathlib import Path
from flapping import Arrived, FlappingReceiver

record = Path(sys.argv[1])
receiver = FlappingReceiver(record, "load")
receiver.start()
print(receiver.url, flush=True)
os.read(0, 1)
receiver.stop()
arrived = Arrived(record)
ids = {step_id: len(found) for step_id, found in arrived.webhook_ids.items()}
print(json.dumps({"accepted": arrived.accepted, "ids": ids, "requests": arrived.requests}))
"""


@pytest.fixture
def flapping(tmp_path: Path) -> Iterator[Program]:
    """A receiver that fails at random; its first line is its URL."""
    receiver = Program(sys.executable, "-c", _RECEIVER, str(tmp_path / "record"))
    yield receiver
    receiver.kill_group()


async def _wait_until_completed(server: TemporalServer, task_queue: str) -> None:
    """Wait until the server shows that all activities of *task_queue* have completed."""
    client, deadline = await Client.connect(server.address), time.monotonic() + _LIMIT
    query = f"TaskQueue = '{task_queue}' AND ExecutionStatus = 'Completed'"
    while (found := (await client.count_activities(query)).count) < _COUNT:
        assert time.monotonic() < deadline, f"{found} of {_COUNT} within {_LIMIT:g} s"
        await asyncio.sleep(_PAUSE)  # there is no event to wait for


async def test_two_workers(newer_temporal: TemporalServer, flapping: Program, tmp_path: Path) -> None:
    """Each webhook is accepted exactly once, under one id: an attempt is made again only when it was not accepted."""
    settings = {"schedule_to_close": _LIMIT, "give_up_after": _LIMIT, "initial_backoff": 0.1, "max_backoff": 2}
    with Programs(newer_temporal, tmp_path, webhook=flapping.read_line(), **settings) as programs:
        workers = [programs.worker("--concurrency", "50") for _ in range(2)]
        # A flush takes up to half of its timeout.
        application = programs.application(f"end_steps('step', {_COUNT}); print(provider.force_flush(1_200_000))")
        assert application.read_line() == "True"
        ended = application.ended()
        assert (ended.code, ended.noise, ended.err) == (0, [], "")
        await _wait_until_completed(newer_temporal, programs.task_queue)
        for worker in workers:
            worker.stop()
    flapping.go_on()
    received = flapping.ended()
    assert (received.code, received.noise) == (0, [])
    arrived = json.loads(received.out[-1])
    once = {f"step-{number}": 1 for number in range(_COUNT)}
    assert (arrived["accepted"], arrived["ids"]) == (once, once)
    assert arrived["requests"] > _COUNT  # some were not accepted at once
    shares = [delivered_by(worker) for worker in workers]
    assert all(shares), [len(share) for share in shares]
    assert sorted(shares[0] + shares[1]) == sorted(once)
