"""Outbox files that real hooks have written, and what stands in them."""

import contextlib
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from support import pipeline

from otel_step_hook.testing import Answer, ScriptedReceiver

LATER = 1000.0  # seconds of backoff: no test waits for it
_WAIT = 20.0  # seconds until a test fails
_WRITE_JOURNAL = """
import os, sys, time, uuid
from pathlib import Path
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanContext, TraceFlags
from otel_step_hook.delivery.journal import Journal, journal_prefix
from otel_step_hook.delivery.model import Pipeline
from otel_step_hook.steps.event import Outcome, StepEvent

path, endpoint, *step_ids = Path(sys.argv[1]), *sys.argv[2:]
journal = Journal.create(path.parent, journal_prefix(path, endpoint), uuid.uuid4().hex)
for number, step_id in enumerate(step_ids, 1):
    context = SpanContext(number, number, is_remote=False, trace_flags=TraceFlags(1))
    event = StepEvent(step_id, Outcome.SUCCESS, "step", context, time.time_ns(), time.time_ns())
    assert journal.write(event, Pipeline(None, Resource({"service.name": "dead"})), time.time())
print(journal.path, flush=True)
os.read(0, 1)  # the end of its standard input
os._exit(0)
"""


class Row(NamedTuple):
    """A delivery in the file. Times are in unix seconds."""

    step_id: str
    endpoint: str
    webhook_id: str
    attempts: int
    error: str
    submitted_at: float
    due_at: float
    is_leased: bool
    is_discarded: bool


def rows(path: Path) -> dict[str, Row]:
    """The deliveries in the outbox *path*, by step id; none if there is no file."""
    if not path.exists():
        return {}
    with contextlib.closing(sqlite3.connect(path, timeout=_WAIT)) as database:
        found = database.execute(
            "SELECT event, endpoint, webhook_id, attempts, error_type, submitted_at, due_at, owner IS NOT NULL, "
            "discarded_at IS NOT NULL FROM delivery ORDER BY id"
        )
        step_ids = [(json.loads(event)["step_id"], values) for event, *values in found]
    return {step_id: Row._make([step_id, *values]) for step_id, values in step_ids}


def wait_for_rows(path: Path, is_so: Callable[[dict[str, Row]], bool]) -> dict[str, Row]:
    """Wait until *is_so* is true of the rows, and return them."""
    deadline = time.monotonic() + _WAIT
    while not (_is_outbox(path) and is_so(found := rows(path))):
        assert time.monotonic() < deadline, path
        time.sleep(0.02)  # another thread or process writes the file: there is nothing to wait on
    return found


def _is_outbox(path: Path) -> bool:
    if not path.exists():
        return False
    with contextlib.closing(sqlite3.connect(path, timeout=_WAIT)) as database:
        return bool(database.execute("PRAGMA user_version").fetchone()[0])


def make_older(path: Path, step_id: str, seconds: float) -> None:
    """Let the step with this id have been submitted earlier."""
    with contextlib.closing(sqlite3.connect(path, timeout=_WAIT)) as database, database:
        database.execute(
            "UPDATE delivery SET submitted_at = submitted_at - ? WHERE json_extract(event, '$.step_id') = ?",
            (seconds, step_id),
        )


class Left(NamedTuple):
    """A step for `leave`: its id, the value of its attribute ``step.status``, and the answer to its first attempt."""

    step_id: str
    status: str
    answer: int | Answer


ABORTED = Answer(503, {"webhook-delivery": "abort-message"})  # the delivery is discarded
_STEPS = (Left("gone", "success", 410), Left("aborted", "failed", ABORTED), Left("later", "success", 503))


def leave(path: Path, receiver: ScriptedReceiver, *steps: Left, backoff: float = LATER) -> dict[str, Row]:
    """Let a hook end *steps*, make one attempt for each, and shut down; returns the rows that it leaves."""
    receiver.answers(*(step.answer for step in steps))
    with pipeline(receiver.url, outbox=path, initial_backoff=backoff, max_backoff=backoff) as hooked:
        for number, step in enumerate(steps, 1):
            attributes = {"step_id": step.step_id, "step.status": step.status}
            hooked.tracer.start_span("step", attributes=attributes).end()
            wait_for_rows(path, lambda found: sum(row.attempts for row in found.values()) == number)  # noqa: B023 -- called here
    return rows(path)


def fill(path: Path, receiver: ScriptedReceiver) -> dict[str, Row]:
    """Leave `gone` and `aborted`, which are discarded, and `later`, which waits; each had one attempt."""
    return leave(path, receiver, *_STEPS)


@contextlib.contextmanager
def living_journal(path: Path, *step_ids: str, endpoint: str = "default") -> Iterator[Path]:
    """The journal of a process that has put these steps into it, beside *path*, and moves none into a row.

    The process ends with the context.
    """
    command = [sys.executable, "-c", _WRITE_JOURNAL, str(path), endpoint, *step_ids]
    with subprocess.Popen(
        command, cwd=Path(__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield Path(process.stdout.readline().strip())
        process.communicate()
    assert process.returncode == 0


def die_with_journal(path: Path, *step_ids: str, endpoint: str = "default") -> Path:
    """Let a process end that has put these steps into its journal beside *path*; returns the path of the journal."""
    with living_journal(path, *step_ids, endpoint=endpoint) as journal:
        pass
    return journal
