"""What a delivery costs must not depend on how many others wait: counted in steps of SQLite's virtual machine."""

import sqlite3
from pathlib import Path

from delivering import event
from opentelemetry.sdk.resources import Resource

from otel_step_hook.delivery.database import Database
from otel_step_hook.delivery.model import Pipeline
from otel_step_hook.delivery.outbox import OutboxStore
from otel_step_hook.delivery.outbox_file import OutboxOptions
from otel_step_hook.delivery.rows import EndpointRows

_COPY = """
INSERT INTO delivery (webhook_id, event, resource, pipeline, submitted_at, due_at, is_new, attempts, error_type, body,
                      endpoint)
WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < ?)
SELECT 'msg_' || n, event, resource, pipeline, submitted_at, due_at - n * 1e-3, 1, 0, 'expired', '', endpoint
FROM number, (SELECT * FROM delivery LIMIT 1)
"""


def _options(path: Path) -> OutboxOptions:
    return OutboxOptions(path, "default", frozenset({"default"}), 40.0, 3600.0, 604_800.0, 10_000_000)


def _fill(path: Path, rows: int) -> None:
    store = OutboxStore(_options(path), 1)
    store.put(event(), Pipeline(None, Resource({})))
    store.close()
    with sqlite3.connect(path) as database:
        database.execute(_COPY, (rows,))
    database.close()


def _steps(path: Path, rows: int) -> int:
    """The steps that leases, the end of another process, and a look at the rows cost, where so many wait."""
    _fill(path, rows)
    counted = [0]

    def count() -> int:
        counted[0] += 1
        return 0

    database = Database(path)
    database._connection.set_progress_handler(count, 10)
    waiting, now = EndpointRows(database, "default", "this process", 40.0), 2e9
    with database.transaction():
        waiting.lease(4, 4, now)
        waiting.lease_older(now, 4, now)
        waiting.release("another process", now)
        waiting.tidy(now=now, latest_due=now + 3600, discarded_before=0.0, limit=1000)
        waiting.state()
    database.close()
    return counted[0]


def test_a_delivery_costs_the_same_however_many_others_wait(tmp_path: Path) -> None:
    """No statement goes through all rows, whatever plan SQLite makes for it."""
    few, many = _steps(tmp_path / "few.db", 100), _steps(tmp_path / "many.db", 20_000)
    assert many < 1.5 * few
