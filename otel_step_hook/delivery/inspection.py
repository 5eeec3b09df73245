"""What the command line reads and changes in an outbox, over all endpoints: the rows that its filters select.

Its transactions are short, so that applications that use the same file go on.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Self

from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.database import Database
from otel_step_hook.delivery.rows import known_clock_offset

_BATCH = 500  # rows that one transaction changes: it takes some 10 ms
_FILTERED = """
FROM (
    SELECT *, json_extract(event, '$.step_id') AS step_id, json_extract(event, '$.outcome') AS outcome,
           CASE WHEN discarded_at IS NOT NULL THEN 'discarded'
                WHEN owner IS NOT NULL AND due_at > :now THEN 'leased' ELSE 'waiting' END AS state
    FROM delivery
) AS found
WHERE (:ids IS NULL OR webhook_id IN (SELECT value FROM json_each(:ids))
       OR step_id IN (SELECT value FROM json_each(:ids)))
AND (:states IS NULL OR state IN (SELECT value FROM json_each(:states)))
AND (:outcomes IS NULL OR outcome IN (SELECT value FROM json_each(:outcomes)))
AND (:endpoints IS NULL OR endpoint IN (SELECT value FROM json_each(:endpoints)))
AND (:errors IS NULL OR error_type IN (SELECT value FROM json_each(:errors)))
AND (:older IS NULL OR submitted_at <= :now - :older)
AND (:younger IS NULL OR submitted_at >= :now - :younger)
"""
_COLUMNS = """
SELECT webhook_id, endpoint, state, attempts, error_type, submitted_at + :ahead, due_at + :ahead, discarded_at + :ahead,
       owner, body, event, (SELECT content FROM resource WHERE hash = found.resource)
"""
_OLDEST = "ORDER BY submitted_at, found.id LIMIT :limit"
_NEXT_DISCARDED = "AND discarded_at IS NOT NULL AND found.id > :after ORDER BY found.id LIMIT :limit"
_REDELIVER = """
UPDATE delivery
SET discarded_at = NULL, owner = NULL, is_new = 1, attempts = 0, submitted_at = :now, due_at = :now,
    redeliveries = redeliveries + 1
WHERE id IN (SELECT value FROM json_each(:rows)) AND discarded_at IS NOT NULL
"""
_PURGE = "DELETE FROM delivery WHERE id IN (SELECT value FROM json_each(:rows)) AND discarded_at IS NOT NULL"
_ENDPOINTS = """
SELECT endpoint, sum(rows * (1 - is_discarded)), sum(rows * is_discarded),
       (SELECT min(submitted_at) + :ahead FROM delivery WHERE endpoint = row_count.endpoint AND discarded_at IS NULL)
FROM row_count GROUP BY endpoint HAVING sum(rows) > 0 ORDER BY endpoint
"""
_WAITING = """
SELECT (SELECT sum(rows) FROM row_count WHERE endpoint = :endpoint AND is_discarded = 0),
       (SELECT min(due_at) + :ahead FROM delivery WHERE endpoint = :endpoint AND discarded_at IS NULL)
