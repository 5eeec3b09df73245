"""The code about ASGI servers and containers: what arrives when SIGTERM stops one."""

import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from documentation import claim
from processes import LIMIT, PROCESS_1, Program, StepReceiver, has_process_1

_LIFESPAN = claim("docs/servers.md", "async def lifespan")
_POD = claim("docs/servers.md", "terminationGracePeriodSeconds")
_ENDS_STEPS = """

@app.get("/")
def work() -> None:
    for number in range(60):
        trace.get_tracer("my.agent").start_span("search", attributes={"step_id": f"step-{number}"}).end()
"""
_SERVERS = {
    "uvicorn": "uvicorn --app-dir {} --port {}",
    "uvicorn with processes": "uvicorn --app-dir {} --port {} --workers 2",
    "gunicorn": "gunicorn --pythonpath {} --bind 127.0.0.1:{} --preload --worker-class uvicorn_worker.UvicornWorker",
}


@pytest.fixture
def free_port() -> int:
    """A port that was free a moment ago: uvicorn says nothing of the one that it chooses for several processes."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port: int = trial.getsockname()[1]
        return port


@pytest.fixture
def server(request: pytest.FixtureRequest, receiver: StepReceiver, tmp_path: Path, free_port: int) -> Iterator[Program]:
    """The application of the page, with an endpoint that ends 60 steps, under this server."""
    (tmp_path / "app.py").write_text(_LIFESPAN.text + _ENDS_STEPS)
    command = _SERVERS[request.param].format(tmp_path, free_port).split()
    environment = {"STEP_COMPLETE_WEBHOOK": receiver.url, "STEP_COMPLETE_SHUTDOWN_TIMEOUT": "30"}  # seconds
    program = Program(sys.executable, "-m", *command, "app:app", **environment)
    yield program
    program.kill_group()


def _request(port: int) -> None:
    """Send a request as soon as the server listens, of which not every one says when it does."""
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}").close()
        except urllib.error.URLError:
            assert time.monotonic() < deadline
            time.sleep(0.05)  # seconds; nothing says when it listens
        else:
            return


@pytest.mark.parametrize(
    "server",
    ["uvicorn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("uvicorn with processes", "gunicorn"))],
    indirect=True,
)
def test_the_lifespan_delivers_what_is_queued(server: Program, receiver: StepReceiver, free_port: int) -> None:
    """All of the 60 steps that are queued when SIGTERM stops the server arrive."""
    receiver.gate.clear()
    _request(free_port)
    receiver.wait_for(8)
    server.send_signal(signal.SIGTERM)
    server.read_error("Waiting for application shutdown")
    receiver.gate.set()
    server.ended()
    assert receiver.steps == sorted(f"step-{number}" for number in range(60))


def test_the_grace_period_is_long_enough() -> None:
    """Hook, graceful stop and shutdown timeout together are shorter than the time after which Kubernetes kills."""
    pod = yaml.safe_load(_POD.text)["spec"]
    (container,) = pod["containers"]
    hook, graceful_stop = container["lifecycle"]["preStop"]["exec"]["command"][-1], container["command"][-1]
    (timeout,) = [one["value"] for one in container["env"] if one["name"] == "STEP_COMPLETE_SHUTDOWN_TIMEOUT"]
    assert int(hook) + int(graceful_stop) + int(timeout) < pod["terminationGracePeriodSeconds"]


@pytest.mark.slow
@pytest.mark.skipif(not has_process_1(), reason="needs unshare, and a kernel that permits it")
def test_the_container_delivers_what_is_queued(
    receiver: StepReceiver, tmp_path: Path, free_port: int, request: pytest.FixtureRequest
) -> None:
    """As process 1, which only gets the signals that it has handlers for, its command delivers all steps and exits."""
    (container,) = yaml.safe_load(_POD.at({"https://example.com/hooks/steps": receiver.url}).text)["spec"]["containers"]
    (tmp_path / "app.py").write_text(
        f"import os\nprint(os.readlink('/proc/self'), flush=True)\n{_LIFESPAN.text}{_ENDS_STEPS}"
    )
    command = [sys.executable, "-m", *container["command"], "--app-dir", str(tmp_path), "--port", str(free_port)]
    program = Program(*PROCESS_1, *command, **{one["name"]: one["value"] for one in container["env"]})
    request.addfinalizer(program.kill_group)
    receiver.gate.clear()
    pid = int(program.read_line())  # outside of the container
    _request(free_port)
    receiver.wait_for(8)
    os.kill(pid, signal.SIGTERM)
    program.read_error("Waiting for application shutdown")
    receiver.gate.set()
    assert (program.ended().code, receiver.steps) == (0, sorted(f"step-{number}" for number in range(60)))
