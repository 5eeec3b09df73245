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
    """Call *handler* at this line of those that *call* runs in this package or `threading`; False if it has fewer."""
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
    """Ctrl-C may lose the step that is being submitted; later steps, a flush and the shutdown are not affected."""
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
def test_ctrl_c_while_the_thread_is_started_loses_no_waiting_step(rigged: NewRig, call: Callable[[Rig], None]) -> None:
    """The next call starts the thread, and the waiting step is delivered."""
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
def _polling_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes waits poll without a pause, so that they run more lines than a test interrupts."""
    monkeypatch.setattr(runner, "_POLL_INTERVAL", 0.0)


@pytest.mark.slow
@pytest.mark.usefixtures("_polling_all_the_time")
@pytest.mark.parametrize("call", [_flush, _shut_down])
@pytest.mark.parametrize("then", [lambda: None, _ctrl_c], ids=["handler", "ctrl-c"])
def test_a_signal_handler_that_shuts_down_in_a_wait(
    rigged: NewRig, call: Callable[[Rig], None], then: Callable[[], None]
) -> None:
    """At any line of the wait the shutdown returns when everything is delivered, and so does the wait."""

    def on_signal(rig: Rig, answer: threading.Event) -> None:
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
        assert _interrupt(line, functools.partial(call, rig), functools.partial(on_signal, rig, answer))
    assert max(took) < AT_ONCE
    assert results == ["delivered"] * len(took)
