"""The file of an outbox, as one endpoint's worker uses it: owns when it is opened, tried again, tidied and closed."""

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.database import BUSY_TIME, ClosedByForkError, Database, OutboxError
from otel_step_hook.delivery.filesystem import network_type
from otel_step_hook.delivery.journal import Journal, JournalRecord, journal_prefix
from otel_step_hook.delivery.log import log_safely
from otel_step_hook.delivery.model import Delivery
from otel_step_hook.delivery.pipelines import RowPipelines
from otel_step_hook.delivery.request import webhook_id
from otel_step_hook.delivery.rows import Changes, EndpointRows, Row, State
from otel_step_hook.delivery.serialization import event_from_json
from otel_step_hook.delivery.takeover import abandoned

LOOK_INTERVAL = 30.0  # seconds between two looks at what processes that have ended left
BATCH = 1000  # rows that are written or leased in one transaction: some 20 ms
_RETRY_INTERVAL = 2.0  # seconds until a database that could not be used is tried again
_LOG_INTERVAL = 60.0  # seconds; that it cannot be used, or restored, is logged at most this often
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class OutboxOptions:
    """What an outbox needs to know. Times are in seconds.

    *endpoints* are the names of all endpoints of the process, *lease_time* is how long a delivery belongs to the
    process that attempts it, *longest_wait* the longest wait between two attempts, *keep* how long discarded rows stay.
    """

    path: Path
    endpoint: str
    endpoints: frozenset[str]
    lease_time: float
    longest_wait: float
    keep: float
    max_rows: int

    @property
    def journal_prefix(self) -> str:
        """How the names of the journals of the endpoint begin."""
        return journal_prefix(self.path, self.endpoint)


