"""The reader is interrupted at any line by other starts and ends: it takes no lock, and loses nothing."""

import sys
from itertools import count
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Any

import pytest
from emitting import Framework, end
from profile_examples import ELSEWHERE

from otel_step_hook import steps

_STEPS = str(Path(steps.__file__).parent)
_STRANDS = "strands.telemetry.tracer"
_LIMIT = 5.0  # seconds; a thread that waits for a lock of the interrupted thread would wait forever


def _use(framework: Framework) -> None:
    """Use each code path of the reader: steps of two kinds, spans that are none, and open children of a span."""
    agent = framework.start("invoke_agent x", scope=_STRANDS)
    for number in range(2):
        framework.start("cycle", {"event_loop.cycle_id": f"cycle-{number}"}, below=agent, scope=_STRANDS)
    framework.emit("GET /", below=agent)
    framework.emit("work", {"step_id": "work"})
    end(agent)


def _trace(interruption: Any) -> Any:
    """Return a function for `sys.settrace` that calls *interruption* at each line of ``steps/``."""

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(_STEPS):
            return None
        if event == "line":
            interruption()
        return trace

    return trace


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_a_step_may_end_at_each_line_of_the_reader(*, is_elsewhere: bool) -> None:
    """Each step that interrupts the reader is reported once, and so is each step that it interrupts.

    It interrupts in the same thread, as a signal handler or the garbage collector does, or in another thread.
    """

    def interrupt() -> None:
        name, usual = f"interrupts {next(numbers)}", sys.gettrace()
        sys.settrace(None)
        if is_elsewhere:
            thread = Thread(target=framework.emit, args=(name, {"step_id": name}), daemon=True)
            thread.start()
            thread.join(_LIMIT)
            assert not thread.is_alive(), "the other thread waits for a lock"
        else:
            framework.emit(name, {"step_id": name})
        sys.settrace(usual)

    numbers, framework = count(), Framework(ELSEWHERE)
    usual = sys.gettrace()
    sys.settrace(_trace(interrupt))
    try:
        _use(framework)
    finally:
        sys.settrace(usual)
    interruptions = next(numbers)
    expected = ["cycle-0", "cycle-1", "work", *(f"interrupts {number}" for number in range(interruptions))]
    assert interruptions > 100
    assert sorted(step.step_id for step in framework.steps) == sorted(expected)
