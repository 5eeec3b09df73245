"""What the tests of the outbox share: stores by a clock that a test sets, children that die, and what is in a file."""

import os
import signal
import sqlite3
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from delivering import event
from opentelemetry.sdk.resources import Resource

from otel_step_hook.delivery.database import Database
from otel_step_hook.delivery.model import Delivery, Pipeline
from otel_step_hook.delivery.outbox import OutboxStore
from otel_step_hook.delivery.outbox_file import OutboxOptions
from otel_step_hook.delivery.rows import Changes, EndpointRows, Row
from otel_step_hook.delivery.store import Store, Stored

PIPELINE = Pipeline(None, Resource({"service.name": "tests"}))
LEASE_TIME = 40.0  # seconds
NOW = 1.7e9  # unix seconds
SENT = b'{"step_id": "1"}'
LONGEST_WAIT = 3600.0  # seconds
KEEP = 604_800.0  # seconds
NewOutbox = Callable[..., OutboxStore]  # the type of the fixture `new_outbox`
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


class Clock:
    """A monotonic clock that advances when a test says so, and a wall clock that jumps beside it."""

    def __init__(self) -> None:
        self.monotonic = 1000.0
        self.jumped = 0.0

    def now(self) -> float:
        """The wall clock, in unix seconds."""
        return 1.7e9 + self.monotonic + self.jumped


def options(path: Path, endpoint: str = "default", **more: object) -> OutboxOptions:
    """The options of an outbox at *path*."""
    fields = {
        "endpoints": frozenset({endpoint}),
        "lease_time": LEASE_TIME,
        "longest_wait": LONGEST_WAIT,
        "keep": KEEP,
        "max_rows": 100_000,
    }
    return OutboxOptions(path, endpoint, **(fields | more))  # type: ignore[arg-type]  # -- each test knows its options


def outbox(path: Path, clock: Clock, endpoint: str = "default", *, size: int = 100, **more: object) -> OutboxStore:
    """A store at *path*, with room for *size* events in memory, that goes by *clock*."""
    return OutboxStore(options(path, endpoint, **more), size, monotonic=lambda: clock.monotonic, now=clock.now)


def forked(action: Callable[[], object]) -> int:
    """Fork, run *action* in the child, which ends then, and return its process id."""
    child = os.fork()
    if not child:
        status = 1
        try:
            action()
            status = 0
        except Exception:  # noqa: BLE001 -- seen in the output of the test
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def end_of(child: int) -> int:
    """Wait for the process *child*, and return how it has ended: 0, 1 after an exception, or -9 of a kill."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_child(action: Callable[[], object]) -> int:
    """Run *action* in a forked child, and return how the child has ended."""
    return end_of(forked(action))


def killed_after(action: Callable[[], object]) -> None:
    """Fork, run *action* in the child, and kill it with SIGKILL."""

    def act() -> None:
        action()
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(act) == -signal.SIGKILL


def rows(path: Path, what: str = "*", where: str = "true") -> list[Any]:
    """The rows of the deliveries in the file *path*, or one value of each, in the order of their ids."""
    if not path.exists():
        return []
    database = sqlite3.connect(path)
    is_made = database.execute("SELECT 1 FROM sqlite_schema WHERE name = 'delivery'").fetchall()
    statement = f"SELECT {what} FROM delivery WHERE {where} ORDER BY id"  # noqa: S608 -- ours
    found = database.execute(statement).fetchall() if is_made else []
    database.close()
    return [row[0] if len(row) == 1 else row for row in found]


def change(path: Path, statement: str, *values: object) -> None:
    """Run one statement on the file *path*, as another program would."""
    database = sqlite3.connect(path)
    with database:
        database.execute(statement, values)
    database.close()


def journals(directory: Path) -> list[Path]:
    """The journals in *directory*."""
    return sorted(directory.glob("*.journal"))


def descriptors() -> int:
    """How many file descriptors this process has open."""
    return len(list(Path("/dev/fd").iterdir()))


def rows_of(database: Database, owner: str = "own", endpoint: str = "default") -> EndpointRows:
    """The rows of *endpoint*, for the process *owner*."""
    return EndpointRows(database, endpoint, owner, LEASE_TIME)


def new(*webhook_ids: str, at: float = NOW, resource: str = "hash", **more: object) -> Changes:
    """Changes that add a row for each id, submitted *at*."""
    changes = Changes()
    for webhook_id in webhook_ids:
        delivery = Delivery(webhook_id, event(webhook_id), PIPELINE, 0.0, **more)  # type: ignore[arg-type]  # -- by name
        changes.add(delivery, at, at, pipeline=None, resource=resource, content=f'"{resource}"')
    return changes


def put(rows: EndpointRows, *webhook_ids: str, at: float = NOW, **more: object) -> None:
    """Add a row for each id."""
    rows.write(new(*webhook_ids, at=at, **more), at)  # type: ignore[arg-type]  # -- by name


def ids(leased: list[Row]) -> list[str]:
    """The webhook ids of these rows."""
    return [row.webhook_id for row in leased]


def deliver(rows: EndpointRows, *leased: Row) -> None:
    """Delete these rows, as delivered."""
    rows.write(Changes(delivered=[(row.id, row.lease) for row in leased]), NOW)


def retry(rows: EndpointRows, row: Row, due_at: float) -> None:
    """Make *row* due again, after an attempt that was answered with 503."""
    rows.write(Changes(retried=[(row.id, row.lease, due_at, row.attempts + 1, "503", SENT.decode())]), NOW)


def discard(rows: EndpointRows, row: Row, at: float = NOW) -> None:
    """Discard *row*, after an attempt that was answered with 410."""
    rows.write(Changes(discarded=[(row.id, row.lease, row.attempts + 1, "410")]), at)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program that has locked the file."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    yield
    other.execute("ROLLBACK")
    other.close()


def put_steps(store: Store, *step_ids: str) -> list[Stored]:
    """Put an event for each step id."""
    return [store.put(event(step_id), PIPELINE) for step_id in step_ids]


def by_id(claimed: list[Delivery]) -> dict[str, Delivery]:
    """These deliveries, by step id."""
    return {one.event.step_id: one for one in claimed}


def step_ids(path: Path) -> list[str]:
    """The step ids of the rows in the file."""
    return rows(path, "json_extract(event, '$.step_id')")
