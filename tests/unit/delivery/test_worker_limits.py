"""The worker when no more threads or descriptors can be had, and when a fork interrupts submit()."""

import _thread
import contextlib
import gc
import os
import resource
import threading
from collections.abc import Callable, Iterator

import pytest
from delivering import AT_ONCE, WAIT, NewRig, Script, no_more_threads, seconds, threads, wait_until
from support import log_lines

pytestmark = pytest.mark.usefixtures("short_pause")


@contextlib.contextmanager
def _no_more_descriptors(but: int = 0) -> Iterator[None]:
    """Make the system refuse new files and sockets, except for *but* of them."""
    gc.collect()  # or the garbage of earlier tests would close some in the middle of this one
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.dup(0) for _ in range(but + 1)]  # the descriptors that would be opened next
    for number in free:
        os.close(number)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free), usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)


@pytest.mark.parametrize("left", range(3))  # of the three that a loop takes
def test_steps_wait_while_no_event_loop_can_be_made(
    rigged: NewRig, left: int, caplog: pytest.LogCaptureFixture
) -> None:
    """If no event loop can be made, which is logged once, steps wait until one can."""
    script = Script()
    rig = rigged(script)
    with _no_more_descriptors(but=left):
        rig.submit()
        wait_until(lambda: caplog.records)
        assert not rig.worker.flush(0.01)
    assert rig.worker.flush(WAIT)
    rig.worker.shutdown(WAIT)
    assert len(script.posts) == 1
    assert [line.partition(" <- ")[0] for line in log_lines(caplog)] == ["ERROR a fault of otel-step-hook: OSError"]


@pytest.mark.parametrize("start", [contextlib.nullcontext, no_more_threads])
def test_shutdown_keeps_its_limit_without_descriptors(
    rigged: NewRig, start: Callable[[], contextlib.AbstractContextManager[None]], caplog: pytest.LogCaptureFixture
) -> None:
    """A shutdown returns in time, logs the number of steps that are left, and leaves no thread that tries for ever."""
    rig = rigged(Script())
    with _no_more_descriptors(), start():
        rig.submit()
        assert seconds(lambda: rig.worker.shutdown(0.3)) < 0.3 + AT_ONCE
        wait_until(lambda: not threads())
        assert not rig.worker.flush(0)
    assert rig.worker.flush(WAIT)
    assert [result for _, result, _ in rig.results] == ["discarded"]
    assert (
        "ERROR shutdown took its 0.3 s; 1 steps for endpoint default are neither delivered nor discarded"
        in log_lines(caplog)
    )


def test_without_threads_a_shutdown_delivers_on_its_own_thread(rigged: NewRig) -> None:
    """If no thread can be started, flush() returns False at once, and shutdown() delivers."""
    script = Script()
    rig = rigged(script)
    with no_more_threads():
        rig.submit()
        assert seconds(lambda: rig.worker.flush(WAIT)) < AT_ONCE
        assert script.posts == []
        rig.worker.shutdown(WAIT)
        assert rig.worker.flush(0)
    assert len(script.posts) == 1


def test_steps_wait_until_a_thread_can_be_started(rigged: NewRig) -> None:
    """Steps for which no thread could be started are delivered with the next step."""
    script = Script()
    rig = rigged(script)
    with no_more_threads():
        rig.submit()
    rig.deliver()
    assert len(script.posts) == 2


def test_the_first_thread_does_the_work_if_it_cannot_start_the_second(
    rigged: NewRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no second thread can be started, the loop runs on the thread that was to start it."""

    def start(function: Callable[..., object], args: tuple[object, ...]) -> None:
        usual(threading.Thread(target=function, args=args))

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    usual = threading.Thread.start
    monkeypatch.setattr(_thread, "start_new_thread", start)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    script = Script()
    rig = rigged(script)
    rig.deliver()
    rig.worker.shutdown(WAIT)
    assert len(script.posts) == 1


def test_a_fork_during_submit_leaves_the_work_to_the_parent(rigged: NewRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that is forked before submit() has started the thread does not deliver the parent's steps."""

    def start(function: Callable[..., object], args: tuple[object, ...]) -> None:
        rig.worker.after_fork()
        function(*args)

    script = Script()
    rig = rigged(script)
    with monkeypatch.context() as forking:
        forking.setattr(_thread, "start_new_thread", start)
        rig.submit()
    assert threads() == []
    assert rig.worker.flush(0)
    rig.deliver()
    assert len(script.posts) == 1
