"""The rows of an outbox: the statements by which deliveries of one endpoint are stored, leased and finished."""

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from otel_step_hook.delivery.database import Database
from otel_step_hook.delivery.model import Delivery
from otel_step_hook.delivery.serialization import event_json

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_JSON = json.JSONEncoder(separators=(",", ":"))
_LATE_AFTER = 1.0  # seconds; deliveries are late when the oldest that is due has waited longer
_INSERTED = 1000  # rows of one statement: some 30 ms; a fork waits until it ends, but for 50 ms at most

# Rows are passed as one JSON text: with a value for each, every row would wait for the interpreter's lock.
_INSERT_RESOURCES = """
INSERT OR IGNORE INTO resource SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:rows)
"""
_INSERT = """
INSERT INTO delivery (webhook_id, event, resource, pipeline, submitted_at, due_at, attempts, error_type, body,
                      endpoint, is_new)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
       json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]'),
       json_extract(value, '$[6]'), json_extract(value, '$[7]'), json_extract(value, '$[8]'),
       :endpoint, json_extract(value, '$[6]') = 0
FROM json_each(:rows) WHERE true
ON CONFLICT (webhook_id, endpoint) DO UPDATE  -- a discarded delivery is revived
SET discarded_at = NULL, owner = NULL, is_new = 1, attempts = 0, submitted_at = excluded.submitted_at,
    due_at = excluded.due_at
WHERE discarded_at IS NOT NULL
"""
# "+owner": not by its index, in which all rows of this process are.
_DELETE = """
DELETE FROM delivery WHERE id IN (SELECT json_extract(value, '$[0]') FROM json_each(:leases))
AND +owner = :owner
AND (id, lease) IN (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:leases))
"""
_RETRY = """
UPDATE delivery
SET owner = NULL, due_at = new.due_at, attempts = new.attempts, error_type = new.error_type, body = new.body
FROM (SELECT json_extract(value, '$[0]') AS id, json_extract(value, '$[1]') AS lease,
             json_extract(value, '$[2]') AS due_at, json_extract(value, '$[3]') AS attempts,
             json_extract(value, '$[4]') AS error_type, json_extract(value, '$[5]') AS body
      FROM json_each(:rows)) AS new
WHERE delivery.id = new.id AND +delivery.owner = :owner AND delivery.lease = new.lease
"""
_DISCARD = """
UPDATE delivery SET owner = NULL, discarded_at = :now, attempts = new.attempts, error_type = new.error_type
FROM (SELECT json_extract(value, '$[0]') AS id, json_extract(value, '$[1]') AS lease,
             json_extract(value, '$[2]') AS attempts, json_extract(value, '$[3]') AS error_type
      FROM json_each(:rows)) AS new
WHERE delivery.id = new.id AND +delivery.owner = :owner AND delivery.lease = new.lease
"""
_LEASE = "UPDATE delivery SET owner = :owner, lease = :lease, due_at = :until, is_new = 0 WHERE id IN "
_OLDEST_DUE = """
(SELECT id FROM delivery WHERE endpoint = :endpoint AND discarded_at IS NULL AND due_at <= :now
 AND owner IS NOT :owner ORDER BY due_at, id LIMIT :limit)
"""
_NEWEST = """
(SELECT id FROM delivery WHERE endpoint = :endpoint AND discarded_at IS NULL AND is_new ORDER BY id DESC LIMIT :limit)
"""
_OLDER = """
(SELECT id FROM delivery WHERE endpoint = :endpoint AND discarded_at IS NULL AND submitted_at <= :before
 AND owner IS NOT :owner AND (owner IS NULL OR due_at <= :now) ORDER BY submitted_at LIMIT :limit)
"""
# Without the name of the index, SQLite goes through all rows in the order that is asked for.
_LEASED = """
SELECT id, lease, webhook_id, event, pipeline, submitted_at, attempts, error_type, body, resource,
       (SELECT content FROM resource WHERE hash = delivery.resource), redeliveries
FROM delivery INDEXED BY delivery_due
WHERE endpoint = :endpoint AND discarded_at IS NULL AND due_at = :until AND owner = :owner
ORDER BY submitted_at, id
"""
_NEXT_DUE = """
SELECT due_at FROM delivery WHERE endpoint = :endpoint AND discarded_at IS NULL AND owner IS NOT :owner
ORDER BY due_at LIMIT 1
"""
_STATE = """
SELECT (SELECT min(submitted_at) FROM delivery WHERE endpoint = :endpoint AND discarded_at IS NULL),
       (SELECT rows FROM row_count WHERE endpoint = :endpoint AND is_discarded = 0),
       (SELECT rows FROM row_count WHERE endpoint = :endpoint AND is_discarded = 1),
       (SELECT sum(rows) FROM row_count WHERE is_discarded = 0)
"""
_RELEASE = "UPDATE delivery SET owner = NULL, due_at = :now WHERE owner = :owner AND discarded_at IS NULL"
_FAR_DUE = """
UPDATE delivery SET due_at = :now WHERE endpoint = :endpoint AND discarded_at IS NULL AND due_at > :latest
"""
_PURGE = """
DELETE FROM delivery WHERE id IN
(SELECT id FROM delivery WHERE endpoint = :endpoint AND discarded_at IS NOT NULL AND discarded_at < :before
 ORDER BY discarded_at LIMIT :limit)
"""
_PURGE_OLDEST = """
DELETE FROM delivery WHERE id IN
(SELECT id FROM delivery WHERE discarded_at IS NOT NULL ORDER BY discarded_at LIMIT :limit)
"""
_UNUSED_RESOURCES = """
DELETE FROM resource WHERE NOT EXISTS (SELECT 1 FROM delivery WHERE delivery.resource = resource.hash)
"""


