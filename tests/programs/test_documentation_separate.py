"""What docs/servers.md says of servers and platforms that are installed in an environment of their own here.

hypercorn installs h2, with which eventlet imports trio, and fails; Jupyter and Lambda's client are many packages.
"""

import os
import signal
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from documentation import claim, new_environment
from lambda_api import LambdaApi
from processes import LIMIT, PROGRAMS, Program, StepReceiver

_FUNCTION = claim("docs/servers.md", "def handler(")
STEPS = [f"step-{number}" for number in range(4)]
MANY = sorted(f"step-{number}" for number in range(60))

StartIn = Callable[..., Program]  # arguments of Python, and settings

pytestmark = pytest.mark.slow  # each environment takes seconds


@pytest.fixture(scope="module")
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of a new environment with these packages."""
    return new_environment(tmp_path_factory.mktemp("environment") / "fresh", *request.param)


@pytest.fixture
def start_in(receiver: StepReceiver, python: str, request: pytest.FixtureRequest) -> StartIn:
    """Start a program in that environment; it is killed after the test if it still runs."""

    def start(*arguments: str, **variables: str) -> Program:
        limits = {"SHUTDOWN_TIMEOUT": LIMIT, "GIVE_UP_AFTER": LIMIT, "INITIAL_BACKOFF": 2}  # seconds
        settings = {f"STEP_COMPLETE_{name}": str(value) for name, value in limits.items()}
        path = {"PYTHONPATH": str(PROGRAMS), "STEP_COMPLETE_WEBHOOK": receiver.url}
        program = Program(python, *arguments, **(settings | path | variables))
        request.addfinalizer(program.kill_group)
        return program

    return start


hypercorn = pytest.mark.parametrize("python", [("hypercorn>=0.17",)], ids=["hypercorn"], indirect=True)
jupyter = pytest.mark.parametrize(
    "python", [("ipykernel>=6.29", "jupyter_client>=8.6")], ids=["jupyter"], indirect=True
)
aws_lambda = pytest.mark.parametrize("python", [("awslambdaric>=3",)], ids=["awslambdaric"], indirect=True)


# hypercorn


def _serve(start_in: StartIn, *options: str, **variables: str) -> tuple[Program, str]:
    """A server of 60 steps for each request, and its URL."""
    server = start_in("-m", "hypercorn", "--bind", "127.0.0.1:0", *options, "asgi:app", **variables)
    return server, server.read_error(r"http://127.0.0.1:\d+")


@hypercorn
def test_hypercorn(receiver: StepReceiver, start_in: StartIn) -> None:
    """With one worker, which is the default, it delivers when SIGTERM stops it."""
    receiver.gate.clear()
    server, url = _serve(start_in)
    urllib.request.urlopen(url).close()
    receiver.wait_for(8)
    server.send_signal(signal.SIGTERM)
    assert server.read_line() == "stopped"
    receiver.gate.set()
    ended = server.ended()
    assert (ended.code, receiver.steps) == (0, MANY), ended.err


@hypercorn
def test_hypercorn_with_several_workers(receiver: StepReceiver, start_in: StartIn, tmp_path: Path) -> None:
    """As soon as the first worker has ended, the others get SIGTERM: once, unless they are daemons."""
    receiver.gate.clear()
    (tmp_path / "hypercorn.toml").write_text("daemon = false")
    options = ("--workers", "2", "--config", str(tmp_path / "hypercorn.toml"))
    server, url = _serve(start_in, *options, STEP_COMPLETE_DRAIN_ON_SIGTERM="true")
    urllib.request.urlopen(url).close()
    receiver.wait_for(8)
    server.send_signal(signal.SIGTERM)
    assert [server.read_line(), server.read_line()] == ["stopped", "stopped"]
    receiver.gate.set()
    ended = server.ended()
    assert (ended.code, receiver.steps) == (0, MANY), ended.err


@hypercorn
def test_a_worker_of_hypercorn_that_is_replaced(receiver: StepReceiver, start_in: StartIn) -> None:
    """With ``--max-requests`` a worker delivers before it is replaced."""
    receiver.gate.clear()
    server, url = _serve(start_in, "--max-requests", "1")
    for _ in range(2):  # it ends after the second
        urllib.request.urlopen(url).close()
    assert server.read_line() == "stopped"
    receiver.gate.set()
    server.read_error("Running on")  # the next worker starts when this one has ended
    server.send_signal(signal.SIGTERM)
    ended = server.ended()
    assert (ended.code, receiver.steps) == (0, sorted(MANY * 2)), ended.err


# Jupyter


@jupyter
@pytest.mark.parametrize("action", ["shutdown", "restart", "exit", "terminate", "interrupt"])
def test_a_kernel_of_jupyter(receiver: StepReceiver, start_in: StartIn, action: str) -> None:
    """A kernel delivers before it ends, and by SIGTERM with the setting; interrupting a flush loses nothing."""
    receiver.refuses_first = True
    notebook = start_in("-m", "notebook", action, STEP_COMPLETE_DRAIN_ON_SIGTERM="true")
    receiver.wait_for(len(STEPS))
    notebook.go_on()
    ended = notebook.ended()
    cells = {"exit": ["ok", "ok"], "interrupt": ["ok", "KeyboardInterrupt", "ok"]}.get(action, ["ok"])
    assert (ended.code, ended.out, receiver.steps) == (0, cells, sorted(STEPS * 2)), ended.err


# AWS Lambda, by the client that runs functions there


def _freeze(program: Program) -> None:
    program.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, program.pid, os.WSTOPPED)


@pytest.fixture
def api() -> Iterator[LambdaApi]:
    """A running `LambdaApi`."""
    with LambdaApi() as api:
        yield api


def _start_function(api: LambdaApi, start_in: StartIn, folder: Path, code: str) -> Program:
    """Start this code as a function, and wait until it is ready for its first call."""
    (folder / "function.py").write_text(code)
    variables = {"AWS_LAMBDA_RUNTIME_API": api.address, "PYTHONPATH": str(folder)}
    program = start_in("-m", "awslambdaric", "function.handler", **variables)
    api.wait_until_idle()
    return program


@aws_lambda
def test_a_function_that_flushes(receiver: StepReceiver, api: LambdaApi, start_in: StartIn, tmp_path: Path) -> None:
    """Each call delivers its step before the process is frozen; nothing is left when it is killed."""
    receiver.refuses_first = True
    program = _start_function(api, start_in, tmp_path, _FUNCTION.text)
    for number in range(3):
        api.call({"step_id": f"step-{number}"})
        _freeze(program)
        assert receiver.steps == sorted(STEPS[: number + 1] * 2)
        program.send_signal(signal.SIGCONT)
    assert api.results == [b'"found"'] * 3


@aws_lambda
def test_a_function_that_does_not_flush(
    receiver: StepReceiver, api: LambdaApi, start_in: StartIn, tmp_path: Path
) -> None:
    """Its step waits in the frozen process, and is delivered when the next call thaws it."""
    receiver.refuses_first = True
    program = _start_function(api, start_in, tmp_path, _FUNCTION.at({"provider.force_flush()": "pass"}).text)
    api.call({"step_id": "step-0"})
    _freeze(program)
    assert len(receiver.steps) < 2
    program.send_signal(signal.SIGCONT)
    receiver.wait_for(2)
