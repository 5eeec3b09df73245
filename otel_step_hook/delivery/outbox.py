"""The store on disk: owns the journal that `put` writes to, and the way from there to the rows of one endpoint.

What cannot go into the journal waits in memory until the worker thread has written it to the database. While the
database cannot be used, deliveries are made from journal and memory.
"""

import functools
import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from otel_step_hook.delivery import native
from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.database import Database, OutboxError
from otel_step_hook.delivery.journal import SLOTS, Journal, JournalRecord, abandoned
from otel_step_hook.delivery.log import log_safely
from otel_step_hook.delivery.memory import MemoryStore
from otel_step_hook.delivery.model import Counts, Delivery, Pipeline, Result
from otel_step_hook.delivery.pipelines import RowPipelines
from otel_step_hook.delivery.request import webhook_id
from otel_step_hook.delivery.rows import (
    Changes,
    EndpointRows,
    NewRow,
    Row,
    State,
    event_from_json,
    event_json,
)
from otel_step_hook.delivery.store import Stored
from otel_step_hook.steps.event import StepEvent

LOOK_INTERVAL = 30.0  # seconds between two looks at what processes that have ended left
_BATCH = 1000  # rows that are written or leased in one transaction: some 20 ms
_LATE_AFTER = 1.0  # seconds; the store is late when its oldest due row has waited longer
_RETRY_INTERVAL = 2.0  # seconds until a database that could not be used is tried again
_LOG_INTERVAL = 60.0  # seconds; that it cannot be used is logged at most this often


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