def known_clock_offset(database: Database) -> float | None:
    """Return unix seconds at monotonic time 0, as `EndpointRows.clock_offset` has stored them; None if it has not."""
    with contextlib.suppress(OSError):
        found = database.execute("SELECT started_at FROM clock WHERE boot = ?", (_BOOT.read_text().strip(),))
        return found[0][0] if found else None
    return None


class NewRow(NamedTuple):
    """A delivery that is to be stored. *event* is JSON, *resource* a hash; times are in unix seconds."""

    webhook_id: str
    event: str
    resource: str
    pipeline: str | None
    submitted_at: float
    due_at: float
    attempts: int
    error_type: str
    body: str


class Row(NamedTuple):
    """A delivery that is leased. *resource* is its JSON, or None where it is missing."""

    id: int
    lease: int
    webhook_id: str
    event: str
    pipeline: str | None
    submitted_at: float
    attempts: int
    error_type: str
    body: str
    resource_hash: str
    resource: str | None
    redeliveries: int


class State(NamedTuple):
    """What is known of the rows of an endpoint, and of all of them; times are in unix seconds."""

    next_due: float | None  # of those that this process has not leased
    oldest: float | None
    waiting: int
    discarded: int
    all_waiting: int


@dataclass(slots=True)
class Changes:
    """What the next transaction writes. The first two items of a row that is leased are its id and its lease."""

    new: list[NewRow] = field(default_factory=list)
    resources: dict[str, str] = field(default_factory=dict)  # JSON by hash
    delivered: list[tuple[int, int]] = field(default_factory=list)
    retried: list[tuple[int, int, float, int, str, str]] = field(default_factory=list)  # due_at, attempts, error, body
    discarded: list[tuple[int, int, int, str]] = field(default_factory=list)  # attempts, error_type

    def __bool__(self) -> bool:
        return bool(self.new or self.delivered or self.retried or self.discarded)

    def add(
        self, delivery: Delivery, at: float, due_at: float, *, pipeline: str | None, resource: str, content: str
    ) -> None:
        """Add a row for *delivery*, submitted *at* (unix seconds), whose *resource* (a hash) has the JSON *content*."""
        event, body = event_json(delivery.event), delivery.body.decode("ascii")
        row = NewRow(delivery.id, event, resource, pipeline, at, due_at, delivery.attempts, delivery.error_type, body)
        self.new.append(row)
        self.resources[resource] = content

    def forget_new(self) -> None:
        """Remove the new rows."""
        self.new, self.resources = [], {}


