"""The worker: its thread starts on first use, its queue is bounded, and each event is accounted for."""

import functools
import gc
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable

import pytest
from delivering import DELIVERED, WAIT, NewRig, Rig, Script, counts, event, threads, wait_until
from support import log_lines

from otel_step_hook import ConfigurationError, StepHookProcessor
from otel_step_hook.delivery import children, loop

FULL = (
    "dropped a step (queue_full, endpoint default): "
    "STEP_COMPLETE_MAX_QUEUE_SIZE events are waiting; the newest are dropped"
)


def test_the_thread_starts_with_the_first_step(rigged: NewRig) -> None:
    """The first step starts one daemon thread; making a worker and forking start none."""
    rig = rigged(Script())
    rig.worker.after_fork()
    assert threads() == []
    rig.deliver(*(event() for _ in range(20)))
    wait_until(lambda: len(threads()) == 1)  # until a second one that was started has ended
    assert threads()[0].daemon


def test_settings_that_cannot_be_used_raise_at_once() -> None:
    """Settings that cannot be used raise when the hook is made, and no thread starts."""
    with pytest.raises(ConfigurationError):
        StepHookProcessor("https://receiver.test", certificate="/does/not/exist")
    assert threads() == []


def test_the_queue_is_bounded(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """Exactly max_queue_size events are taken, those in flight included; the newest are dropped, logged and counted."""
    answer = threading.Event()
    script = Script(answer, answer)
    rig = rigged(script, max_queue_size=5, concurrency=2)
    rig.submit(*(event(f"step-{number}") for number in range(5)))
    script.wait_for(2)
    rig.submit(*(event(f"step-{number}") for number in range(5, 35)))
    answer.set()
    assert rig.worker.flush(WAIT)
    rig.deliver(event("step-35"))
    rig.worker.shutdown(WAIT)
    assert sorted(str(step) for step, _, _ in rig.results) == [f"step-{number}" for number in (0, 1, 2, 3, 35, 4)]
    assert log_lines(caplog) == [f"ERROR {FULL}", f"ERROR 29 more like this: {FULL}"]


def test_a_stuck_thread_costs_little(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """While the worker's thread is stuck, further steps, faults and flushes take no memory and no time."""
    released = threading.Event()
    script = Script(functools.partial(released.wait, WAIT), DELIVERED)
    rig = rigged(script, max_queue_size=1, concurrency=1)
    rig.submit()
    script.wait_for(1)
    dropped, error = event(), LookupError()
    tracemalloc.start()
    for _ in range(20_000):
        rig.submit(dropped)
        rig.worker.add_fault(error)
        rig.worker.flush(0)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    released.set()
    rig.worker.shutdown(WAIT)
    assert size < 300_000  # bytes; the size of a hundred flushes
    assert counts(caplog) == {FULL: 20_000, "a fault of otel-step-hook: LookupError": 20_000}


def test_a_thread_that_is_stuck_for_minutes_does_not_block_submit(
    rigged: NewRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that are submitted while the thread is stuck are delivered once it continues."""
    released = threading.Event()
    script = Script(functools.partial(released.wait, WAIT), DELIVERED)
    rig = rigged(script)
    rig.submit()
    script.wait_for(1)
    clock = iter(range(10**9, 10**10))
    with monkeypatch.context() as quick:
        quick.setattr(loop, "monotonic", lambda: float(next(clock)))  # each call is a second later
        for _ in range(1_000):
            rig.submit()
    released.set()
    assert rig.worker.flush(WAIT)


def test_faults_are_logged_once(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """An error on an application's thread is logged by type and place, and counted after that."""
    rig = rigged(Script())
    for _ in range(3):
        try:
            next(iter(()))
        except StopIteration as error:
            error.args = ("a secret",)
            rig.worker.add_fault(error)
            rig.worker.drop("unreadable", error)
    rig.worker.shutdown(WAIT)
    assert "a secret" not in caplog.text
    assert {line.partition("test_worker.py")[0]: count for line, count in counts(caplog).items()} == {
        "a fault of otel-step-hook: StopIteration <- ": 3,
        "dropped a step (unreadable, endpoint default): StopIteration <- ": 3,
    }
    assert len(log_lines(caplog)) == 4


def test_a_flush_waits_up_to_its_timeout(rigged: NewRig) -> None:
    """A flush waits for earlier steps up to its timeout, and returns whether all have a result."""
    answer = threading.Event()
    rig = rigged(Script(answer))
    assert rig.worker.flush(0)
    rig.submit()
    for timeout in (0.05, 0, -1):
        assert not rig.worker.flush(timeout)
    answer.set()
    assert rig.worker.flush(WAIT)


def test_an_unused_or_stopped_worker_is_freed() -> None:
    """A worker that is not used, or has been shut down, leaves nothing behind, not even an open socket."""
    unused, used = Rig(Script()), Rig(Script())
    used.submit()
    used.worker.shutdown(WAIT)
    wait_until(lambda: not threads())
    gone = [weakref.ref(unused.worker), weakref.ref(used.worker)]
    del unused, used
    # The thread that has started the worker's thread may refer to it for a moment longer.
    wait_until(lambda: gc.collect() >= 0 and [ref() for ref in gone] == [None, None])


def test_a_child_that_multiprocessing_made_drains_at_its_exit(rigged: NewRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child of multiprocessing skips atexit: its first step registers one shutdown, which keeps no worker alive."""
    at_exit: list[Callable[[], object]] = []

    def finalize(_: None, call: Callable[[], object], **__: int) -> None:
        at_exit.append(call)

    monkeypatch.setattr(children, "_looked_at_in", {})
    monkeypatch.setattr("multiprocessing.process.parent_process", object)
    monkeypatch.setattr("multiprocessing.util.Finalize", finalize)
    rig = rigged(Script(), max_queue_size=100)
    rig.submit(*(event() for _ in range(100)))
    (drain,) = at_exit
    drain()
    assert len(rig.results) == 100
    wait_until(lambda: not threads())
    collected = Rig(Script())
    collected.submit()
    collected.worker.shutdown(WAIT)
    wait_until(lambda: not threads())
    gone = weakref.ref(collected.worker)
    del collected
    wait_until(lambda: gc.collect() >= 0 and gone() is None)  # as above
    drain()
    assert at_exit == [drain]


def test_no_step_of_many_threads_is_lost(rigged: NewRig) -> None:
    """Each step is delivered, whether it comes while the loop runs, sleeps or starts."""
    script = Script()
    rig = rigged(script, max_queue_size=100_000)
    submitting = [threading.Thread(target=lambda: rig.submit(*(event() for _ in range(300)))) for _ in range(8)]
    for thread in submitting:
        thread.start()
    for thread in submitting:
        thread.join(WAIT)
    assert rig.worker.flush(WAIT)
    assert len({post.body for post in script.posts}) == 2400


def test_each_step_wakes_the_loop(rigged: NewRig) -> None:
    """Each of many steps is delivered without a later one, whatever the loop does when it comes."""
    script = Script()
    rig = rigged(script)
    steps = [event() for _ in range(3000)]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # seconds: the loop's thread is interrupted everywhere
    try:
        for number in range(1500):
            rig.submit(steps.pop())
            for _ in range(number % 100 * 100):  # the loop wakes for the first at about the end of this
                pass
            rig.submit(steps.pop())
            script.wait_for(2)
    finally:
        sys.setswitchinterval(usual)