class OutboxStore:
    """A `Store` whose deliveries survive the process, in a SQLite file that several processes may share.

    `put` makes no system call, except the first of a forked child, which makes its journal. Rows that are not
    finished, of all endpoints in the file, are at most `max_rows`; beyond that, new events are dropped.
    """

    def __init__(
        self,
        options: OutboxOptions,
        max_queue_size: int,
        *,
        monotonic: Callable[[], float] = monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._options = options
        self._monotonic = monotonic
        self._clock_offset = now() - monotonic()  # the wall clock may jump; this one goes on as it was at the start
        self._owner = uuid.uuid4().hex
        self._memory = MemoryStore(max_queue_size, monotonic=monotonic)
        self._journal: Journal | None = None
        self._may_create = native.allocate_lock()  # taken once, by who creates the journal
        # What follows is for the worker thread; `put`, `counts` and `oldest_age` read some of it.
        self._pipelines = RowPipelines(self._owner)
        self._rows: EndpointRows | None = None
        self._state = State(None, None, 0, 0, 0)
        self._unwritten = SLOTS + max_queue_size  # events that may wait outside of the database
        self._may_be_full = self._unwritten >= options.max_rows
        self._changes = Changes()
        self._leased: dict[Delivery, tuple[int, int]] = {}
        self._slots: dict[str, list[int]] = {}  # of the journal, by webhook id: of deliveries that are made from it
        self._fault: OutboxError | None = None  # why the database cannot be used
        self._look_at = self._try_at = self._log_at = -float("inf")  # monotonic seconds
        self._rounds_up = True
        self._is_said = False  # that events waited in memory

    @property
    def is_durable(self) -> bool:
        """Whether what waits survives the process. False while the database cannot be used."""
        return self._fault is None

    def open(self) -> None:
        """Create the journal. Called at the start, and in a forked child by the first `put`. Does not raise."""
        if not self._may_create.acquire(blocking=False):
            return
        options = self._options
        try:
            self._journal = Journal.create(options.path.parent, _prefix(options), self._owner)
        except OSError as error:
            text = "the outbox %s has no journal (%s): what waits in memory is lost if the process is killed"
            log_safely(logging.ERROR, text, options.path, error.strerror)

    def put(self, event: StepEvent, pipeline: Pipeline) -> Stored:
        """Take *event*, or return FULL when there is no room for it. IN_MEMORY: until the worker thread writes it."""
        journal = self._journal
        if journal is None:
            self.open()
            journal = self._journal
        if self._may_be_full and self._waiting_everywhere() >= self._options.max_rows:
            return Stored.FULL
        if journal is not None and journal.write(event, pipeline, self._monotonic() + self._clock_offset):
            return Stored.DURABLE
        return self._memory.put(event, pipeline)

    def use(self, pipeline: Pipeline) -> None:
        """Let the spans of deliveries that an earlier process has left go to *pipeline*."""
        self._pipelines.use(pipeline)

    def mark(self) -> int:
        """Return a number above that of every event that was put before."""
        return self._memory.mark()

    def is_flushed(self, mark: int) -> bool:
        """Whether every event below *mark* is durable, or finished."""
        if len(self._memory):
            self._write()
        return self._memory.is_flushed(mark)

    def claim(self, limit: int) -> list[Delivery]:
        """Lease up to *limit* deliveries that are due, oldest first; while they are late, half of them the newest."""
        if self._monotonic() >= self._look_at:
            self._look()
        next_due = self._state.next_due
        is_due = limit > 0 and next_due is not None and next_due <= self._now()
        leased: list[Row] | None = []
        if is_due or self._has_changes() or self._fault is not None:
            leased = self._write(functools.partial(self._lease, limit))
        return self._claim_in_memory(limit) if leased is None else [self._delivery(row) for row in leased]

    def _lease(self, limit: int, rows: EndpointRows, now: float) -> list[Row]:
        """Lease up to *limit* rows, half of them the newest while the oldest has waited for long."""
        due = rows.next_due() if limit > 0 else None
        if due is None or due > now:
            return []
        if now - due <= _LATE_AFTER:
            return rows.lease(limit, 0, now)
        self._rounds_up = not self._rounds_up
        newest = (limit + self._rounds_up) // 2
        return rows.lease(limit - newest, newest, now)

    def claim_older(self, age: float) -> list[Delivery]:
        """Lease deliveries, due or not, whose steps ended at least *age* seconds ago: some, if there are many."""
        claimed = self._memory.claim_older(age) if self._fault is not None else []
        before = self._now() - age
        if self._has_changes() or (self._state.oldest is not None and self._state.oldest <= before):
            leased = self._write(lambda rows, now: rows.lease_older(before, _BATCH, now))
            claimed += [self._delivery(row) for row in leased or ()]
        return claimed

    def next_due(self) -> float | None:
        """Return the seconds until the first delivery is due: 0 when one is due, None when no delivery waits."""
        if self._has_changes():
            self._write()
        if self._fault is not None:
            return 0.0 if self._journal and len(self._journal) else self._memory.next_due()
        if self._journal and len(self._journal):
            return 0.0
        return None if self._state.next_due is None else max(0.0, self._state.next_due - self._now())

    def retry(self, delivery: Delivery, *, delay: float) -> None:
        """Make *delivery* due again after *delay* seconds."""
        lease = self._leased.pop(delivery, None)
        if lease is None:
            self._memory.retry(delivery, delay=delay)
            return
        body = delivery.body.decode("ascii")
        self._changes.retried.append((*lease, self._now() + delay, delivery.attempts, delivery.error_type, body))

    def unclaim(self, deliveries: Iterable[Delivery]) -> None:
        """Make *deliveries* due again at once; their attempts still count."""
        for delivery in list(deliveries):
            self.retry(delivery, delay=0.0)

    def finish(self, delivery: Delivery, result: Result) -> None:
        """Delete *delivery*, or keep it as discarded."""
        lease = self._leased.pop(delivery, None)
        if lease is None:
            self._memory.finish(delivery, result)
            self._free(delivery)
        elif result == "discarded":
            self._changes.discarded.append((*lease, delivery.attempts, delivery.error_type))
        else:
            self._changes.delivered.append(lease)

    def counts(self) -> Counts:
        """Return how many events wait, how many of them are lost with the process, and how many are discarded."""
        in_memory, ended = len(self._memory), len(self._changes.delivered) + len(self._changes.discarded)
        journal = self._journal
        unwritten = in_memory + (len(journal) if journal is not None else 0)
        return Counts(self._state.waiting + unwritten - ended, in_memory, self._state.discarded)

    def oldest_age(self) -> float:
        """Return the age in seconds of the oldest event that is not finished; 0 when there is none. From any thread."""
        journal, oldest = self._journal, self._state.oldest
        ages = [self._memory.oldest_age(), journal.oldest_age(self._now()) if journal is not None else 0.0]
        if oldest is not None:
            ages.append(self._now() - oldest)
        return max(0.0, *ages)

    def __len__(self) -> int:
        journal = self._journal
        return len(self._memory) + (len(journal) if journal is not None else 0)

    def close(self) -> None:
        """Write what waits, and close the file. What the journal still holds is left to the next process."""
        self._write()
        if self._rows is not None:
            self._rows.database.close()
            self._rows = None
        if self._journal is not None:
            self._journal.close(remove=not len(self._journal) and not self._slots)
            self._journal = None

    # The worker thread's part.

    def _now(self) -> float:
        """Return unix seconds, by a clock that goes on as it was when this store was made."""
        return self._monotonic() + self._clock_offset

    def _waiting_everywhere(self) -> int:
        ended = len(self._changes.delivered) + len(self._changes.discarded)
        return self._state.all_waiting + len(self) - ended

    def _set_state(self, state: State) -> None:
        self._state = state
        self._may_be_full = state.all_waiting + self._unwritten >= self._options.max_rows

    def _has_changes(self) -> bool:
        return bool(self._changes or len(self))

    def _write(self, lease: Callable[[EndpointRows, float], list[Row]] = lambda _, __: []) -> list[Row] | None:
        """Write all changes and *lease* rows, in one transaction. None when the database cannot be used."""
        if self._monotonic() < self._try_at:
            return None
        records = self._journal.take(_BATCH) if self._journal is not None else []
        waiting = self._memory.claim_older(0.0)
        is_written = False
        try:
            rows = self._open_rows()
            self._add([*map(self._from_record, records), *waiting])
            with rows.database.transaction():
                now = self._now()
                rows.write(self._changes, now)
                leased = lease(rows, now)
                state = rows.state()
            is_written = True
        except OutboxError as error:
            self._on_error(error)
            return None
        finally:
            self._after_write(records, waiting, is_written=is_written)
        self._set_state(state)
        self._on_success()
        return leased

    def _add(self, deliveries: Iterable[Delivery]) -> None:
        """Add a new row for each of *deliveries* to the changes."""
        offset = self._clock_offset
        for one in deliveries:
            resource, content = self._pipelines.resource(one.pipeline)
            self._changes.resources[resource] = content
            name = self._pipelines.name(one.pipeline) if one.pipeline.processor is not None else None
            at, body = one.submitted_at + offset, one.body.decode("ascii")
            row = NewRow(one.id, event_json(one.event), resource, name, at, at, one.attempts, one.error_type, body)
            self._changes.new.append(row)

    def _from_record(self, record: JournalRecord) -> Delivery:
        submitted_at = min(
            record.put_at - self._clock_offset, self._monotonic()
        )  # another process's clock may be ahead
        return Delivery(webhook_id(record.event), record.event, record.pipeline, submitted_at)

    def _after_write(self, records: list[JournalRecord], waiting: list[Delivery], *, is_written: bool) -> None:
        """Forget *records* and *waiting*, which are rows now, or keep them."""
        if not is_written:
            self._changes.new, self._changes.resources = [], {}
            self._memory.unclaim(waiting)
            if self._journal is not None:
                self._journal.put_back(records)
            return
        self._changes = Changes()
        if self._journal is not None:
            self._journal.free(record.slot for record in records)
        for delivery in waiting:
            self._memory.finish(delivery, "handed_over")
            self._free(delivery)
        if waiting and not self._is_said:
            self._is_said = True
            log_safely(
                logging.WARNING,
                "%d events waited in memory before they were written to the outbox %s: its journal was full, or they "
                "were too long for it; a kill at that moment loses them (step_hook.queue.in_memory counts them)",
                len(waiting),
                self._options.path,
            )

    def _open_rows(self) -> EndpointRows:
        if self._rows is None:
            options = self._options
            self._rows = EndpointRows(Database(options.path), options.endpoint, self._owner, options.lease_time)
            self._warn_of_unknown(self._rows)
        return self._rows

    def _warn_of_unknown(self, rows: EndpointRows) -> None:
        for name, waiting in rows.others(self._options.endpoints):
            text = "the outbox %s has %d deliveries for endpoint %s, which this process does not know: they are left"
            log_safely(logging.WARNING, text, self._options.path, waiting, name)

    def _delivery(self, row: Row) -> Delivery:
        delivery = Delivery(
            row.webhook_id,
            event_from_json(row.event),
            self._pipelines.find(row.pipeline, row.resource_hash, row.resource),
            self._monotonic() - max(0.0, self._now() - row.submitted_at),
            row.body.encode("ascii"),
            row.attempts,
            row.error_type,
        )
        self._leased[delivery] = (row.id, row.lease)
        return delivery

    def _claim_in_memory(self, limit: int) -> list[Delivery]:
        """Lease up to *limit* deliveries from memory and journal. Their slots stay, so that a kill loses nothing."""
        while self._journal and limit > 0 and (records := self._journal.take(1)):
            if self._memory.put(records[0].event, records[0].pipeline) is Stored.FULL:
                self._journal.put_back(records)
                break
            self._slots.setdefault(webhook_id(records[0].event), []).append(records[0].slot)
        return self._memory.claim(limit)

    def _free(self, delivery: Delivery) -> None:
        slots = self._slots.pop(delivery.id, ())
        if self._journal is not None:
            self._journal.free(slots)

    def _look(self) -> None:
        """Take over what processes that have ended left, and tidy the rows."""
        self._look_at = self._monotonic() + LOOK_INTERVAL
        options, now = self._options, self._now()
        if self._monotonic() < self._try_at:
            return
        try:
            rows = self._open_rows()
            for journal in abandoned(options.path.parent, _prefix(options)):
                self._take_over(rows, journal)
            rows.tidy(now=now, latest_due=now + options.longest_wait, discarded_before=now - options.keep, limit=_BATCH)
            self._set_state(rows.state())
        except OutboxError as error:
            self._on_error(error)

    def _take_over(self, rows: EndpointRows, journal: Journal) -> None:
        is_done = False
        try:
            count = len(journal)
            while records := journal.take(_BATCH):
                self._add(map(self._from_record, records))
                new = Changes(self._changes.new, self._changes.resources)
                with rows.database.transaction():
                    rows.write(new, self._now())
            rows.release(journal.owner, self._now())
            is_done = True
        finally:
            self._changes.new, self._changes.resources = [], {}
            journal.close(remove=is_done)
        if count:
            text = "took %d steps of a process that has ended over into the outbox %s"
            log_safely(logging.INFO, text, count, self._options.path)

    def _on_error(self, error: OutboxError) -> None:
        self._fault = error
        self._try_at = float("inf") if error.is_final else self._monotonic() + _RETRY_INTERVAL
        if self._rows is not None:
            self._rows.database.close()
            self._rows = None
        if self._monotonic() >= self._log_at:
            self._log_at = self._monotonic() + _LOG_INTERVAL
            text = "the outbox %s %s; meanwhile webhooks are sent from memory, and what waits there may be lost"
            log_safely(logging.ERROR, text, self._options.path, error)

    def _on_success(self) -> None:
        if self._fault is not None:
            self._fault, self._log_at = None, -float("inf")
            log_safely(logging.INFO, "the outbox %s can be used again", self._options.path)


def _prefix(options: OutboxOptions) -> str:
    """Return how the names of the journals of an endpoint begin."""
    return f"{options.path.name}.{hashlib.sha256(options.endpoint.encode()).hexdigest()[:8]}."
