"""The worker's calls interrupted at each of their lines: by Ctrl-C, and by signal handlers that call it again."""

import functools
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from delivering import AT_ONCE, WAIT, NewRig, Rig, Script, event, no_more_threads, seconds, threads, wait_until

from otel_step_hook.delivery import runner


def _interrupt(line: int, call: Callable[[], object], handler: Callable[[], object]) -> bool:
    """Call *handler* at this line of all those that *call* runs, ours and of `threading`; False if there are fewer."""
    left = line

    def trace(frame: FrameType, what: str, _: Any) -> Any:
        nonlocal left
        path = frame.f_code.co_filename
        if "otel_step_hook" not in path and path != threading.__file__:
            return None
        left -= what == "line"
        if not left:
            handler()
        return trace

    usual = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(usual)
    return left <= 0


def _ctrl_c() -> None:
    raise KeyboardInterrupt


def _submit(rig: Rig) -> None:
    rig.submit()


def _flush(rig: Rig) -> None:
    rig.worker.flush(WAIT)


def _shut_down(rig: Rig) -> None:
    rig.worker.shutdown(WAIT)


def test_ctrl_c_anywhere_in_submit(rigged: NewRig) -> None:
    """It may cost its own step, and its place in the queue; later steps, a flush and the shutdown go on as before."""
    rig = rigged(Script())
    rig.deliver()
    line = 1
    while _interrupt(line, rig.submit, _ctrl_c):
        rig.deliver(event(f"after {line}"))
        line += 1
    rig.worker.shutdown(WAIT)
    assert line > 10
    delivered = {step for step, result, _ in rig.results if result == "delivered"}
    assert {f"after {number}" for number in range(1, line)} <= delivered
    wait_until(lambda: not threads())


@pytest.mark.parametrize("call", [_submit, _flush, _shut_down])
def test_ctrl_c_before_there_is_a_thread(rigged: NewRig, call: Callable[[Rig], None]) -> None:
    """In the middle of starting one it costs nothing: the next call starts it, and everything is delivered."""
    line, is_interrupted = 1, True
    while is_interrupted:
        rig = rigged(Script())
        with no_more_threads():
            rig.submit(event("waiting"))
        is_interrupted = _interrupt(line, functools.partial(call, rig), _ctrl_c)
        assert rig.worker.flush(WAIT)
        assert seconds(functools.partial(rig.worker.shutdown, WAIT)) < AT_ONCE
        assert ("waiting", "delivered", None) in rig.results
        line += 1
    assert line > 10


@pytest.fixture
def _restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who wait look again after no time, so that they run more lines than a test interrupts."""
    monkeypatch.setattr(runner, "_POLL_INTERVAL", 0.0)


@pytest.mark.slow
@pytest.mark.usefixtures("_restless")
@pytest.mark.parametrize("call", [_flush, _shut_down])
@pytest.mark.parametrize("then", [lambda: None, _ctrl_c], ids=["handler", "ctrl-c"])
def test_a_signal_handler_that_shuts_down_in_a_wait(
    rigged: NewRig, call: Callable[[Rig], None], then: Callable[[], None]
) -> None:
    """At whichever line it comes, it returns when everything is delivered, and so does who waited before."""

    def handle(rig: Rig, answer: threading.Event) -> None:
        answer.set()
        took.append(seconds(lambda: rig.worker.shutdown(WAIT)))
        results.extend(result for _, result, _ in rig.results)
        then()

    took: list[float] = []
    results: list[object] = []
    for line in range(1, 80):
        answer = threading.Event()
        rig = rigged(Script(answer))
        rig.submit()
        assert _interrupt(line, functools.partial(call, rig), functools.partial(handle, rig, answer))
    assert max(took) < AT_ONCE
    assert results == ["delivered"] * len(took)
