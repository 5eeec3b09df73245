"""Threads, locks and polls of the operating system, also where gevent or eventlet have replaced Python's by greenlets.

After their monkey patching, `_thread.start_new_thread` starts a greenlet on the calling thread. An event loop in it
makes `asyncio.run` fail everywhere else on that thread, because one is running already. The application may patch
before or after it imports this module, so the originals are looked up at each use.
"""

import _thread
import contextlib
import functools
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from otel_step_hook.delivery.clock import monotonic

_POLL_INTERVAL = 0.005  # seconds in which other greenlets run, between two attempts to acquire a lock


def is_patched() -> bool:
    """Whether Python's threads are greenlets now."""
    return bool(_original(_thread, "start_new_thread") is not _thread.start_new_thread)


def start_thread(function: Callable[..., object], *arguments: object) -> None:
    """Start a thread that does not keep the process alive. Raises RuntimeError when none can be started.

    Under uWSGI neither the thread nor those that it starts get signals.
    """
    start = functools.partial(_original(_thread, "start_new_thread"), function, arguments)
    if "uwsgi" in sys.modules:
        _call_without_signals(start)
    else:
        start()


def _call_without_signals(start: Callable[[], object]) -> None:
    """Call *start* while this thread, and with it what it starts, gets no signals.

    A handler in C runs on the thread that gets the signal, and a new thread may get it before it runs any Python. That
    of uWSGI's workers exits the process, which waits for the main thread, and therefore hangs on any other one.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        start()
    finally:  # a signal handler may raise, but only after each call
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def allocate_lock() -> Any:
    """Return a new lock, as `threading.Lock` does."""
    return _original(_thread, "allocate_lock")()


def get_ident() -> int:
    """Return the identifier of the calling thread, which all of its greenlets share."""
    ident: int = _original(_thread, "get_ident")()
    return ident


def _writer() -> Callable[[int, bytes, int], int]:
    """Return C's `write` as a function that keeps the interpreter's lock, where it can be called."""
    try:
        import ctypes  # noqa: PLC0415 -- some builds of Python have none

        write: Callable[[int, bytes, int], int] = ctypes.PyDLL(None).write
    except (ImportError, OSError, TypeError, AttributeError):
        return lambda file, content, _: os.write(file, content)
    return write


_write = _writer()


def write_byte(file: int) -> None:
    """Write a byte to the non-blocking *file*, and ignore that there is no room for it.

    Keeps the interpreter's lock. `os.write` gives it away, and waits for it again: for 5 ms or more where other threads
    compute.
    """
    with contextlib.suppress(BlockingIOError):
        _write(file, b"\0", 1)


def getaddrinfo(*arguments: Any) -> list[Any]:
    """Look up a name as `socket.getaddrinfo` does, and block the calling thread meanwhile."""
    addresses: list[Any] = _original(socket, "getaddrinfo")(*arguments)
    return addresses


def is_readable(connection: Any) -> bool:
    """Whether bytes of *connection*, a socket, have arrived and are not read, or its end. Does not wait."""
    if sys.platform == "win32":  # pragma: no cover -- it has no poll
        return bool(select.select([connection], [], [], 0)[0])
    poll = _original(select, "poll")()  # not a selector of the module `selectors`: it takes four times as long
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def acquire(lock: Any, timeout: float) -> bool:
    """Acquire *lock* within *timeout* seconds. Other greenlets of the calling thread run meanwhile."""
    if not is_patched():
        return bool(lock.acquire(timeout=timeout))
    deadline = monotonic() + timeout
    while not lock.acquire(blocking=False):
        if monotonic() >= deadline:
            return False
        time.sleep(_POLL_INTERVAL)  # patched, too: it switches to other greenlets
    return True


def sleep(seconds: float) -> None:
    """Sleep as `time.sleep` does, and block the calling thread meanwhile."""
    _original(time, "sleep")(seconds)


def _original(module: ModuleType, name: str) -> Any:
    """Return the attribute *name* of *module* as it was before monkey patching."""
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    if gevent is not None:
        return gevent.get_original(module.__name__, name)
    if eventlet is not None:
        return getattr(eventlet.original(module.__name__), name)
    return getattr(module, name)