"""


class RowState(StrEnum):
    """What is going on with a delivery. Leased: a process makes an attempt."""

    WAITING = "waiting"
    LEASED = "leased"
    DISCARDED = "discarded"


@dataclass(frozen=True, slots=True)
class Filters:
    """Which deliveries are meant: those that agree with each field that is not empty or None.

    *ids* are webhook ids or step ids. *older* and *younger* are ages in seconds: how long ago the hook saw the step
    end, or since the delivery was last made due again.
    """

    ids: Sequence[str] = ()
    states: Sequence[str] = ()
    outcomes: Sequence[str] = ()
    endpoints: Sequence[str] = ()
    errors: Sequence[str] = ()
    older: float | None = None
    younger: float | None = None

    def __bool__(self) -> bool:
        return any(value is not None for value in self.values().values())

    def values(self) -> dict[str, object]:
        """Return the values of the statements. Texts are passed as JSON: not every text can be a value of SQLite."""
        names = ("ids", "states", "outcomes", "endpoints", "errors")
        texts = {name: json.dumps(list(given)) if (given := getattr(self, name)) else None for name in names}
        return {**texts, "older": self.older, "younger": self.younger}


class StoredDelivery(NamedTuple):
    """A row. Times are in unix seconds by the wall clock; *event* and *resource* are what the row has as JSON."""

    webhook_id: str
    endpoint: str
    state: str
    attempts: int
    error_type: str
    submitted_at: float
    due_at: float  # of a leased row: when the lease ends
    discarded_at: float | None
    owner: str | None
    body: str
    event: dict[str, Any]
    resource: dict[str, Any]


class EndpointCounts(NamedTuple):
    """How many deliveries of an endpoint wait, leased ones included, and how many are discarded.

    *oldest_at* is when the oldest that waits was submitted, in unix seconds.
    """

    endpoint: str
    waiting: int
    discarded: int
    oldest_at: float | None


class Inspection:
    """The open outbox at *path*. For one thread. Raises `OutboxError`, for a missing file, too, unless it *may_create*.

    All times are those of the wall clock, in unix seconds, although rows go by a clock that does not jump with it.
    """

    def __init__(self, path: Path, *, may_create: bool = False) -> None:
        self._database = Database(path, may_create=may_create)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def endpoints(self) -> list[EndpointCounts]:
        """Return the counts of each endpoint that has rows."""
        return [EndpointCounts._make(found) for found in self._database.execute(_ENDPOINTS, self._times())]

    def waiting(self, endpoint: str) -> tuple[int, float | None]:
        """Return how many deliveries of *endpoint* wait, and when the first is due or its lease ends."""
        ((waiting, due_at),) = self._database.execute(_WAITING, self._times() | {"endpoint": endpoint})
        return waiting or 0, due_at

    def find(self, filters: Filters, limit: int) -> list[StoredDelivery]:
        """Return the deliveries that agree with *filters*, oldest first, at most *limit*."""
        values = self._values(filters) | {"limit": limit}
        return [_stored(row) for row in self._database.execute(_COLUMNS + _FILTERED + _OLDEST, values)]

    def count(self, filters: Filters) -> int:
        """Return how many deliveries agree with *filters*."""
        return int(self._database.execute("SELECT count(*)" + _FILTERED, self._values(filters))[0][0])

    def count_discarded(self, filters: Filters) -> int:
        """Return how many discarded deliveries agree with *filters*."""
        return self.count(replace(filters, states=[RowState.DISCARDED]))

    def redeliver(self, filters: Filters) -> int:
        """Make discarded deliveries that agree with *filters* due, as if they were new; return their number."""
        change, times = self._database.change, self._times()
        return sum(change(_REDELIVER, times | {"rows": rows}) for rows in self._discarded(filters))

    def purge(self, filters: Filters) -> int:
        """Delete discarded deliveries that agree with *filters*; return their number."""
        return sum(self._database.change(_PURGE, {"rows": rows}) for rows in self._discarded(filters))

    def _discarded(self, filters: Filters) -> Iterator[str]:
        """Yield the ids of discarded rows as JSON, some at a time."""
        values, after = self._values(filters) | {"limit": _BATCH}, 0
        while found := self._database.execute(
            "SELECT found.id" + _FILTERED + _NEXT_DISCARDED, values | {"after": after}
        ):
            rows = [row for (row,) in found]
            after = rows[-1]
            yield json.dumps(rows)

    def _values(self, filters: Filters) -> dict[str, object]:
        return self._times() | filters.values()

    def _times(self) -> dict[str, object]:
        """Return the time *now* by the clock of the rows, and by how many seconds the wall clock is *ahead* of it."""
        offset = known_clock_offset(self._database)
        wall, since_boot = time.time(), monotonic()
        now = wall if offset is None else since_boot + offset
        return {"now": now, "ahead": wall - now}


def _stored(row: Sequence[Any]) -> StoredDelivery:
    """Return the delivery of a row of `_COLUMNS`."""
    *values, event, resource = row
    return StoredDelivery._make([*values, json.loads(event), json.loads(resource or "{}")])
