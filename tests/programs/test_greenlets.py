"""Applications whose threads are greenlets of gevent or eventlet: they are neither blocked nor broken."""

import signal
import urllib.request

import pytest
from processes import Start, StepReceiver

STEPS = sorted(f"step-{number}{again}" for number in range(10) for again in ("", "-again"))


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_an_application_of_greenlets(receiver: StepReceiver, start: Start, library: str, order: str) -> None:
    """Its steps are delivered; a flush lets other greenlets run, and its own event loops run beside the worker's."""
    receiver.gate.clear()
    program = start("greenlets", library, order)
    lines = [program.read_line() for _ in range(3)]
    assert lines == ["steps have ended", "not flushed True", "asyncio has run"]
    receiver.gate.set()
    receiver.wait_for(len(STEPS))
    program.go_on()
    ended = program.ended()
    assert (ended.code, receiver.steps) == (3, ["last", *STEPS])
    if (library, order) != ("eventlet", "after"):  # eventlet asks to be first, and prints a traceback where it is not
        assert ended.noise == []


@pytest.mark.parametrize("preload", [("--preload",), pytest.param((), marks=pytest.mark.slow)], ids=["preload", ""])
def test_gunicorn_with_greenlets(receiver: StepReceiver, start: Start, preload: tuple[str, ...]) -> None:
    """The workers of ``gunicorn -k gevent`` deliver while they run, and drain when SIGTERM ends them."""
    program = start("gunicorn", "--config", "serving.py", "--worker-class", "gevent", *preload, "served:application")
    port, *ready = [program.read_line() for _ in range(3)]
    assert ready == ["ready", "ready"]
    address = f"http://127.0.0.1:{port}"
    for number in range(6):
        urllib.request.urlopen(f"{address}/{number}").close()
    assert urllib.request.urlopen(f"{address}/asyncio").read() == b"asyncio has run"
    receiver.wait_for(7 + (1 if preload else 2))
    receiver.gate.clear()
    urllib.request.urlopen(f"{address}/last").close()
    program.send_signal(signal.SIGTERM)
    receiver.gate.set()
    ended = program.ended()
    assert ended.code == 0
    # The workers do not close gunicorn's listening socket, which Python reports on stderr.
    assert [line for line in ended.noise if "unclosed <socket" not in line] == []
    served = [*(f"request-{number}" for number in range(6)), "request-asyncio", "request-last"]
    assert receiver.steps == ["loaded"] * (1 if preload else 2) + served
