"""Real programs in processes of their own, and a receiver that writes down what came over which connection."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from socket import MSG_DONTWAIT, MSG_PEEK, socket
from types import TracebackType
from typing import Self

from otel_step_hook.testing import HostileReceiver, read_request

PROGRAMS = Path(__file__).parent / "programs"
LONG = 30.0  # seconds after which a test says what it waited for; nothing takes so long unless it hangs

# What nobody wants to find on a process's stderr: asyncio's and the interpreter's words for something left behind.
_NOISE = re.compile(r"was destroyed|unclosed|never awaited|never retrieved|Exception ignored|Traceback|Fatal|fault")


@dataclass(frozen=True)
class Ended:
    """A program that has ended, with everything that it forked."""

    code: int
    out: list[str]
    err: str
    seconds: float  # from its start to the end of the last of its processes

    @property
    def noise(self) -> list[str]:
        """The lines on stderr that tell of something left behind."""
        return [line for line in self.err.splitlines() if _NOISE.search(line)]


class Program:
    """A program of ``tests/programs``, or a module, that runs with these settings.

    A context manager: what is still alive at its end is killed.
    """

    def __init__(self, name: str, *args: str, url: str, **settings: object) -> None:
        environment = os.environ | {
            "STEP_COMPLETE_WEBHOOK": url,
            **{f"STEP_COMPLETE_{setting.upper()}": str(value) for setting, value in settings.items()},
        }
        options = ("-X", "faulthandler", "-W", "default::ResourceWarning")
        program = PROGRAMS / f"{name}.py"
        target = (str(program),) if program.exists() else ("-m", name)
        self._err = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed in __exit__
        self._began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, *options, *target, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._err,
            text=True,
            cwd=PROGRAMS,
            env=environment,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._say_where_it_is(error)
        if self.process.poll() is None or error is not None:
            # The group is this program's alone: start_new_session made it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        with self.process, self._err:
            pass

    def _say_where_it_is(self, error: BaseException) -> None:
        """Add to *error* what the program has told, and what each of its threads is in the middle of."""
        state = "is running" if self.process.poll() is None else f"has ended with {self.process.returncode}"
        self.process.send_signal(signal.SIGABRT)  # which `-X faulthandler` answers; nothing happens to a dead one
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(LONG)
        self._err.seek(0)
        error.add_note(f"the program {state}; its stderr:\n{self._err.read()}")

    def says(self) -> str:
        """The next line on its stdout, once there is one."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def go_on(self) -> None:
        """Let it go on from `application.wait_to_be_told`."""
        assert self.process.stdin is not None
        self.process.stdin.write(".")
        self.process.stdin.flush()

    def ended(self, limit: float = LONG) -> Ended:
        """What is left of it once it, and everything that it forked, has ended."""
        out, _ = self.process.communicate(timeout=limit)
        seconds = time.monotonic() - self._began
        self._err.seek(0)
        return Ended(self.process.returncode, out.splitlines(), self._err.read(), seconds)


def run(name: str, *args: str, url: str, **settings: object) -> Ended:
    """Run a program to its end."""
    with Program(name, *args, url=url, **settings) as program:
        return program.ended()


@dataclass(frozen=True)
class Arrival:
    """One webhook, and the number of the connection that it came over."""

    step_id: str
    connection: int


class Ledger:
    """A receiver that keeps connections alive, and writes down which webhook came over which of them.

    A context manager. While *gate* is cleared nothing is answered. The first *refuse* webhooks get a 503.
    """

    def __init__(self, *, refuse: int = 0) -> None:
        self._refuse = refuse
        self.gate = threading.Event()
        self.gate.set()
        self._changed = threading.Condition()
        self._arrivals: list[Arrival] = []
        self._accepted = 0
        self._open: set[int] = set()  # numbers of connections
        self._receiver = HostileReceiver(self._behave)
        self.url = self._receiver.url

    def __enter__(self) -> Self:
        self._receiver.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gate.set()
        self._receiver.__exit__(kind, error, trace)

    def _behave(self, connection: socket, closing: threading.Event) -> None:
        with self._changed:
            self._accepted += 1
            number = self._accepted
            self._open.add(number)
        try:
            while not closing.is_set() and (request := read_request(connection)):
                step_id = json.loads(request.partition(b"\r\n\r\n")[2])["step_id"]
                self._change(lambda step_id=step_id: self._arrivals.append(Arrival(step_id, number)))  # type: ignore[misc]  # -- bound now
                while not self.gate.wait(0.01):  # seconds; between them, see whether the sender has closed
                    with contextlib.suppress(BlockingIOError):
                        if not connection.recv(1, MSG_PEEK | MSG_DONTWAIT):
                            return
                with self._changed:
                    self._refuse -= 1
                    status = b"204 No Content" if self._refuse < 0 else b"503 Service Unavailable"
                connection.sendall(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n")
        finally:
            self._change(lambda: self._open.discard(number))

    def _change(self, change: Callable[[], None]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()

    def _wait(self, condition: Callable[[], bool]) -> None:
        if not self._changed.wait_for(condition, LONG):
            raise AssertionError(f"arrived: {self._arrivals}, connections that are open: {self._open}")

    @property
    def steps(self) -> list[str]:
        """The step ids that have arrived, sorted."""
        with self._changed:
            return sorted(arrival.step_id for arrival in self._arrivals)

    def wait_for(self, count: int) -> list[Arrival]:
        """What has arrived, once there are *count* webhooks."""
        with self._changed:
            self._wait(lambda: len(self._arrivals) >= count)
            return list(self._arrivals)

    def connections(self, prefix: str) -> set[int]:
        """The connections over which steps with this prefix have come."""
        with self._changed:
            return {arrival.connection for arrival in self._arrivals if arrival.step_id.startswith(prefix)}
