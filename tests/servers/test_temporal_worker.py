"""The command `otel-step-hook worker`: how it begins, what it shows, and how it ends."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import LIMIT, Ended, StepReceiver
from servers.deployment import Deployment, Webhooks, stopped
from servers.running import until
from servers.temporal import TemporalServer

from otel_step_hook.testing import ScriptedReceiver

pytest_plugins = ["servers.temporal_fixtures"]
pytestmark = [pytest.mark.servers, pytest.mark.anyio]

_STOPPING = "stopping: attempts in flight get up to 15 s"
_INTERRUPTED = 130  # as shells show SIGINT
_ENDS = 12  # processes: at the interpreter's own end, one of four or five was killed


@pytest.fixture
def deployment(newer_temporal: TemporalServer, receiver: StepReceiver) -> Iterator[Deployment]:
    """Programs with a task queue of their own."""
    with Deployment(newer_temporal, receiver.url) as deployment:
        yield deployment


def _sentence(ended: Ended) -> str:
    """The one line that a command has written, on stderr."""
    assert (ended.out, ended.noise) == ([], [])
    (line,) = ended.err.splitlines()
    return line


def test_what_it_prints(deployment: Deployment, newer_temporal: TemporalServer) -> None:
    """One line when it is ready, one when it is asked to end, and one when it has ended."""
    worker = deployment.command("worker", "--concurrency", "3", STEP_COMPLETE_TASK_QUEUE="of the worker")
    assert worker.read_line() == (
        f"ready: task queue of the worker of namespace default at {newer_temporal.address}, endpoints default, "
        "3 attempts at a time; SIGTERM or Ctrl-C ends it"
    )
    ended = stopped(worker)
    assert (ended.out, ended.err) == ([_STOPPING, "stopped"], "")


def test_the_health_file(deployment: Deployment, tmp_path: Path) -> None:
    """The health file is touched again and again while the worker runs, and gone at its end."""
    file = tmp_path / "alive"
    worker = deployment.worker("--health-file", str(file))
    until("the file is there", file.exists)  # made by a task that the line "ready" does not wait for
    os.utime(file, (1, 1))
    until("it is touched again", lambda: file.stat().st_mtime > 1)
    stopped(worker)
    assert not file.exists()


@pytest.mark.parametrize("signals", [["SIGTERM"], ["SIGTERM", "SIGTERM"], ["SIGINT"], ["SIGINT", "SIGTERM"]])
async def test_a_signal_lets_attempts_finish(
    deployment: Deployment, newer_temporal: TemporalServer, receiver: StepReceiver, signals: list[str]
) -> None:
    """After one signal or two, the worker finishes the attempt in flight, and exits with 0."""
    receiver.gate.clear()
    worker = deployment.worker()
    webhook_id = deployment.hand_over()
    receiver.wait_for(1)
    worker.send_signal(signal.Signals[signals[0]])
    assert worker.read_line() == _STOPPING
    for name in signals[1:]:
        worker.send_signal(signal.Signals[name])
    receiver.gate.set()
    ended = worker.ended()
    assert (ended.code, ended.out, ended.noise) == (0, ["stopped"], [])
    result = await (await Webhooks.of(newer_temporal)).result(webhook_id)
    assert result == {"result": "delivered", "status_code": 204, "attempts": 1}
    assert receiver.steps == [deployment.step_id]


def test_a_second_interrupt_ends_it_at_once(deployment: Deployment, receiver: StepReceiver, tmp_path: Path) -> None:
    """Who presses Ctrl-C twice does not wait for the attempt in flight."""
    receiver.gate.clear()
    file = tmp_path / "worker.alive"
    worker = deployment.worker("--health-file", str(file))
    deployment.hand_over()
    receiver.wait_for(1)
    worker.send_signal(signal.SIGINT)
    assert worker.read_line() == _STOPPING
    worker.send_signal(signal.SIGINT)
    assert worker.ended().code == _INTERRUPTED
    assert not file.exists()


def test_a_health_file_that_cannot_be_written(deployment: Deployment, tmp_path: Path) -> None:
    """It is refused at the start: a probe would end the worker again and again."""
    file = tmp_path / "missing" / "worker.alive"
    ended = deployment.command("worker", "--health-file", str(file)).ended()
    assert (ended.code, ended.err) == (
        2,
        f"--health-file {file} cannot be written: No such file or directory; choose another\n",
    )


@pytest.mark.parametrize("command", ["worker", "check"])
def test_no_server(deployment: Deployment, closed_port: int, command: str) -> None:
    """Without a server, worker and check end with 1 and a sentence, and no thread of Temporal's SDK kills them then."""
    address = f"127.0.0.1:{closed_port}"
    for ended in [deployment.command(command, TEMPORAL_ADDRESS=address).ended() for _ in range(_ENDS)]:
        assert (ended.code, ended.noise) == (1, [])
        assert (
            ended.err == f"no Temporal server answers at {address}; start one, or set TEMPORAL_ADDRESS to host:port\n"
        )


def test_sigterm_before_the_server_has_answered(deployment: Deployment) -> None:
    """A worker that waits for what has accepted its connection, and does not answer, ends at once, with 0."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(LIMIT)
        worker = deployment.command("worker", TEMPORAL_ADDRESS=f"127.0.0.1:{silent.getsockname()[1]}")
        connection, _ = silent.accept()
        with connection:
            worker.terminate()
            ended = worker.ended()
    assert (ended.code, ended.out, ended.err) == (0, [_STOPPING, "stopped"], "")


def test_an_unknown_namespace(deployment: Deployment, newer_temporal: TemporalServer) -> None:
    """With a namespace that the server does not know, it ends with 1 and a sentence."""
    ended = deployment.command("worker", TEMPORAL_NAMESPACE="nowhere").ended()
    assert ended.code == 1
    line = _sentence(ended)
    assert line.startswith(f"the Temporal server at {newer_temporal.address} refuses namespace nowhere (NOT_FOUND: ")
    assert line.endswith("; check TEMPORAL_NAMESPACE and TEMPORAL_API_KEY")


def test_no_webhook(deployment: Deployment) -> None:
    """Without a webhook it ends with 2, before it asks a server."""
    ended = deployment.command("worker", STEP_COMPLETE_WEBHOOK="").ended()
    assert ended.code == 2
    assert _sentence(ended).startswith("STEP_COMPLETE_WEBHOOK is not set, so no webhook is sent; ")


def test_check(deployment: Deployment, newer_temporal: TemporalServer, step_receiver: ScriptedReceiver) -> None:
    """`otel-step-hook check` says that Temporal answers, and where, before it tries the receiver."""
    ended = deployment.command("check", STEP_COMPLETE_WEBHOOK=step_receiver.url).ended()
    assert (ended.code, ended.noise) == (0, [])
    answers = ended.out.index(f"Temporal answers: namespace default at {newer_temporal.address}")
    assert any(line.startswith("Trying http://127.0.0.1:") for line in ended.out[answers:])
