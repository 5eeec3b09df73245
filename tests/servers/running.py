"""Servers that run as processes of their own, on loopback ports that no other program is given by chance."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

LIMIT = 40.0  # seconds; a server starts within ten on a busy machine, and ends within two
_PORTS = range(20000, 32000)  # below those that Linux (from 32768) and macOS (from 49152) give to outgoing connections
_SHOWN = 4000  # characters of a log in an error: its end
_PAUSE = 0.02  # seconds between two looks at another process, which has no event to wait for


class Running:
    """A program that serves until it is stopped; its output is appended to the file *log*.

    Raises `AssertionError` with the log when it ends by itself, or does not do within `LIMIT` seconds what is waited
    for. For one thread.
    """

    def __init__(self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("a") as output:
            self._process = subprocess.Popen(
                [str(argument) for argument in command],
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for who started it, and who then stops it
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until(self, what: str, is_so: Callable[[], object]) -> None:
        """Wait until *is_so()* is true; *what* says in an error what that means."""
        until(what, lambda: self._look(what, is_so), self._text)

    def stop(self) -> None:
        """End it by SIGTERM, and wait until it has ended, with status 0 or by a signal that it does not catch."""
        assert self._end(signal.SIGTERM) in {0, -signal.SIGTERM}, self._text()

    def kill(self) -> None:
        """End it by SIGKILL, and wait until the system has closed its connections and files."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        self._process.send_signal(number)  # does nothing when it has been waited for
        try:
            return self._process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError(f"still there {LIMIT:g} s after {number.name}:\n{self._text()}") from None

    def _look(self, what: str, is_so: Callable[[], object]) -> object:
        # In this order: somebody else may serve where this program could not.
        result, status = is_so(), self._process.poll()
        assert status is None, f"ended with status {status} before: {what}:\n{self._text()}"
        return result

    def _text(self) -> str:
        return self.log.read_text(errors="replace")[-_SHOWN:]


@contextlib.contextmanager
def running(
    command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """Run *command* for the length of a `with` block, and stop it then."""
    server = Running(command, log, environment)
    try:
        yield server
    finally:
        server.stop()


def until(what: str, is_so: Callable[[], object], seen: Callable[[], str] = str) -> None:
    """Wait until *is_so()* is true, at most `LIMIT` seconds; an error says *what*, and shows what *seen()* returns."""
    deadline = time.monotonic() + LIMIT
    while not is_so():
        assert time.monotonic() < deadline, f"{what}: not within {LIMIT:g} s\n{seen()}"
        time.sleep(_PAUSE)


def accepts(endpoint: str) -> bool:
    """Whether something listens on *endpoint*, which is host:port."""
    host, _, port = endpoint.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
        return True
    return False


def free_ports(count: int) -> list[int]:
    """*count* loopback ports on which nothing listens.

    A server that is stopped for a while finds its port free again: the system gives none of these to connections.
    """
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        for port in random.sample(_PORTS, len(_PORTS)):
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
            if len(found) == count:
                return found
    raise AssertionError(f"fewer than {count} of the ports {_PORTS} are free")
