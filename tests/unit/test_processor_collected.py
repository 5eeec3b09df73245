"""Hooks that are garbage collected without a shutdown: their steps are delivered, and nothing is left of them."""

import functools
import gc
import threading
from pathlib import Path

from delivering import threads, wait_until
from opentelemetry.sdk.trace import TracerProvider
from processes import StepReceiver

from otel_step_hook import StepHookProcessor

_DESCRIPTORS = Path("/proc/self/fd")


def _end_step(webhook: str, step_id: str, *, is_flushed: bool = True) -> None:
    """End a step in a provider of its own, whose hook is not shut down."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(StepHookProcessor(webhook))
    provider.get_tracer("tests").start_span("step", attributes={"step_id": step_id}).end()
    if is_flushed:
        assert provider.force_flush()


def _left() -> tuple[int, int, int]:
    """The numbers of open descriptors, of threads, and of the hooks' exit functions."""
    gc.collect()
    exits = [one for one in gc.get_objects() if isinstance(one, functools.partial) and "_at_exit" in one.func.__name__]
    return len(list(_DESCRIPTORS.iterdir())) if _DESCRIPTORS.exists() else 0, threading.active_count(), len(exits)


def test_collected_hooks_leave_nothing_behind(receiver: StepReceiver) -> None:
    """After a hundred collected hooks no thread, no descriptor and no exit function is left."""
    before = _left()
    for number in range(100):
        _end_step(receiver.url, f"step-{number}")
    # A thread that waits for work refers to its hook for a second; then the hook can be collected.
    wait_until(lambda: gc.collect() >= 0 and not threads())
    wait_until(lambda: all(now <= earlier for now, earlier in zip(_left(), before, strict=True)))
    assert len(receiver.steps) == 100


def test_a_collected_hook_delivers_its_queue(receiver: StepReceiver) -> None:
    """A hook that is collected with steps in its queue delivers them, and then its thread ends."""
    receiver.gate.clear()
    for number in range(3):
        _end_step(receiver.url, f"step-{number}", is_flushed=False)
    gc.collect()
    receiver.wait_for(3)
    receiver.gate.set()
    wait_until(lambda: gc.collect() >= 0 and not threads())
    assert receiver.steps == ["step-0", "step-1", "step-2"]
