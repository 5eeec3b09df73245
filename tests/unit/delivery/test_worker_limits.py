"""The worker where the system gives no more threads or files, and where a fork has left it with less than before."""

import contextlib
import gc
import os
import resource
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from dispatching import WAIT
from working import AT_ONCE, Receiver, lines, no_more_threads, seconds, submission, threads, wait_until, working

from otel_step_hook.delivery import turn as turn_module
from otel_step_hook.delivery import worker as worker_module
from otel_step_hook.delivery.turn import Bell


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault costs less time than in life."""
    monkeypatch.setattr(worker_module, "_PAUSE_AFTER_FAULT", 0.02)


@contextlib.contextmanager
def _no_more_descriptors(but: int = 0) -> Iterator[None]:
    """Let the system refuse every new file and socket, but for so many."""
    gc.collect()  # or what earlier tests have left would give some back in the middle of this one
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.dup(0) for _ in range(but + 1)]  # the numbers that the next ones would get
    for number in free:
        os.close(number)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free), usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)


@pytest.mark.parametrize("left", range(5))  # of the five that a loop takes
def test_no_descriptors(left: int, caplog: pytest.LogCaptureFixture) -> None:
    """While no event loop can be made this is told once, and the steps wait; as soon as one can, they are delivered."""
    receiver = Receiver()
    with working(receiver) as worker:
        with _no_more_descriptors(but=left):
            worker.submit(submission())
            wait_until(lambda: lines(caplog))
            assert not worker.flush(0.01)
        assert worker.flush(WAIT)
    assert len(receiver.bodies) == 1
    assert [line.partition(" <- ")[0] for line in lines(caplog)] == ["a fault of otel-step-hook: OSError"]


@pytest.mark.parametrize("start", [contextlib.nullcontext, no_more_threads])
def test_shutdown_keeps_its_limit_without_descriptors(
    start: type[contextlib.AbstractContextManager[None]], caplog: pytest.LogCaptureFixture
) -> None:
    """It returns, says what is left, and leaves no thread that would try for ever, where it ran inline, too."""
    with working(Receiver()) as worker, _no_more_descriptors(), start():
        worker.submit(submission())
        assert seconds(lambda: worker.shutdown(0.3)) < 0.3 + AT_ONCE
        wait_until(lambda: not worker.is_running)
        assert worker.pending == 1
        worker._own = worker_module._Generation(1)  # or the end of this test would wait for the step
    assert "shutdown took its 0.3 s; 1 steps have no last word" in lines(caplog)


def test_no_threads() -> None:
    """Where none can be started, flush() says so at once, and shutdown() delivers on its own thread."""
    receiver = Receiver()
    with working(receiver) as worker, no_more_threads():
        worker.submit(submission())
        assert seconds(lambda: worker.flush(WAIT)) < AT_ONCE
        assert receiver.bodies == []
        worker.shutdown(WAIT)
        assert (worker.pending, len(receiver.bodies)) == (0, 1)


def test_no_threads_for_a_while() -> None:
    """Steps that no thread could be started for are delivered with the first for which one can."""
    receiver = Receiver()
    with working(receiver) as worker:
        with no_more_threads():
            worker.submit(submission())
        worker.submit(submission())
        assert worker.flush(WAIT)
        assert len(receiver.bodies) == 2


def test_one_thread_and_no_more() -> None:
    """Where the first thread cannot start the second, it does the work itself."""
    receiver = Receiver()
    with working(receiver) as worker:
        assert worker._own.running.acquire(blocking=False)
        ready = threading.Event()
        helper = threading.Thread(target=lambda: (ready.wait(WAIT), worker._start(worker._own)))  # type: ignore[func-returns-value]  # -- one after the other
        helper.start()
        with no_more_threads():
            ready.set()
            wait_until(lambda: worker._own.turn)
        worker.submit(submission())
        assert worker.flush(WAIT)
        worker.shutdown(WAIT)
        helper.join(WAIT)
        assert len(receiver.bodies) == 1


def test_a_thread_of_the_parent_is_not_started() -> None:
    """A signal handler that forks in the middle of submit() does not make the child do the parent's work."""
    receiver = Receiver()
    with working(receiver) as worker:
        own = worker._own
        assert own.running.acquire(blocking=False)
        worker.submit(submission())
        worker.after_fork()
        worker._start(own)
        assert threads() == []
        assert (worker.pending, receiver.bodies) == (0, [])


def test_the_bell(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be rung any number of times while nobody listens, and is rung but once until it has been heard."""
    now = 1000.0
    monkeypatch.setattr(turn_module, "time", SimpleNamespace(monotonic=lambda: now))  # a clock that stands still
    bell = Bell()
    for _ in range(10_000):
        bell.ring()
    assert bell.heard.recv(100) == b"\0"
    bell.ring()  # as if Ctrl-C had come before the wake-up went out
    with pytest.raises(BlockingIOError):
        bell.hear()
    now += 0.1
    bell.ring()
    bell.hear()
    bell.ring()
    assert bell.heard.recv(100) == b"\0"


def test_a_bell_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """While so much is on its way that nothing goes in any more, ringing does no harm."""
    monkeypatch.setattr(turn_module, "_RING_AGAIN", -1.0)
    bell = Bell()
    for _ in range(10_000):
        bell.ring()
    bell.hear()
