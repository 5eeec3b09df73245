"""Threads of the operating system: the signals that they get, and how one wakes another."""

import contextlib
import os
import queue
import signal
import sys
import types

import pytest

from otel_step_hook.delivery import native
from otel_step_hook.delivery.native import start_thread

LIMIT = 10.0  # seconds


def _blocked() -> set[signal.Signals]:
    return {one for one in signal.pthread_sigmask(signal.SIG_BLOCK, ()) if isinstance(one, signal.Signals)}


def _blocked_in_a_new_thread() -> set[signal.Signals]:
    blocked: queue.Queue[set[signal.Signals]] = queue.Queue()
    start_thread(lambda: blocked.put(_blocked()))
    return blocked.get(timeout=LIMIT)


def test_under_uwsgi_a_thread_gets_no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that starts it gets the same signals as before."""
    monkeypatch.setitem(sys.modules, "uwsgi", types.ModuleType("uwsgi"))
    before = _blocked()
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGHUP} <= _blocked_in_a_new_thread()
    assert _blocked() == before


def test_elsewhere_a_thread_gets_the_signals_of_the_one_that_starts_it() -> None:
    """Nothing is changed: a program that a log handler starts on the thread would inherit what is blocked."""
    assert _blocked_in_a_new_thread() == _blocked()


def test_a_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calling thread gets its signals again."""
    monkeypatch.setitem(sys.modules, "uwsgi", types.ModuleType("uwsgi"))
    before = _blocked()
    with pytest.raises(TypeError):
        start_thread("no function")  # type: ignore[arg-type]  # -- it cannot be started
    assert _blocked() == before


@pytest.mark.parametrize("missing", [False, True])
def test_a_byte_is_written(monkeypatch: pytest.MonkeyPatch, *, missing: bool) -> None:
    """Also by a Python that was built without ctypes; where there is no room for it, nothing is raised."""
    if missing:
        monkeypatch.setitem(sys.modules, "ctypes", None)
    monkeypatch.setattr(native, "_write", native._writer())
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    native.write_byte(writer)
    assert os.read(reader, 10) == b"\0"
    written = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            written += os.write(writer, bytes(4096))
    native.write_byte(writer)
    os.close(writer)
    found = 0
    while content := os.read(reader, 65_536):
        found += len(content)
    os.close(reader)
    assert found == written
