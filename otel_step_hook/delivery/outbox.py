"""The store on disk: owns the journal that `put` writes to, and the way from there to the rows of one endpoint.

What cannot go into the journal waits in memory until the worker thread has written it to the database. While the
database cannot be used, deliveries are made from journal and memory.
"""

import functools
import logging
import time
import uuid
from collections.abc import Callable, Collection, Iterable

from otel_step_hook.delivery import native
from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.journal import SLOTS, Journal, JournalRecord
from otel_step_hook.delivery.log import log_safely
from otel_step_hook.delivery.memory import MemoryStore
from otel_step_hook.delivery.model import Counts, Delivery, Pipeline, Result
from otel_step_hook.delivery.outbox_file import BATCH, OutboxFile, OutboxOptions
from otel_step_hook.delivery.pipelines import RowPipelines
from otel_step_hook.delivery.request import webhook_id
from otel_step_hook.delivery.rows import Changes, EndpointRows, Row
from otel_step_hook.delivery.store import Stored
from otel_step_hook.steps.event import StepEvent

_IN_MEMORY = (
    "%d events waited in memory before they were written to the outbox %s: its journal was full, or they were too long "
    "for it; a kill at that moment loses them (the metric step_hook.outbox.in_memory_events counts them)"
)
_LEFT = (
    "%d steps wait in a journal beside the outbox %s, which could not be used: the next process with this outbox "
    "delivers them"
)


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
        self._owner = uuid.uuid4().hex
        self._memory = MemoryStore(max_queue_size, monotonic=monotonic)
        self._max_in_memory = max_queue_size
        self._journal: Journal | None = None
        self._may_create = native.allocate_lock()  # taken once, by the thread that creates the journal
        # What follows is for the worker thread; `put`, `counts` and `oldest_age` read some of it.
        self._pipelines = RowPipelines(self._owner)
        self._file = OutboxFile(options, self._owner, self._pipelines, monotonic=monotonic, now=now)
        self._changes = Changes()
        self._leased: dict[Delivery, tuple[int, int]] = {}
        self._slots: dict[str, list[int]] = {}  # of the journal, by webhook id: of deliveries that are made from it
        self._in_slots = 0  # how many slots those are
        self._unwritten = SLOTS + max_queue_size  # events that may wait outside of the database
        self._may_be_full = self._unwritten >= options.max_rows
        self._is_said = False  # that events waited in memory

    @property
    def is_durable(self) -> bool:
        """Whether what waits survives the process. False while the database cannot be used."""
        return self._file.fault is None

    def open(self) -> None:
        """Create the journal. Called at the start, and in a forked child by the first `put`. Does not raise."""
        if not self._may_create.acquire(blocking=False):
            return
        options = self._options
        try:
            self._journal = Journal.create(options.path.parent, options.journal_prefix, self._owner)
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
        if journal is not None and journal.write(event, pipeline, self._monotonic(), self._file.clock_offset):
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
        self._file.look()
        next_due = self._file.state.next_due
        is_due = limit > 0 and next_due is not None and next_due <= self._file.now()
        leased: list[Row] | None = []
        if is_due or self._has_changes() or self._file.fault is not None:
            leased = self._write(lambda rows, now: rows.lease_due(limit, now))
        if leased is not None:
            return self._deliveries(leased)
        self._take_journal()
        return self._memory.claim(limit)

    def claim_older(self, age: float) -> list[Delivery]:
        """Lease deliveries, due or not, whose steps ended at least *age* seconds ago: some, if there are many."""
        claimed: list[Delivery] = []
        if self._file.fault is not None:
            self._take_journal()
            claimed = self._memory.claim_older(age)
        # Not for changes alone: `claim` comes next, and writes them together with its lease.
        if self.counts().waiting and self.oldest_age() >= age:
            leased = self._write(lambda rows, now: rows.lease_older(now - age, BATCH, now))
            claimed += self._deliveries(leased or ())
        return claimed

    def claim_lost(self) -> list[Delivery]:
        """Lease all deliveries that are in memory alone."""
        return self._memory.claim_lost(kept=self._slots)

    def keeps(self, delivery: Delivery) -> bool:
        """Whether the leased *delivery* has a row or a slot of the journal, or is about to get a row."""
        return self.is_durable or delivery in self._leased or delivery.id in self._slots

    def next_due(self) -> float | None:
        """Return the seconds until the first delivery is due: 0 when one is due, None when no delivery waits."""
        if self._has_changes():
            self._write()
        has_room = self._file.fault is None or len(self._memory) < self._max_in_memory
        if self._journal and has_room:
            return 0.0
        if self._file.fault is not None:
            return self._memory.next_due()
        due = self._file.state.next_due
        return None if due is None else max(0.0, due - self._file.now())

    def retry(self, delivery: Delivery, *, delay: float) -> None:
        """Make *delivery* due again after *delay* seconds."""
        lease = self._leased.pop(delivery, None)
        if lease is None:
            self._memory.retry(delivery, delay=delay)
            return
        body = delivery.body.decode("ascii")
        self._changes.retried.append((*lease, self._file.now() + delay, delivery.attempts, delivery.error_type, body))

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
        state, ended = self._file.state, len(self._changes.delivered) + len(self._changes.discarded)
        in_memory = max(0, len(self._memory) - self._in_slots)
        return Counts(state.waiting + len(self) - ended, in_memory, state.discarded)

    def oldest_age(self) -> float:
        """Return the age in seconds of the oldest event that is not finished; 0 when there is none. From any thread."""
        journal, oldest, now = self._journal, self._file.state.oldest, self._file.now()
        in_journal = journal.oldest_age(self._monotonic()) if journal is not None else 0.0
        return max(0.0, self._memory.oldest_age(), in_journal, 0.0 if oldest is None else now - oldest)

    def __len__(self) -> int:
        journal = self._journal
        return len(self._memory) + (len(journal) if journal is not None else 0)

    def close(self) -> None:
        """Write what waits, and close the file. What the journal still holds is left to the next process."""
        while self._has_changes() and self._write() is not None:
            pass
        self._file.close()
        if self._journal is not None:
            if left := len(self._journal) + self._in_slots:
                log_safely(logging.WARNING, _LEFT, left, self._options.path)
            self._journal.close(remove=not left)
            self._journal = None
        # From now on they are the next process's: a later loop of this one must not deliver or discard them.
        self._memory.remove([delivery for delivery in self._memory.waiting() if delivery.id in self._slots])
        self._slots, self._in_slots = {}, 0

    def _waiting_everywhere(self) -> int:
        ended = len(self._changes.delivered) + len(self._changes.discarded)
        return self._file.state.all_waiting + len(self) - ended

    def _has_changes(self) -> bool:
        # Not what is leased from memory: that cannot be written before its attempt has ended.
        return bool(self._changes or self._journal or self._memory.next_due() is not None)

    def _write(self, lease: Callable[[EndpointRows, float], list[Row]] = lambda _, __: []) -> list[Row] | None:
        """Write all changes and *lease* rows, in one transaction. None when the database cannot be used."""
        # All: what a transaction costs beside its rows, waiting for the interpreter's lock, would let the journal fill.
        records = self._journal.take(len(self._journal)) if self._journal is not None else []
        waiting = self._memory.waiting()
        leased = None
        try:
            leased = self._file.run(functools.partial(self._exchange, records, waiting, lease))
        finally:
            self._after_write(records, waiting, is_written=leased is not None)
        self._may_be_full = self._file.state.all_waiting + self._unwritten >= self._options.max_rows
        return leased

    def _exchange(
        self,
        records: Iterable[JournalRecord],
        waiting: dict[Delivery, float],
        lease: Callable[[EndpointRows, float], list[Row]],
        rows: EndpointRows,
        now: float,
    ) -> list[Row]:
        self._changes.forget_new()  # of an attempt that has failed
        self._file.add(self._changes, self._file.deliveries_of(records, 0.0))
        self._file.add(self._changes, waiting)
        rows.write(self._changes, now)
        return lease(rows, now)

    def _after_write(self, records: list[JournalRecord], waiting: Collection[Delivery], *, is_written: bool) -> None:
        """Forget *records* and *waiting*, which are rows now, or keep them."""
        if not is_written:
            if self._journal is not None:
                self._journal.put_back(records)
            return
        self._changes = Changes()
        if self._journal is not None:
            self._journal.free(record.slot for record in records)
        self._memory.remove(waiting)
        in_memory = sum(delivery.id not in self._slots for delivery in waiting)
        for delivery in waiting:
            self._free(delivery)
        if in_memory and not self._is_said:
            self._is_said = True
            log_safely(logging.WARNING, _IN_MEMORY, in_memory, self._options.path)

    def _deliveries(self, rows: Iterable[Row]) -> list[Delivery]:
        """Return the deliveries of *rows*; those that cannot be read are discarded, and do not keep the others."""
        made, unreadable = [], 0
        for row in rows:
            try:
                delivery = self._file.delivery_of_row(row)
                self._leased[delivery] = (row.id, row.lease)
                made.append(delivery)
            except (ValueError, LookupError, TypeError):  # of another version, or damaged
                self._changes.discarded.append((row.id, row.lease, row.attempts, "unreadable"))
                unreadable += 1
        if unreadable:
            text = "%d deliveries in the outbox %s cannot be read, and are discarded: their error is 'unreadable'"
            log_safely(logging.ERROR, text, unreadable, self._options.path)
        return made

    def _take_journal(self) -> None:
        """Put what is in the journal into memory, if there is room. Its slots stay, so that a kill loses nothing."""
        while self._journal and (records := self._journal.take(1)):
            if self._memory.put(records[0].event, records[0].pipeline, records[0].put_at) is Stored.FULL:
                self._journal.put_back(records)
                break
            self._slots.setdefault(webhook_id(records[0].event), []).append(records[0].slot)
            self._in_slots += 1

    def _free(self, delivery: Delivery) -> None:
        slots = self._slots.pop(delivery.id, ())
        self._in_slots -= len(slots)
        if self._journal is not None:
            self._journal.free(slots)
