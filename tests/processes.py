"""Programs that run in processes of their own, and the receiver of their webhooks."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from socket import socket
from types import TracebackType
from typing import NamedTuple

from otel_step_hook.testing import HostileReceiver, read_request

PROGRAMS = Path(__file__).parent / "programs"
PROCESS_1 = ("unshare", "--user", "--map-root-user", "--pid", "--fork")  # its program is process 1, as in a container
INSTRUMENT = str(Path(sys.executable).with_name("opentelemetry-instrument"))
LIMIT = 40.0  # seconds a test waits for a program or a webhook; nothing takes so long unless it hangs

# What asyncio and the interpreter write to stderr about leaked resources, lost errors and crashes.
_NOISE = re.compile(r"was destroyed|unclosed|never awaited|never retrieved|Exception ignored|Traceback|Fatal|\bfault")
_PYTHON = {"PYTHONFAULTHANDLER": "1", "PYTHONWARNINGS": "default::ResourceWarning"}
# HTTP_CLIENT=httpx, for pytest, lets all programs use that library; by default they use aiohttp.
_CLIENT = {"STEP_COMPLETE_HTTP_CLIENT": os.environ["HTTP_CLIENT"]} if "HTTP_CLIENT" in os.environ else {}


class Ended(NamedTuple):
    """The exit code and the output of a program that has ended, its forked children included."""

    code: int
    out: list[str]
    err: str

    @property
    def noise(self) -> list[str]:
        """The lines on stderr about leaked resources, lost errors and crashes."""
        return [line for line in self.err.splitlines() if _NOISE.search(line)]

    @property
    def spans(self) -> list[str]:
        """The names of the spans that OpenTelemetry's console exporter has printed, sorted."""
        return sorted(line.partition(": ")[2].strip('",') for line in self.out if '  "name": ' in line)


def metric_points(line: str) -> dict[str, dict[str, float]]:
    """By metric and labels, the values in a line of JSON; of a histogram, the count."""
    (scope,) = json.loads(line)["resource_metrics"][0]["scope_metrics"]
    assert scope["scope"]["name"] == "otel_step_hook"
    return {
        f"{metric['name']} {metric['unit']}": {
            ", ".join(f"{name}={value}" for name, value in sorted(point["attributes"].items())): point.get(
                "count", point.get("value")
            )
            for point in metric["data"]["data_points"]
        }
        for metric in scope["metrics"]
    }


class Program(subprocess.Popen[str]):
    """A command that runs in ``tests/programs`` with these variables, in a process group of its own."""

    def __init__(self, *command: str, **environment: str) -> None:
        super().__init__(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=PROGRAMS,
            env=os.environ | _PYTHON | _CLIENT | environment,
            start_new_session=True,
        )

    def read_line(self) -> str:
        """Wait for the next line on stdout, and return it."""
        assert self.stdout is not None
        return self.stdout.readline().rstrip("\n")

    def read_error(self, pattern: str) -> str:
        """Wait for a line on stderr that matches *pattern*, and return the match; `ended` lacks what is read here."""
        assert self.stderr is not None
        return next(found.group() for line in self.stderr if (found := re.search(pattern, line)))

    def go_on(self) -> None:
        """Let the program's `application.wait_for_test` return."""
        assert self.stdin is not None
        self.stdin.write(".")
        self.stdin.flush()

    def ended(self) -> Ended:
        """Wait until the program and its forked children have ended; on a timeout show where each thread is."""
        try:
            out, err = self.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGABRT)
            raise AssertionError(f"still running after {LIMIT:g} s: {self.communicate(timeout=LIMIT)}") from None
        return Ended(self.returncode, out.splitlines(), err)

    def kill_group(self) -> None:
        """Kill what still runs of the program and of its forked children."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.communicate(timeout=LIMIT)


Start = Callable[..., Program]  # `python_program` with the receiver's URL as its webhook
Run = Callable[..., Ended]  # the same, and waits until the program has ended


def python_program(program: str, *args: str, **settings: object) -> Program:
    """Start a module, or code that may use all names of `application`, with these settings."""
    code = f"import os, sys, threading\nfrom application import *\n{textwrap.dedent(program)}"
    target = ("-m", program) if program.isidentifier() else ("-c", code)
    variables = {f"STEP_COMPLETE_{setting.upper()}": str(value) for setting, value in settings.items()}
    return Program(sys.executable, *target, *args, **variables)


def has_process_1() -> bool:
    """Whether this system lets `PROCESS_1` start a program."""
    try:
        return subprocess.run([*PROCESS_1, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


class StepReceiver(HostileReceiver):
    """A receiver that keeps connections alive, and records which step id arrived over which connection.

    It answers 204; while *gate* is cleared, it does not answer. While *refuses_first* is true, it answers 503 to the
    first attempt of each step, which then is sent again about a second later.
    """

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.refuses_first = False
        self.gate = threading.Event()
        self.gate.set()
        self._arrived = threading.Condition()  # its lock is reentrant
        self._arrivals: list[tuple[str, socket]] = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gate.set()
        super().__exit__(kind, error, trace)

    def _answer(self, connection: socket, _: threading.Event) -> None:
        while request := read_request(connection):
            step_id = json.loads(request.partition(b"\r\n\r\n")[2])["step_id"]
            with self._arrived:
                is_refused = self.refuses_first and step_id not in self.steps
                self._arrivals.append((step_id, connection))
                self._arrived.notify_all()
            self.gate.wait()
            status = b"503 Service Unavailable\r\ncontent-length: 0" if is_refused else b"204 No Content"
            connection.sendall(b"HTTP/1.1 " + status + b"\r\n\r\n")

    @property
    def steps(self) -> list[str]:
        """The step ids that have arrived, sorted."""
        with self._arrived:
            return sorted(step_id for step_id, _ in self._arrivals)

    def wait_for(self, count: int) -> None:
        """Wait until *count* webhooks have arrived."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self._arrivals) >= count, LIMIT), self._arrivals

    def connections_of(self, prefix: str) -> set[socket]:
        """The connections over which step ids with *prefix* have arrived."""
        with self._arrived:
            return {connection for step_id, connection in self._arrivals if step_id.startswith(prefix)}
