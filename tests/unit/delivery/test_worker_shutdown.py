"""The worker's shutdown: within its limit, from anywhere, and with an account of every step."""

import logging
import threading

import pytest
from dispatching import WAIT
from working import AT_ONCE, CountingWorker, Receiver, lines, seconds, submission, threads, wait_until, working

from otel_step_hook.delivery import worker as worker_module


def _acquire(semaphore: threading.Semaphore, count: int) -> None:
    for _ in range(count):
        assert semaphore.acquire(timeout=WAIT)


def test_on_its_own_thread() -> None:
    """Where nobody could do the work meanwhile, flush() says no and shutdown() returns, both at once."""
    said: list[object] = []
    receiver = Receiver()

    def meanwhile() -> None:
        receiver.meanwhile = int
        said.append(worker.flush(WAIT))
        said.append(worker.shutdown(WAIT))  # type: ignore[func-returns-value]  # -- that it returns is what counts

    receiver.meanwhile = meanwhile
    with working(receiver) as worker:
        worker.submit(submission())
        worker.submit(submission())
        wait_until(lambda: not worker.is_running)
    assert said == [False, None]
    assert len(receiver.bodies) == 2


def test_shutdown_keeps_its_limit(caplog: pytest.LogCaptureFixture) -> None:
    """A receiver that hangs costs the limit; what it has not taken is discarded, and the thread ends."""
    receiver = Receiver()
    receiver.gate.clear()
    with working(receiver, concurrency=2) as worker:
        for _ in range(5):
            worker.submit(submission())
        _acquire(receiver.arrived, 2)
        assert 0.2 < seconds(lambda: worker.shutdown(0.3)) < 0.3 + AT_ONCE
        assert worker.pending == 0
    first, rest = lines(caplog)
    assert first.startswith("discarded step step-")
    assert rest.startswith("4 more like this: discarded step step-")


def test_shutdown_keeps_its_limit_when_the_thread_is_stuck(caplog: pytest.LogCaptureFixture) -> None:
    """It returns all the same, once it is up; it says what is left, once; and calling again costs nothing."""
    released = threading.Event()
    receiver = Receiver(lambda: released.wait(WAIT))
    with working(receiver) as worker:
        worker.submit(submission())
        worker.submit(submission())
        _acquire(receiver.arrived, 1)
        assert 0.2 <= seconds(lambda: worker.shutdown(0.2)) < 0.2 + AT_ONCE
        assert seconds(lambda: worker.shutdown(WAIT)) < AT_ONCE
        assert lines(caplog) == ["shutdown took its 0.2 s; 2 steps have no last word"]
        released.set()


def test_shutdown_before_anything() -> None:
    """It starts no thread, and neither does flush() after it; a later shutdown() has a limit of its own."""
    with working(Receiver()) as worker:
        worker.shutdown(0)
        assert worker.flush(WAIT)
        worker.shutdown(WAIT)
        assert threads() == []


def test_after_shutdown(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are dropped and told of; a thread is started for that now and then, however many they are."""
    monkeypatch.setattr(worker_module, "_LATE", 60.0)  # seconds: longer than this test
    receiver = Receiver()
    with working(receiver) as worker:
        worker.submit(submission())
        worker.shutdown(WAIT)
        wait_until(lambda: not worker.is_running)  # or the thread that is about to end takes the first late step, too
        for _ in range(5):
            worker.submit(submission())
            wait_until(lambda: not worker.is_running)
        assert worker.starts == 2  # one for the first step, and one for the first that was late
        for _ in range(495):
            worker.submit(submission())
        worker.tell_fault(LookupError())
        worker.shutdown(WAIT)
        assert not worker._own.inbox.has_work()
    assert worker.dropped == ["shutdown"] * 500
    assert len(receiver.bodies) == 1
    told = "dropped a step (shutdown): the step ended after shutdown()"
    assert lines(caplog) == [told, "a fault of otel-step-hook: LookupError", f"499 more like this: {told}"]


def test_late_steps_are_told_of_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """However often a thread is started to count them."""
    told = "dropped a step (shutdown): the step ended after shutdown()"
    with working(Receiver()) as worker:
        worker.shutdown(WAIT)
        for _ in range(3):
            worker._own.late_at = 0.0  # a second later
            worker.submit(submission())
            wait_until(lambda: not worker.is_running and not worker._own.inbox.has_work())
        assert worker.starts == 3
        assert lines(caplog) == [told]
        worker.submit(submission())
    assert lines(caplog) == [told, f"3 more like this: {told}"]


@pytest.mark.parametrize("limit", [WAIT, 0.0])
def test_submitting_while_it_shuts_down(limit: float, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever comes first: each step is delivered, discarded or dropped, and the thread ends."""
    caplog.set_level(logging.ERROR)
    for _ in range(40):
        receiver = Receiver()
        submitted: list[int] = []
        with working(receiver, max_queue_size=10) as worker:

            def submit(worker: CountingWorker = worker, submitted: list[int] = submitted) -> None:
                for number in range(60):
                    worker.submit(submission())
                    submitted.append(number)

            submitting = [threading.Thread(target=submit) for _ in range(3)]
            for thread in submitting:
                thread.start()
            worker.shutdown(limit)
            for thread in submitting:
                thread.join(WAIT)
        assert worker.pending == 0
        if limit:
            assert len(receiver.bodies) + len(worker.dropped) == len(submitted)
