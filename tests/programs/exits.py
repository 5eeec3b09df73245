"""Ends steps, and then itself, in the way that its argument names."""

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

from application import end_step, end_steps, hook, provider

_AT_ONCE = 5.0  # seconds; what waits for something takes longer, even on a busy machine


def plainly() -> None:
    """Steps end, and the program with an exit code of its own."""
    end_steps("step", 3)
    sys.exit(3)


def by_exception() -> None:
    """An exception that nobody catches."""
    end_steps("step", 3)
    raise LookupError("the application's own")


def by_interrupt() -> None:
    """Ctrl-C."""
    end_steps("step", 3)
    print("ready", flush=True)
    while True:
        time.sleep(0.05)  # not for ever: a signal right before it does not end it


def by_thread() -> None:
    """A thread that is no daemon ends the last step when the main thread has ended."""

    def work() -> None:
        threading.main_thread().join()
        end_step("step-2")

    end_steps("step", 2)
    threading.Thread(target=work).start()


def with_names_that_hang() -> None:
    """The resolver does not answer."""
    # In the place of a DNS server that swallows questions: there is none to be had on loopback.
    socket.getaddrinfo = lambda *_, **__: threading.Event().wait()  # type: ignore[assignment]  # -- see above
    plainly()


def in_exit_handler() -> None:
    """The first step ends when the interpreter starts no threads any more."""
    atexit.register(end_steps, "step", 3)
    sys.exit(3)


def in_earlier_exit_handler() -> None:
    """A handler that the application has registered before its first step ends the last one."""
    atexit.register(end_step, "step-2")
    end_steps("step", 2)
    sys.exit(3)


def flushed_in_exit_handler() -> None:
    """As above, and somebody wants to wait for it."""

    def end_and_flush() -> None:
        end_steps("step", 3)
        print(_how_long(hook.force_flush), flush=True)

    atexit.register(end_and_flush)
    sys.exit(3)


def after_shutdown() -> None:
    """Steps end after shutdown(), for a while, and once more at exit."""
    end_step("step-0")
    provider.shutdown()
    most = 0
    for number in range(200):
        end_step(f"late-{number}")
        most = max(most, threading.active_count())
    atexit.register(end_step, "last")
    print("threads at most:", most)


def by_many_shutdowns() -> None:
    """Several threads shut down at once."""
    end_steps("step", 20)
    threads = [threading.Thread(target=provider.shutdown if number % 2 else hook.shutdown) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(_how_long(_shut_down_again))


def by_signal_handler() -> None:
    """A signal handler shuts down, in the middle of the application's work, and ends the process."""
    stopped = threading.Event()  # Python ignores what a handler raises in the moment in which a generator is closed

    def stop(*_: object) -> None:
        provider.shutdown()
        stopped.set()
        sys.exit(3)

    signal.signal(signal.SIGTERM, stop)
    end_steps("step", 3)
    print("ready", flush=True)
    while not stopped.is_set():
        end_step("many")
    sys.exit(3)


def at_any_moment() -> None:
    """Thirty children end while the thread is at work; each says how."""
    pids = []
    for number in range(30):
        pids.append(os.fork())
        if not pids[-1]:
            end_steps(f"step-{number}", 5)
            until = time.monotonic() + number * 0.0003  # seconds; the first deliveries take about 10 ms
            while time.monotonic() < until:
                pass
            sys.exit(7)
    for pid in pids:
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _shut_down_again() -> None:
    for _ in range(20):
        hook.shutdown()


def _how_long(call: Callable[[], object]) -> str:
    began = time.monotonic()
    call()
    seconds = time.monotonic() - began
    return "at once" if seconds < _AT_ONCE else f"after {seconds:.1f} s"


if __name__ == "__main__":
    globals()[sys.argv[1]]()
