"""Applications that hand webhooks over to Temporal, and workers that send them, as processes of their own."""

import asyncio
import re
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from processes import Ended, Program
from servers.temporal import TemporalServer
from servers.temporal_workers import LIMIT, Server
from temporalio.client import (
    ActivityExecutionDescription,
    ActivityFailureError,
    ActivityHandle,
    Client,
    WorkflowExecutionDescription,
    WorkflowFailureError,
    WorkflowHandle,
)

COMMAND = str(Path(sys.executable).with_name("otel-step-hook"))

# Ends the step of its first argument as often as its second one says: each time with the same span context.
_APPLICATION = """
import logging
from application import *
from opentelemetry.sdk.trace.id_generator import IdGenerator

class SameIds(IdGenerator):
    def generate_trace_id(self): return 0x1234
    def generate_span_id(self): return 0x5678

logging.basicConfig(format="%(message)s")
logging.getLogger("otel_step_hook").setLevel("INFO")
provider.id_generator = SameIds()
tracer = provider.get_tracer("same ids")
for _ in range(int(sys.argv[2])):
    end_step(sys.argv[1], tracer)
provider.force_flush()
"""


class Deployment:
    """Applications and workers with a task queue that nobody else uses, and the same *settings*. A context manager."""

    def __init__(self, server: Server, webhook: str, **settings: object) -> None:
        self._settings: dict[str, object] = {"webhook": webhook, "engine": "temporal", **settings}
        self._settings.setdefault("task_queue", f"queue-{uuid.uuid4()}")
        self._address = server.address
        self._programs: list[Program] = []
        self.step_id = f"step-{uuid.uuid4()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for program in self._programs:
            program.kill_group()

    def start(
        self,
        times: int = 1,
        code: str = _APPLICATION,
        variables: Mapping[str, str] | None = None,
        **settings: object,
    ) -> Program:
        """Start an application, which by default ends the step *times* times."""
        return self._start([sys.executable, "-c", code, self.step_id, str(times)], settings, variables)

    def hand_over(self, **settings: object) -> str:
        """Run an application until it has ended, and return the webhook id of its step."""
        return handed_over(self._start([sys.executable, "-c", _APPLICATION, self.step_id, "1"], settings).ended())

    def worker(self, *arguments: str, **variables: str) -> Program:
        """Start `otel-step-hook worker`, and wait until it is ready."""
        worker = self.command("worker", *arguments, **variables)
        assert (line := worker.read_line()).startswith("ready: "), (line, worker.ended())
        return worker

    def command(self, *arguments: str, **variables: str) -> Program:
        """Start `otel-step-hook` with these arguments, and with *variables* of the environment."""
        return self._start([COMMAND, *arguments], {}, variables)

    def _start(
        self, command: Sequence[str], settings: dict[str, object], variables: Mapping[str, str] | None = None
    ) -> Program:
        chosen = {f"STEP_COMPLETE_{name.upper()}": str(value) for name, value in (self._settings | settings).items()}
        environment = {"TEMPORAL_ADDRESS": self._address, **chosen, **(variables or {})}
        self._programs.append(Program(*command, **environment))
        return self._programs[-1]


def handed_over(application: Ended, times: int = 1) -> str:
    """The one webhook id that *application*, which has ended well, has handed over to Temporal so many times."""
    assert (application.code, application.noise) == (0, []), application
    found = re.findall(r"^handed step \S+ over to Temporal \(success, .*webhook (\w+),", application.err, re.MULTILINE)
    assert len(found) == times, application.err
    assert len(set(found)) == 1, found
    return str(found[0])


def stopped(worker: Program) -> Ended:
    """End *worker* by SIGTERM, and wait until it has ended, with exit code 0."""
    worker.send_signal(signal.SIGTERM)
    ended = worker.ended()
    assert (ended.code, ended.noise) == (0, []), ended
    return ended


@dataclass(frozen=True)
class Shown:
    """What Temporal shows of a webhook; *retry_interval* is in seconds, and 0 when no attempt is due."""

    run_id: str | None
    status: str
    summary: str | None
    retry_interval: float


class Webhooks:
    """Asks a server for the webhooks that it has: activities, or workflows on the older server."""

    def __init__(self, server: Server, client: Client) -> None:
        self._is_activity = isinstance(server, TemporalServer)
        self._client = client

    @classmethod
    async def of(cls, server: Server) -> Self:
        """Connect to *server*."""
        return cls(server, await Client.connect(server.address))

    def find(self, webhook_id: str, endpoint: str = "default") -> ActivityHandle[Any] | WorkflowHandle[Any, Any]:
        """The activity or workflow of a webhook."""
        named = f"{endpoint}/{webhook_id}"
        if self._is_activity:
            return self._client.get_activity_handle(named)
        return self._client.get_workflow_handle(named)

    async def result(self, webhook_id: str, endpoint: str = "default") -> Mapping[str, Any] | str:
        """Wait until a webhook has ended, and return its result, or the sentence of its failure."""
        handle = self.find(webhook_id, endpoint)
        try:
            return dict(await handle.result(rpc_timeout=LIMIT))
        except (ActivityFailureError, WorkflowFailureError) as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            return str(cause)

    async def shown(self, webhook_id: str, endpoint: str = "default") -> Shown:
        """What Temporal shows of a webhook now."""
        handle = self.find(webhook_id, endpoint)
        if isinstance(handle, ActivityHandle):
            return await self._activity(await handle.describe())
        return await self._workflow(await handle.describe())

    async def retry_interval(self, webhook_id: str) -> float:
        """Wait until an attempt has failed, and return after how many seconds Temporal will make the next one."""
        shown = await self.shown(webhook_id)
        while not shown.retry_interval:
            await asyncio.sleep(0.02)  # there is no event to wait for
            shown = await self.shown(webhook_id)
        return shown.retry_interval

    async def _activity(self, found: ActivityExecutionDescription) -> Shown:
        (summary,) = await self._client.data_converter.decode([found.raw_info.user_metadata.summary])
        interval = found.current_retry_interval or timedelta()
        return Shown(found.activity_run_id, found.status.name, summary, interval.total_seconds())

    async def _workflow(self, found: WorkflowExecutionDescription) -> Shown:
        pending = found.raw_description.pending_activities
        intervals = [activity.current_retry_interval.ToTimedelta().total_seconds() for activity in pending]
        assert found.status is not None
        return Shown(found.run_id, found.status.name, await found.static_summary(), sum(intervals))
