"""Applications and workers that share a task queue of one Temporal server, as processes of their own."""

import re
import sys
import textwrap
import uuid
from pathlib import Path
from typing import Self

from processes import Program
from servers.running import Running
from servers.temporal import TemporalServer

_COMMAND = str(Path(sys.executable).with_name("otel-step-hook"))
_DELIVERED = re.compile(r"delivered step ([\w-]+) ")


class Programs:
    """Starts programs with the same *settings*. Logs are in *folder*. A context manager; it kills what still runs."""

    def __init__(self, server: TemporalServer, folder: Path, **settings: object) -> None:
        self.task_queue = f"queue-{uuid.uuid4()}"  # nobody else uses it
        self._folder = folder
        self._variables = {"TEMPORAL_ADDRESS": server.address}
        self._variables |= _variables({"engine": "temporal", "task_queue": self.task_queue, **settings})
        self._workers: list[Running] = []
        self._applications: list[Program] = []

    def worker(self, *options: str) -> Running:
        """Start `otel-step-hook worker`, and wait until it is ready. Its output is in a file."""
        log = self._folder / f"worker-{len(self._workers)}.log"
        worker = Running((_COMMAND, "worker", *options), log, self._variables)
        self._workers.append(worker)
        worker.wait_until("the worker is ready", lambda: "ready: " in log.read_text())
        return worker

    def application(self, code: str, **settings: object) -> Program:
        """Start code that may use all names of `application`."""
        text = f"import os, sys\nfrom application import *\n{textwrap.dedent(code)}"
        program = Program(sys.executable, "-c", text, **(self._variables | _variables(settings)))
        self._applications.append(program)
        return program

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for application in self._applications:
            application.kill_group()
        for worker in self._workers:
            worker.kill()


def delivered_by(worker: Running) -> list[str]:
    """The step ids that *worker* has logged as delivered, in this order."""
    return _DELIVERED.findall(worker.log.read_text())


def _variables(settings: dict[str, object]) -> dict[str, str]:
    return {f"STEP_COMPLETE_{name.upper()}": str(value) for name, value in settings.items()}