class EndpointRows:
    """The rows of *endpoint*, for the process *owner*. Leases last *lease_time* seconds.

    For the thread of *database*. Raises `OutboxError`; then nothing has changed.
    """

    def __init__(self, database: Database, endpoint: str, owner: str, lease_time: float) -> None:
        self.database = database
        self._endpoint = endpoint
        self._owner = owner
        self._lease_time = lease_time
        self._lease = 0
        self._until = 0.0
        self._rounds_up = True

    def write(self, changes: Changes, now: float) -> None:
        """Write *changes*. To be called in a transaction."""
        change = self.database.change
        if changes.delivered:
            change(_DELETE, {"leases": _JSON.encode(changes.delivered), "owner": self._owner})
        if changes.retried:
            change(_RETRY, {"rows": _JSON.encode(changes.retried), "owner": self._owner})
        if changes.discarded:
            change(_DISCARD, {"rows": _JSON.encode(changes.discarded), "owner": self._owner, "now": now})
        if changes.new:
            change(_INSERT_RESOURCES, {"rows": _JSON.encode(list(changes.resources.items()))})
            for start in range(0, len(changes.new), _INSERTED):
                rows = changes.new[start : start + _INSERTED]
                change(_INSERT, {"rows": _JSON.encode(rows), "endpoint": self._endpoint})

    def lease_due(self, limit: int, now: float) -> list[Row]:
        """Lease up to *limit* due rows, half of them the newest while the oldest waits for long. In a transaction."""
        due = self.next_due() if limit > 0 else None
        if due is None or due > now:
            return []
        if now - due <= _LATE_AFTER:
            return self.lease(limit, 0, now)
        self._rounds_up = not self._rounds_up
        newest = (limit + self._rounds_up) // 2
        return self.lease(limit - newest, newest, now)

    def lease(self, oldest: int, newest: int, now: float) -> list[Row]:
        """Lease up to *oldest* rows that are due the longest, and up to *newest* of the newest that are new.

        Where there are fewer new ones, more of those that are due take their place. To be called in a transaction.
        """
        values = self._next_lease(now)
        limit = oldest + newest
        limit -= self.database.change(_LEASE + _OLDEST_DUE, values | {"limit": oldest})
        limit -= self.database.change(_LEASE + _NEWEST, values | {"limit": newest}) if newest else 0
        if newest and limit:
            self.database.change(_LEASE + _OLDEST_DUE, values | {"limit": limit})
        return self._leased(values)

    def lease_older(self, before: float, limit: int, now: float) -> list[Row]:
        """Lease up to *limit* rows, due or not, that were submitted *before* (unix seconds)."""
        values = self._next_lease(now)
        self.database.change(_LEASE + _OLDER, values | {"before": before, "limit": limit})
        return self._leased(values)

    def _next_lease(self, now: float) -> dict[str, object]:
        self._lease = max(self._lease + 1, int(now * 1e6))  # also above those from before the file was opened again
        self._until = max(self._until + 1e-3, now + self._lease_time)  # no two leases end at the same moment
        owner = {"owner": self._owner, "endpoint": self._endpoint}
        return {**owner, "lease": self._lease, "until": self._until, "now": now}

    def _leased(self, values: dict[str, object]) -> list[Row]:
        return [Row(*found) for found in self.database.execute(_LEASED, values)]

    def clock_offset(self, offset: float) -> float:
        """Return unix seconds at monotonic time 0: those of the first process of this boot, or else *offset*.

        Leases of several processes, and what earlier ones left, are compared by it, so that a wall clock that jumps
        changes nothing.
        """
        with contextlib.suppress(OSError):  # macOS has no such file: there each process goes by its own clock
            boot = _BOOT.read_text().strip()
            known = "SELECT started_at FROM clock WHERE boot = ?"
            if not self.database.execute(known, (boot,)):
                self.database.change("INSERT OR IGNORE INTO clock VALUES (?, ?)", (boot, offset))
            ((offset,),) = self.database.execute(known, (boot,))
        return offset

    def next_due(self) -> float | None:
        """Return when the first row is due that this process has not leased."""
        found = self.database.execute(_NEXT_DUE, {"endpoint": self._endpoint, "owner": self._owner})
        return found[0][0] if found else None

    def state(self) -> State:
        """Return what is known of the rows."""
        ((oldest, waiting, discarded, all_waiting),) = self.database.execute(_STATE, {"endpoint": self._endpoint})
        return State(self.next_due(), oldest, waiting or 0, discarded or 0, all_waiting or 0)

    def others(self, endpoints: frozenset[str]) -> list[tuple[str, int]]:
        """Return name and number of waiting rows of each endpoint that is none of *endpoints*."""
        found = self.database.execute("SELECT endpoint, rows FROM row_count WHERE is_discarded = 0 AND rows > 0")
        return [(name, rows) for name, rows in found if name not in endpoints]

    def release(self, owner: str, now: float) -> None:
        """Make all rows due that *owner*, which has ended, had leased."""
        self.database.change(_RELEASE, {"owner": owner, "now": now})

    def tidy(self, *, now: float, latest_due: float, discarded_before: float, limit: int) -> None:
        """Make rows due whose due time is after *latest_due*, and delete those *discarded_before*, at most *limit*.

        Rows of other endpoints are left alone. To be called in a transaction, as `purge_beyond`.
        """
        self.database.change(_FAR_DUE, {"endpoint": self._endpoint, "now": now, "latest": latest_due})
        self.database.change(_PURGE, {"endpoint": self._endpoint, "before": discarded_before, "limit": limit})
        self.database.change(_UNUSED_RESOURCES)

    def purge_beyond(self, max_rows: int, limit: int) -> None:
        """Delete the oldest discarded rows, at most *limit*, while all rows together are more than *max_rows*.

        Of all endpoints: else rows of one that no process knows would take the room for ever, and what others discard
        would be deleted at once.
        """
        ((rows,),) = self.database.execute("SELECT coalesce(sum(rows), 0) FROM row_count")
        if rows > max_rows:
            self.database.change(_PURGE_OLDEST, {"limit": min(limit, rows - max_rows)})
