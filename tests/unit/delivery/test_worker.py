"""The worker: a thread on first use, a bound that holds, waits that end, and no event without an account."""

import functools
import gc
import sys
import threading
import tracemalloc
import weakref

import pytest
from dispatching import WAIT
from working import CountingWorker, Receiver, lines, submission, threads, wait_until, working

from otel_step_hook import ConfigurationError, StepHookSettings
from otel_step_hook.delivery import worker as worker_module
from otel_step_hook.delivery.worker import Worker


def _has_ended(worker: CountingWorker) -> bool:
    return not worker.is_running


def _acquire(semaphore: threading.Semaphore, count: int) -> None:
    for _ in range(count):
        assert semaphore.acquire(timeout=WAIT)


def test_the_thread_starts_with_the_first_step() -> None:
    """Not when the worker is made, not in the fork hook; it is one, and it ends with shutdown()."""
    with working(Receiver()) as worker:
        assert threads() == []
        worker.after_fork()
        assert threads() == []
        for _ in range(20):
            worker.submit(submission())
        assert worker.flush(WAIT)
        assert len(threads()) == 1
        assert threads()[0].daemon


def test_settings_that_cannot_be_used() -> None:
    """They are told when the worker is made, and no thread starts."""
    with pytest.raises(ConfigurationError):
        Worker(StepHookSettings(webhook="https://receiver.test", certificate="/does/not/exist"))
    assert threads() == []


def test_the_bound(caplog: pytest.LogCaptureFixture) -> None:
    """Exactly so many events are taken, those in flight included; the newest are dropped, and told of twice at most."""
    receiver = Receiver()
    receiver.gate.clear()
    with working(receiver, max_queue_size=5, concurrency=2) as worker:
        for _ in range(5):
            worker.submit(submission())
        _acquire(receiver.arrived, 2)
        assert (worker.pending, worker.dropped) == (5, [])
        for _ in range(30):
            worker.submit(submission())
        assert (worker.pending, worker.dropped) == (5, ["queue_full"] * 30)
        receiver.gate.set()
        assert worker.flush(WAIT)
        assert worker.pending == 0
        worker.submit(submission())
        assert worker.flush(WAIT)
    assert len(receiver.bodies) == 6
    told = "dropped a step (queue_full): STEP_COMPLETE_MAX_QUEUE_SIZE events are waiting; the newest are dropped"
    assert lines(caplog) == [told, f"29 more like this: {told}"]


def test_a_stuck_thread_costs_little(caplog: pytest.LogCaptureFixture) -> None:
    """While the sender's thread is stuck, each further step, fault or flush takes no memory and no wait."""
    released = threading.Event()
    receiver = Receiver(lambda: released.wait(WAIT))
    with working(receiver, max_queue_size=1, concurrency=1) as worker:
        worker.submit(submission())
        _acquire(receiver.arrived, 1)
        dropped, error = submission(), LookupError()
        tracemalloc.start()
        for _ in range(20_000):
            worker.submit(dropped)
            worker.tell_fault(error)
            worker.flush(0)
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        released.set()
    assert len(worker.dropped) == 20_000
    assert size < 500_000  # bytes: the list of what was dropped, and a hundred flushes
    counts = [line.partition(" more like this")[0] for line in lines(caplog) if "more like this" in line]
    assert counts == ["19999", "19999"]


def test_faults_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """What went wrong on the application's threads is told by type and place, and counted after that."""
    with working(Receiver()) as worker:
        for _ in range(3):
            try:
                next(iter(()))
            except StopIteration as error:
                error.args = ("a secret",)
                worker.tell_fault(error)
                worker.drop("unreadable", error)
    assert "a secret" not in caplog.text
    told = sorted(line.partition("test_worker.py")[0] for line in lines(caplog))
    fault, drop = "a fault of otel-step-hook: StopIteration <- ", "dropped a step (unreadable): StopIteration <- "
    assert told == sorted([fault, drop, f"2 more like this: {fault}", f"2 more like this: {drop}"])


def test_flush() -> None:
    """It waits for what was submitted before, for as long as it is told to, and says which of the two."""
    receiver = Receiver()
    with working(receiver) as worker:
        assert worker.flush(0)
        receiver.gate.clear()
        worker.submit(submission())
        assert not worker.flush(0.05)
        assert not worker.flush(0)
        assert not worker.flush(-1)
        receiver.gate.set()
        assert worker.flush(WAIT)


def test_flush_does_not_wait_for_what_comes_later() -> None:
    """Steps that end while it waits do not prolong it."""
    receiver = Receiver()
    receiver.gate.clear()
    with working(receiver, concurrency=1) as worker:
        worker.submit(submission())
        flushed: list[bool] = []
        waiting = threading.Thread(target=lambda: flushed.append(worker.flush(WAIT)))
        waiting.start()
        _acquire(receiver.arrived, 1)
        wait_until(lambda: not worker._own.inbox.flushes.qsize())
        receiver.meanwhile = receiver.gate.clear
        receiver.gate.set()
        worker.submit(submission())
        waiting.join(WAIT)
        receiver.meanwhile = int
        receiver.gate.set()
    assert flushed == [True]


def test_a_slot_that_ctrl_c_has_cost() -> None:
    """A KeyboardInterrupt in the middle of submit() may take a slot for ever; nobody waits or spins for it."""
    with working(Receiver()) as worker:
        worker._own.inbox.store._slots.pop()
        assert worker.flush(WAIT)
        worker.shutdown(WAIT)
        wait_until(lambda: not worker.is_running)


def test_it_can_be_collected() -> None:
    """A worker that is not used, or has been shut down, leaves nothing behind, not even an open socket."""
    unused, used = CountingWorker(Receiver()), CountingWorker(Receiver())
    used.submit(submission())
    used.shutdown(WAIT)
    wait_until(functools.partial(_has_ended, used))
    gone: list[weakref.ref[Worker]] = [weakref.ref(unused), weakref.ref(used)]
    del unused, used
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    worker_module._shut_down(gone[0], WAIT)  # at the exit of a process that multiprocessing made


def test_many_threads_submit() -> None:
    """No wake-up is lost, whoever submits while the loop looks, sleeps or starts."""
    receiver = Receiver()
    with working(receiver, max_queue_size=100_000) as worker:

        def submit() -> None:
            for _ in range(300):
                worker.submit(submission())

        submitting = [threading.Thread(target=submit) for _ in range(8)]
        for thread in submitting:
            thread.start()
        for thread in submitting:
            thread.join(WAIT)
        assert worker.flush(WAIT)
        assert len(set(receiver.bodies)) == 2400


def test_single_steps_are_not_left_lying() -> None:
    """Each of many steps, whatever the loop is about to do when it comes, is delivered without another to push it."""
    receiver = Receiver()
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # seconds: the loop's thread is interrupted everywhere
    try:
        with working(receiver) as worker:
            for number in range(1500):
                worker.submit(submission())
                for _ in range(number % 100 * 100):  # until about then the loop has heard of the first
                    pass
                worker.submit(submission())
                _acquire(receiver.arrived, 2)
    finally:
        sys.setswitchinterval(usual)
