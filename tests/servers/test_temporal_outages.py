"""Outages: workers and servers that are killed, a server that is down, and one that never answers."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import LIMIT, StepReceiver
from servers.temporal import TemporalServer
from servers.temporal_programs import Programs, delivered_by
from temporalio.client import ActivityExecutionStatus, Client

from otel_step_hook.testing import Answer, ScriptedReceiver

pytest_plugins = ["servers.temporal_fixtures"]
pytestmark = [pytest.mark.servers, pytest.mark.timeout(300)]

# Seconds: more than a restart of the server takes on a busy machine.
_PATIENT = {"schedule_to_close": 200, "give_up_after": 200}
_EXIT_CODE = 7
_OUTAGES = ["down", "silent"]

# An application that has an exit code of its own.
_THREE_STEPS = f"""
end_steps("step", 3)
sys.exit({_EXIT_CODE})
"""
# An application that ends no step: its worker hands over what others have left.
_HAND_OVER_REST = """
from otel_step_hook.delivery import dispatch, outbox_file
outbox_file.LOOK_INTERVAL = dispatch.IDLE = 0.1  # seconds, instead of half a minute
tracer.start_span("no step").end()
wait_for_test()
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TemporalServer]:
    """A Temporal Server 1.32 of the test's own, which has not been started."""
    folder = tmp_path / "server"
    folder.mkdir()
    server = TemporalServer(folder)
    yield server
    server.kill()


@contextlib.contextmanager
def _outage(server: TemporalServer, kind: str) -> Iterator[None]:
    """Let nobody listen at the address of *server*, or somebody who accepts connections and never answers."""
    with contextlib.ExitStack() as stack:
        if kind == "silent":
            host, _, port = server.address.rpartition(":")
            stack.enter_context(socket.create_server((host, int(port))))
        yield


@pytest.mark.anyio
async def test_a_worker_that_is_killed(
    newer_temporal: TemporalServer, step_receiver: ScriptedReceiver, tmp_path: Path
) -> None:
    """After a kill in the middle of an attempt, another worker delivers under the same webhook id."""
    step_receiver.answers(Answer(delay=LIMIT))
    with Programs(newer_temporal, tmp_path, webhook=step_receiver.url, timeout=6, **_PATIENT) as programs:
        killed = programs.worker()
        ended = programs.application("deliver('step-0')").ended()
        assert (ended.code, ended.noise, ended.err) == (0, [], "")
        step_receiver.wait_for(1, LIMIT)
        killed.kill()
        other = programs.worker()
        first, second = step_receiver.wait_for(2, LIMIT)
        webhook_id = first.headers["webhook-id"]
        assert second.headers["webhook-id"] == webhook_id
        client = await Client.connect(newer_temporal.address)
        activity = client.get_activity_handle(f"default/{webhook_id}")
        assert await activity.result() == {"result": "delivered", "status_code": 204, "attempts": 2}
        assert (await activity.describe()).status is ActivityExecutionStatus.COMPLETED
        other.stop()
    assert (delivered_by(killed), delivered_by(other)) == ([], ["step-0"])
    assert len(step_receiver.received) == 2


@pytest.mark.parametrize("end", [TemporalServer.stop, TemporalServer.kill], ids=["SIGTERM", "SIGKILL"])
def test_a_server_that_is_restarted(
    server: TemporalServer, receiver: StepReceiver, tmp_path: Path, end: Callable[[TemporalServer], None]
) -> None:
    """All is delivered that is in an attempt, or waits in Temporal or in the application, while the server is gone."""
    server.start()
    receiver.gate.clear()
    with Programs(server, tmp_path, webhook=receiver.url, timeout=60, **_PATIENT) as programs:
        worker = programs.worker("--concurrency", "4")
        application = programs.application(
            """
            end_steps("accepted", 20)
            print(provider.force_flush(100_000), flush=True)
            wait_for_test()
            end_steps("kept", 20)
            print("ended", flush=True)
            print(provider.force_flush(100_000), flush=True)
            """
        )
        assert application.read_line() == "True"
        receiver.wait_for(4)
        end(server)
        application.go_on()
        assert application.read_line() == "ended"
        server.start()
        receiver.gate.set()
        assert application.read_line() == "True"
        receiver.wait_for(40)
        ended = application.ended()
        worker.stop()
    assert (ended.code, ended.noise) == (0, [])
    assert "discarded" not in ended.err
    expected = sorted(f"{name}-{number}" for name in ("accepted", "kept") for number in range(20))
    assert receiver.steps == sorted(delivered_by(worker)) == expected


@pytest.mark.parametrize("kind", _OUTAGES)
def test_an_outbox_keeps_what_cannot_be_handed_over(
    server: TemporalServer, receiver: StepReceiver, tmp_path: Path, kind: str
) -> None:
    """Steps that end while the server is gone outlive their process; the next one hands them over."""
    outbox = tmp_path / "steps.db"
    with Programs(server, tmp_path, webhook=receiver.url, schedule_to_close=200) as programs:
        with _outage(server, kind):
            ended = programs.application(_THREE_STEPS, outbox=outbox, timeout=3).ended()
        assert (ended.code, ended.noise) == (_EXIT_CODE, [])
        assert "discarded" not in ended.err
        server.start()
        worker = programs.worker()
        following = programs.application(_HAND_OVER_REST, outbox=outbox)
        receiver.wait_for(3)
        following.go_on()
        ended = following.ended()
        worker.stop()
    assert (ended.code, ended.noise, ended.err) == (0, [], "")
    assert receiver.steps == ["step-0", "step-1", "step-2"]


@pytest.mark.parametrize("kind", _OUTAGES)
def test_memory_discards_what_cannot_be_handed_over(
    server: TemporalServer, receiver: StepReceiver, tmp_path: Path, kind: str
) -> None:
    """Without an outbox the application ends with its own exit code, and its log says what was discarded."""
    settings = {"webhook": receiver.url, "timeout": 3, "shutdown_timeout": 6}
    with Programs(server, tmp_path, **settings) as programs, _outage(server, kind):
        ended = programs.application(_THREE_STEPS).ended()
    assert (ended.code, ended.noise) == (_EXIT_CODE, [])
    assert ended.err.count("discarded step step-") == 2  # the first line, and the one that counts the repetitions
    assert "2 more like this: discarded step" in ended.err
    assert receiver.steps == []
