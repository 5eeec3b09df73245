"""SIGTERM: owns the signal handler that delivers what is queued before the signal ends the process."""

import logging
import os
import signal
from collections.abc import Iterable

from otel_step_hook.delivery.latch import Latch
from otel_step_hook.delivery.log import log_safely
from otel_step_hook.delivery.native import start_thread
from otel_step_hook.delivery.worker import Worker, existing_workers, longest_timeout, shut_down_all

_LOG_TIME = 0.5  # seconds beyond the shutdown timeout, in which what is left may be logged
_STATUS = 128 + signal.SIGTERM  # what a shell reports of a process that the signal has ended

_is_settled = False  # whether the handler was set, or a line has said why not


def drain_on_sigterm() -> None:
    """Set a handler of SIGTERM that shuts down all workers of its process, and then ends it by the same signal.

    Sets it on the main thread, where the signal has its default handler; otherwise one line says why not, once in a
    process and its children. A handler that is set later replaces this one. Forked children inherit it. Never raises.
    """
    global _is_settled  # noqa: PLW0603 -- the handler belongs to the process, and so does what is known of it
    reason = _set_handler() if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL else "SIGTERM has a handler already"
    if reason and not _is_settled:
        text = (
            "STEP_COMPLETE_DRAIN_ON_SIGTERM has no effect: %s; what is queued is delivered if the process exits by "
            "itself after the signal, or where the application calls shutdown() of its TracerProvider"
        )
        log_safely(logging.WARNING, text, reason)
    _is_settled = True


def _set_handler() -> str:
    """Set the handler. Return why it could not be set, or nothing."""
    try:
        signal.signal(signal.SIGTERM, _on_sigterm)
    except ValueError:
        return "the hook was not made on the main thread"
    return ""


def _on_sigterm(*_: object) -> None:
    # First: a second signal ends the process at once, by the kernel where that is possible, whatever keeps this thread.
    signal.signal(signal.SIGTERM, _end if os.getpid() == 1 else signal.SIG_DFL)
    try:
        _drain()
    finally:  # also after Ctrl-C
        _end()


def _end(*_: object) -> None:
    """End the process by SIGTERM, as if it had no handler."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.raise_signal(signal.SIGTERM)
    os._exit(_STATUS)  # process 1 of a container ignores a signal without a handler


def _drain() -> None:
    workers, ended = existing_workers(), Latch()
    timeout = longest_timeout(workers)
    # Not on this thread: it may have been interrupted while it holds a lock without which no line can be logged. The
    # worker thread, which waits for that lock, would keep the lock of the log's handler, and this thread wait for ever.
    try:
        start_thread(_shut_down, workers, timeout, ended)
    except RuntimeError:  # there are too many threads, or the interpreter exits
        _shut_down(workers, timeout, ended)
    ended.wait(timeout + _LOG_TIME)


def _shut_down(workers: Iterable[Worker], timeout: float, ended: Latch) -> None:
    try:
        shut_down_all(workers, timeout)
    finally:
        ended.set()
