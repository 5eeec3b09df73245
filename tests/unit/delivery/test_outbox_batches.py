"""How often the outbox writes to its database: each transaction waits for the disk."""

import sqlite3
from pathlib import Path

from delivering import event
from opentelemetry.sdk.resources import Resource

from otel_step_hook.delivery.model import Pipeline
from otel_step_hook.delivery.outbox import OutboxStore
from otel_step_hook.delivery.outbox_file import OutboxOptions

PIPELINE = Pipeline(None, Resource({}))


def _store(path: Path) -> OutboxStore:
    return OutboxStore(OutboxOptions(path, "default", frozenset({"default"}), 40.0, 3600.0, 604_800.0, 10_000), 100)


def _rows(path: Path) -> int:
    with sqlite3.connect(path) as database:
        (count,) = database.execute("SELECT count(*) FROM delivery").fetchone()
    database.close()
    return int(count)


def test_a_result_is_written_together_with_the_next_lease(tmp_path: Path) -> None:
    """To look for expired deliveries writes nothing while none can be expired: the claim that follows does."""
    store = _store(tmp_path / "steps.db")
    store.put(event(), PIPELINE)
    (delivery,) = store.claim(8)
    store.finish(delivery, "delivered")
    assert store.claim_older(3600.0) == []
    assert _rows(tmp_path / "steps.db") == 1
    assert store.claim(8) == []
    assert _rows(tmp_path / "steps.db") == 0
    store.close()


def test_all_that_waits_in_the_journal_becomes_rows_at_once(tmp_path: Path) -> None:
    """A transaction in an application that computes takes long, however few rows it writes."""
    store = _store(tmp_path / "steps.db")
    for _ in range(1500):
        store.put(event(), PIPELINE)
    assert len(store.claim(1)) == 1
    assert _rows(tmp_path / "steps.db") == 1500
    store.close()