class OutboxFile:
    """Runs transactions on the rows of one endpoint, and remembers why the last one failed. For the worker thread.

    *owner* is the id of this process in leases. `state`, `fault` and `now` may be read from any thread.
    """

    def __init__(
        self,
        options: OutboxOptions,
        owner: str,
        pipelines: RowPipelines,
        *,
        monotonic: Callable[[], float] = monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.state = State(None, None, 0, 0, 0)
        self.fault: OutboxError | None = None  # why the file cannot be used
        # The wall clock may jump. What is stored goes by a monotonic one, from this moment, or from that of the first
        # process of this boot that has used the file.
        self.first_offset = self.clock_offset = now() - monotonic()
        self._options = options
        self._owner = owner
        self._pipelines = pipelines
        self._monotonic = monotonic
        self._rows: EndpointRows | None = None
        self._look_at = self._try_at = self._log_at = self._removed_log_at = -math.inf  # monotonic seconds
        self._warned: set[str] = set()  # the endpoints of others that a line has named

    def now(self) -> float:
        """Return unix seconds, by the clock that the file goes by."""
        return self._monotonic() + self.clock_offset

    def run(self, action: Callable[[EndpointRows, float], _T]) -> _T | None:
        """Run *action* in a transaction, with the rows and the time. None when the file cannot be used."""
        if self._monotonic() < self._try_at:
            return None
        try:
            rows = self._open()
            with rows.database.transaction():
                done = action(rows, self.now())
                state = rows.state()
        except ClosedByForkError:
            self._close_after_fork()
            return self.run(action)
        except OutboxError as error:
            self._failed(error)
            return None
        self.state = state
        if self.fault is not None:
            self.fault, self._log_at = None, -math.inf
            rows.database.busy_time = BUSY_TIME
            log_safely(logging.INFO, "the outbox %s can be used again", self._options.path)
        return done

    def look(self) -> None:
        """Take over what processes that have ended left, and tidy the rows, if it is time."""
        now = self._monotonic()
        if now < self._look_at or now < self._try_at:
            return
        self._look_at = now + LOOK_INTERVAL
        try:
            rows = self._open()
            self._warn_of_others(rows)
            for journal in abandoned(self._options.path.parent, self._options.journal_prefix):
                self._take_over(rows, journal)
            self._restore(rows)
        except ClosedByForkError:
            self._look_at = now
            self._close_after_fork()
            self.look()  # at once: a worker that is idle looks every half minute
            return
        except OutboxError as error:
            self._failed(error)
        self.run(self._tidy)

    def close(self) -> None:
        """Close the file, after it was made anew if somebody has removed it. The next transaction opens it again."""
        if self._rows is not None and (self.state.waiting or self.state.discarded):
            self._restore(self._rows)
        self._close()

    def _close(self) -> None:
        if self._rows is not None:
            self._rows.database.close()
            self._rows = None

    def _close_after_fork(self) -> None:
        """Close the file that a fork has closed. If it was removed since then, nobody can restore its rows."""
        if self._rows is not None and self._rows.database.is_removed():
            text = (
                "the outbox %s was removed while it was closed for a fork: its %d deliveries are lost, unless another "
                "process has it open"
            )
            log_safely(logging.ERROR, text, self._options.path, self.state.waiting)
        self._close()

    def _open(self) -> EndpointRows:
        if self._rows is None:
            options = self._options
            if network := network_type(options.path):
                raise OutboxError(
                    f"is on a network file system ({network}), where SQLite loses data: choose one on a local disk",
                    is_final=True,
                )
            # The worker thread cannot deliver from memory while it waits.
            database = Database(options.path, busy_time=BUSY_TIME if self.fault is None else 0.0)
            self._rows = EndpointRows(database, options.endpoint, self._owner, options.lease_time)
            self.clock_offset = self._rows.clock_offset(self.first_offset)
        return self._rows

    def _tidy(self, rows: EndpointRows, now: float) -> None:
        options = self._options
        latest_due = now + max(options.longest_wait, options.lease_time)
        rows.tidy(now=now, latest_due=latest_due, discarded_before=now - options.keep, limit=BATCH)
        rows.purge_beyond(options.max_rows, limit=BATCH)

    def _warn_of_others(self, rows: EndpointRows) -> None:
        for name, waiting in rows.others(self._options.endpoints):
            if name not in self._warned:
                self._warned.add(name)
                text = (
                    "the outbox %s has %d deliveries for endpoint %s, which this process does not know: they are left"
                )
                log_safely(logging.WARNING, text, self._options.path, waiting, name)

    def _take_over(self, rows: EndpointRows, journal: Journal) -> None:
        count, is_done = len(journal), False
        try:
            while records := journal.take(BATCH):
                changes = Changes()
                self.add(changes, self.deliveries_of(records, self.clock_offset))
                with rows.database.transaction():
                    rows.write(changes, self.now())
                # At once: if the next batch fails, these rows may be delivered before the rest is taken over, and would
                # be made anew. A kill before this line does so; it is harmless unless they are delivered meanwhile,
                # since rows are unique, and then their webhook ids are the same.
                for record in records:
                    journal.clear(record.slot)
            rows.release(journal.owner, self.now())
            is_done = True
        finally:
            journal.close(remove=is_done)
        if count:
            text = "took %d steps of a process that has ended over into the outbox %s"
            log_safely(logging.INFO, text, count, self._options.path)

    def deliveries_of(self, records: Iterable[JournalRecord], clock_offset: float) -> dict[Delivery, float]:
        """Return the deliveries of *records*, and when each is due (monotonic seconds), which is at once.

        The records' times are by a clock that began at *clock_offset* (unix seconds).
        """
        now, made = self._monotonic(), {}
        for record in records:
            submitted_at = min(record.put_at - clock_offset, now)  # the clock of a dead process may be ahead
            made[Delivery(webhook_id(record.event), record.event, record.pipeline, submitted_at)] = submitted_at
        return made

    def delivery_of_row(self, row: Row) -> Delivery:
        """Return the delivery of *row*. Raises ValueError, LookupError or TypeError for one that cannot be read."""
        return Delivery(
            row.webhook_id,
            event_from_json(row.event),
            self._pipelines.find(row.pipeline, row.resource_hash, row.resource),
            self._monotonic() - max(0.0, self.now() - row.submitted_at),
            row.body.encode("ascii"),
            row.attempts,
            row.error_type,
            redeliveries=row.redeliveries,
        )

    def add(self, changes: Changes, deliveries: dict[Delivery, float]) -> None:
        """Add a new row to *changes* for each of *deliveries*, with when it is due (monotonic seconds)."""
        for one, due_at in deliveries.items():
            resource, content = self._pipelines.resource(one.pipeline)
            name = self._pipelines.name(one.pipeline) if one.pipeline.processor is not None else None
            times = one.submitted_at + self.clock_offset, due_at + self.clock_offset
            changes.add(one, *times, pipeline=name, resource=resource, content=content)

    def _restore(self, rows: EndpointRows) -> None:
        """Make the file anew if somebody has removed it: what is written to it would be lost with the process."""
        if not rows.database.is_removed():
            return
        path = self._options.path
        try:
            rows.database.copy_back(self._options.endpoint)
        except OutboxError as error:  # its directory is gone, or another file is there
            if (now := self._monotonic()) >= self._removed_log_at:
                self._removed_log_at = now + _LOG_INTERVAL
                text = "the outbox %s was removed or replaced, and %s: its %d deliveries are lost if this process ends"
                log_safely(logging.ERROR, text, path, error, self.state.waiting)
            return
        log_safely(logging.ERROR, "the outbox %s was removed: it has been restored", path)
        self._removed_log_at = -math.inf
        self._close()

    def _failed(self, error: OutboxError) -> None:
        self.fault, now = error, self._monotonic()
        self._try_at = math.inf if error.is_final else now + _RETRY_INTERVAL
        if self._rows is not None and self._rows.database.is_removed():
            self._rows.database.busy_time = 0.0  # it stays open, as in `_open`: `look` restores its rows
        else:
            self._close()
        if now >= self._log_at:
            self._log_at = now + _LOG_INTERVAL
            text = "the outbox %s %s; meanwhile webhooks are sent from memory, and what waits there may be lost"
            log_safely(logging.ERROR, text, self._options.path, error)
