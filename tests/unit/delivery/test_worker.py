"""The worker: a thread on first use, a bound that holds, waits that end, and no event without an account."""

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
from otel_step_hook.delivery import loop

FULL = (
    "dropped a step (queue_full, endpoint default): "
    "STEP_COMPLETE_MAX_QUEUE_SIZE events are waiting; the newest are dropped"
)


def test_the_thread_starts_with_the_first_step(rigged: NewRig) -> None:
    """Not when the worker is made, nor in the fork hook; it is one, and a daemon."""
    rig = rigged(Script())
    rig.worker.after_fork()
    assert threads() == []
    rig.deliver(*(event() for _ in range(20)))
    wait_until(lambda: len(threads()) == 1)  # a second that was started meanwhile has ended
    assert threads()[0].daemon


def test_settings_that_cannot_be_used() -> None:
    """They raise when the hook is made, and no thread starts."""
    with pytest.raises(ConfigurationError):
        StepHookProcessor("https://receiver.test", certificate="/does/not/exist")
    assert threads() == []


def test_the_bound(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """Exactly so many events are taken, those in flight included; the newest are dropped, logged and counted."""
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
    """While the worker's thread is stuck, each further step, fault or flush takes no memory and no wait."""
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
    assert size < 300_000  # bytes: a hundred flushes
    assert counts(caplog) == {FULL: 20_000, "a fault of otel-step-hook: LookupError": 20_000}


def test_a_thread_that_is_stuck_for_minutes_blocks_nobody(rigged: NewRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many wake-ups it has not heard, submit() returns, and the steps are delivered once it goes on."""
    released = threading.Event()
    script = Script(functools.partial(released.wait, WAIT), DELIVERED)
    rig = rigged(script)
    rig.submit()
    script.wait_for(1)
    clock = iter(range(10**9, 10**10))
    with monkeypatch.context() as quick:
        quick.setattr(loop, "monotonic", lambda: float(next(clock)))  # in steps of a second
        for _ in range(1_000):
            rig.submit()
    released.set()
    assert rig.worker.flush(WAIT)


def test_faults_are_logged_once(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """What went wrong on the application's threads is logged by type and place, and counted after that."""
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


def test_flush(rigged: NewRig) -> None:
    """It waits for what was submitted before, up to its timeout, and says whether that was enough."""
    answer = threading.Event()
    rig = rigged(Script(answer))
    assert rig.worker.flush(0)
    rig.submit()
    for timeout in (0.05, 0, -1):
        assert not rig.worker.flush(timeout)
    answer.set()
    assert rig.worker.flush(WAIT)


def test_it_can_be_collected() -> None:
    """A worker that is not used, or has been shut down, leaves nothing behind, not even an open socket."""
    unused, used = Rig(Script()), Rig(Script())
    used.submit()
    used.worker.shutdown(WAIT)
    wait_until(lambda: not threads())
    gone = [weakref.ref(unused.worker), weakref.ref(used.worker)]
    del unused, used
    # The thread that has started the worker's own may hold it for a moment longer.
    wait_until(lambda: gc.collect() >= 0 and [ref() for ref in gone] == [None, None])


def test_a_child_that_multiprocessing_made_drains_at_its_exit(rigged: NewRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a child skips atexit: the first step arranges for a shutdown, once, which does not keep the worker alive."""
    at_exit: list[Callable[[], object]] = []

    def finalize(_: None, call: Callable[..., object], args: tuple[object, ...], **__: int) -> None:
        at_exit.append(functools.partial(call, *args))

    monkeypatch.setattr("multiprocessing.process.parent_process", object)
    monkeypatch.setattr("multiprocessing.util.Finalize", finalize)
    rig = rigged(Script(), max_queue_size=100)
    rig.submit(*(event() for _ in range(100)))
    (drain,) = at_exit
    drain()
    assert len(rig.results) == 100
    wait_until(lambda: not threads())
    rig.submit()  # starts another thread, to log that it came too late
    assert at_exit == [drain]
    collected = Rig(Script())
    collected.submit()
    collected.worker.shutdown(WAIT)
    wait_until(lambda: not threads())
    gone = weakref.ref(collected.worker)
    del collected
    wait_until(lambda: gc.collect() >= 0 and gone() is None)  # as above
    at_exit[1]()


def test_many_threads_submit(rigged: NewRig) -> None:
    """No wake-up is lost, whether a step comes while the loop looks, sleeps or starts."""
    script = Script()
    rig = rigged(script, max_queue_size=100_000)
    submitting = [threading.Thread(target=lambda: rig.submit(*(event() for _ in range(300)))) for _ in range(8)]
    for thread in submitting:
        thread.start()
    for thread in submitting:
        thread.join(WAIT)
    assert rig.worker.flush(WAIT)
    assert len({post.body for post in script.posts}) == 2400


def test_single_steps_are_not_left_lying(rigged: NewRig) -> None:
    """Each of many steps, whatever the loop is about to do when it comes, is delivered without another to push it."""
    script = Script()
    rig = rigged(script)
    steps = [event() for _ in range(3000)]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # seconds: the loop's thread is interrupted everywhere
    try:
        for number in range(1500):
            rig.submit(steps.pop())
            for _ in range(number % 100 * 100):  # until about then the loop has heard of the first
                pass
            rig.submit(steps.pop())
            script.wait_for(2)
    finally:
        sys.setswitchinterval(usual)
