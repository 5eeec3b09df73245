"""Gunicorn with workers of each kind: they deliver while they run, and drain when SIGTERM ends them."""

import signal
import time
import urllib.request

import pytest
from processes import LIMIT, Start, StepReceiver

WORKERS = [
    pytest.param(("--preload",), id="sync-preload"),
    pytest.param((), id="sync", marks=pytest.mark.slow),
    pytest.param(("--worker-class", "gthread", "--threads", "2"), id="gthread", marks=pytest.mark.slow),
    pytest.param(("--worker-class", "gevent", "--preload"), id="gevent-preload"),
    pytest.param(("--worker-class", "gevent"), id="gevent", marks=pytest.mark.slow),
]
SERVED = [*(f"request-{number}" for number in range(6)), "request-asyncio", "request-last"]


@pytest.mark.parametrize("options", WORKERS)
def test_workers(receiver: StepReceiver, start: Start, options: tuple[str, ...]) -> None:
    """Each step is delivered once; the application's own event loop runs, also where threads are greenlets."""
    program = start("gunicorn", "--config", "serving.py", *options, "served:application")
    port, *ready = [program.read_line() for _ in range(3)]
    assert ready == ["ready", "ready"]
    loaded = ["loaded"] * (1 if "--preload" in options else 2)
    for number in range(6):
        _get(port, str(number))
    assert _get(port, "asyncio") == b"asyncio has run"
    receiver.wait_for(len(loaded) + 7)
    receiver.gate.clear()
    _get(port, "last")
    program.send_signal(signal.SIGTERM)
    receiver.gate.set()
    ended = program.ended()
    assert (ended.code, receiver.steps) == (0, [*loaded, *SERVED])
    # The workers do not close gunicorn's listening socket, which Python reports on stderr, at times without its port.
    assert [line for line in ended.noise if "unclosed <socket" not in line] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
def test_workers_that_are_replaced(receiver: StepReceiver, start: Start, kind: str) -> None:
    """With ``--max-requests`` a worker ends after some requests, and drains; each step of a request is delivered."""
    options = ("--worker-class", kind, "--max-requests", "2")
    program = start("gunicorn", "--config", "serving.py", *options, "served:application")
    port, *_ = [program.read_line() for _ in range(3)]
    for number in range(10):
        _get_from_one_that_stays(port, str(number))
    program.send_signal(signal.SIGTERM)
    assert program.ended().code == 0
    served = {step for step in receiver.steps if step != "loaded"}
    assert served == {f"request-{number}" for number in range(10)}


def _get(port: str, path: str) -> bytes:
    content: bytes = urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}").read()
    return content


def _get_from_one_that_stays(port: str, path: str) -> None:
    """Repeat a request that is reset: gunicorn 23 may take it with gthread, and then replace the worker."""
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            _get(port, path)
        except ConnectionResetError:
            assert time.monotonic() < deadline
        else:
            return
