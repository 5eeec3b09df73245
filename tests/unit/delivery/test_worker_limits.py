"""The worker where the system gives no more threads or files, and where a fork comes in between."""

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


@pytest.mark.parametrize("left", range(3))  # of the three that a loop takes
def test_no_descriptors(rigged: NewRig, left: int, caplog: pytest.LogCaptureFixture) -> None:
    """While no event loop can be made, which is logged once, steps wait; as soon as one can, they are delivered."""
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
    """It returns, says what is left, and leaves no thread that would try for ever, where it ran inline, too."""
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


def test_no_threads(rigged: NewRig) -> None:
    """Where none can be started, flush() says so at once, and shutdown() delivers on its own thread."""
    script = Script()
    rig = rigged(script)
    with no_more_threads():
        rig.submit()
        assert seconds(lambda: rig.worker.flush(WAIT)) < AT_ONCE
        assert script.posts == []
        rig.worker.shutdown(WAIT)
        assert rig.worker.flush(0)
    assert len(script.posts) == 1


def test_no_threads_for_a_while(rigged: NewRig) -> None:
    """Steps that no thread could be started for are delivered with the first for which one can."""
    script = Script()
    rig = rigged(script)
    with no_more_threads():
        rig.submit()
    rig.deliver()
    assert len(script.posts) == 2


def test_one_thread_and_no_more(rigged: NewRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first thread cannot start the second, it does the work itself."""

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


def test_a_fork_in_the_middle_of_submit(rigged: NewRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that a signal handler forks before submit() has started the thread does not do the parent's work."""

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
