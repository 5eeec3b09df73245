"""Measures what the outbox costs, beside the store in memory, and whether many rows make each of them dearer."""

import os
import shutil
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from measuring import ROUNDS, Passing, deliver, make_spans, timed
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from tables import Cell, Table

from otel_step_hook import StepHookProcessor, StepHookSettings
from otel_step_hook.delivery.model import Pipeline
from otel_step_hook.delivery.outbox import OutboxStore
from otel_step_hook.delivery.outbox_file import OutboxOptions
from otel_step_hook.steps.event import Outcome, StepEvent

FEW, MANY = 1000, 1_000_000  # rows
CLAIMED = 32  # deliveries at a time
NEW = 50  # steps that end after an outage, while `WAITING` others wait
WAITING = 20_000
PIPELINE = Pipeline(None, Resource({}))
_SPACED = 0.002  # seconds between two steps of an application that is busy with something else
_INSERT = "INSERT INTO step VALUES (?, ?)"
_COPY = """
INSERT INTO delivery (webhook_id, event, resource, pipeline, submitted_at, due_at, is_new, attempts, error_type, body,
                      endpoint)
WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < ?)
SELECT 'msg_' || lower(hex(randomblob(20))), event, resource, NULL, submitted_at - 60 - n * 1e-6,
       due_at - 60 - n * 1e-6, 1, 0, 'expired', '', endpoint
FROM number, (SELECT * FROM delivery LIMIT 1)
"""


class Durations(NamedTuple):
    """Microseconds of single calls."""

    median: float
    p99: float


class RowCosts(NamedTuple):
    """What it takes where so many rows wait: times to open the file, to claim a delivery, and to deliver it."""

    open_ms: float
    claim_us: float
    deliver_us: float


@contextmanager
def _directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="bench-outbox-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def _computing(threads: int) -> Iterator[None]:
    """Keep the interpreter busy with so many *threads*."""
    is_over = threading.Event()

    def compute() -> None:
        number = 0
        while not is_over.is_set():
            number += 1

    running = [threading.Thread(target=compute) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in running:
            thread.join()


def _durations(call: Callable[[ReadableSpan], object], spans: list[ReadableSpan], pause: float) -> list[float]:
    """Microseconds of each *call*, *pause* seconds after the other."""
    durations = []
    for span in spans:
        began = time.perf_counter_ns()
        call(span)
        durations.append((time.perf_counter_ns() - began) / 1000)
        if pause:
            time.sleep(pause)
    return durations


def _summary(durations: list[float]) -> Durations:
    return Durations(statistics.median(durations), statistics.quantiles(durations, n=100)[98])


def bench_on_end(url: str, *, threads: int, pause: float, rounds: int, count: int) -> Durations:
    """Microseconds of ``on_end`` of a step with an outbox, beside so many computing *threads*."""
    found: list[float] = []
    for _ in range(rounds):
        with _directory() as directory:
            hook = StepHookProcessor(StepHookSettings(webhook=url, outbox=str(directory / "steps.db")))
            spans = make_spans(Passing(hook), count, 8, step_id="step-1")
            with _computing(threads):
                found += _durations(hook.on_end, spans, pause)
            hook.shutdown()
    return _summary(found)


def bench_insert(*, threads: int, pause: float, rounds: int, count: int) -> Durations:
    """The same with an INSERT into SQLite in place of ``on_end``: WAL, synchronous=NORMAL, a table without indexes."""
    found: list[float] = []
    spans = make_spans(Passing(None), count, 8, step_id="step-1")
    for _ in range(rounds):
        with _directory() as directory:
            database = sqlite3.connect(directory / "steps.db", isolation_level=None)
            for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL", "CREATE TABLE step (id, event)"):
                database.execute(statement)
            with _computing(threads):
                found += _durations(lambda span: database.execute(_INSERT, (span.name, "x" * 300)), spans, pause)  # noqa: B023 -- called here
            database.close()
    return _summary(found)


def bench_deliveries(url: str) -> tuple[float, float]:
    """Median deliveries per second from memory and from an outbox, in turn."""
    rates: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        with _directory() as directory:
            in_memory = timed(lambda: deliver(url, 1500), 1500)[0]
            path = str(directory / "steps.db")
            rates.append((in_memory, timed(lambda path=path: deliver(url, 1500, outbox=path), 1500)[0]))  # type: ignore[misc]  # -- binds it now
    return statistics.median(rate[0] for rate in rates), statistics.median(rate[1] for rate in rates)


def _store(path: Path) -> OutboxStore:
    options = OutboxOptions(path, "default", frozenset({"default"}), 40.0, 3600.0, 604_800.0, 10 * MANY)
    return OutboxStore(options, 2048)


def _put(store: OutboxStore, name: str, count: int) -> None:
    for number, span in enumerate(make_spans(Passing(None), count, 0)):
        assert span.context is not None  # noqa: S101 -- for mypy: an ended span has one
        event = StepEvent(f"{name}-{number}", Outcome.SUCCESS, "step", span.context, 0, 1, {})
        store.put(event, PIPELINE)


def _fill(path: Path, rows: int) -> None:
    """Make an outbox in which so many *rows* wait that are due."""
    store = _store(path)
    _put(store, "step", 1)
    store.next_due()
    store.close()
    database = sqlite3.connect(path)
    with database:
        database.execute(_COPY, (rows,))
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    os.sync()  # else what the kernel still has to write is measured, too


def bench_rows(rows: int) -> RowCosts:
    """Median costs where so many *rows* wait."""
    opened, claimed, delivered = [], [], []
    with _directory() as directory:
        path = directory / "steps.db"
        _fill(path, rows)
        for _ in range(ROUNDS):
            began, store = time.perf_counter(), _store(path)
            store.claim(0)
            opened.append((time.perf_counter() - began) * 1000)
            for _ in range(3):  # all in all, fewer than there are in the smaller file
                began = time.perf_counter()
                deliveries = store.claim(CLAIMED)
                claimed.append((time.perf_counter() - began) / len(deliveries) * 1e6)
                for delivery in deliveries:
                    store.finish(delivery, "delivered")
                store.next_due()  # writes the results
                delivered.append((time.perf_counter() - began) / len(deliveries) * 1e6)
            store.close()
    return RowCosts(*map(statistics.median, (opened, claimed, delivered)))


def bench_newest() -> int:
    """How many deliveries are made until the `NEW` newest are among them, while `WAITING` others wait."""
    with _directory() as directory:
        path = directory / "steps.db"
        _fill(path, WAITING)
        store = _store(path)
        _put(store, "new", NEW)
        made, left = 0, NEW
        while left and (claimed := store.claim(CLAIMED)):
            for delivery in claimed:
                made += 1
                left -= delivery.event.step_id.startswith("new")
                store.finish(delivery, "delivered")
        store.close()
    return made


class Results(NamedTuple):
    """All results. *spaced*: one step every 2 ms; *busy*: beside two computing threads."""

    quiet: Durations
    busy: Durations
    busy_insert: Durations
    spaced: Durations
    spaced_insert: Durations
    rates: tuple[float, float]
    few: RowCosts
    many: RowCosts
    until_newest: int


def bench(url: str) -> list[Table]:
    """Measure all of it."""
    return _tables(_measure(url))


def _measure(url: str) -> Results:
    return Results(
        bench_on_end(url, threads=0, pause=0, rounds=ROUNDS * 3, count=200),
        bench_on_end(url, threads=2, pause=0, rounds=5, count=1000),
        bench_insert(threads=2, pause=0, rounds=5, count=60),
        bench_on_end(url, threads=2, pause=_SPACED, rounds=5, count=100),
        bench_insert(threads=2, pause=_SPACED, rounds=5, count=60),
        bench_deliveries(url),
        bench_rows(FEW),
        bench_rows(MANY),
        bench_newest(),
    )


def _tables(found: Results) -> list[Table]:
    """The *found* results, for readers."""
    ends: list[tuple[Cell, ...]] = [
        (name, one.median, one.p99)
        for name, one in (
            ("on_end, nothing else computes", found.quiet),
            ("on_end, back to back", found.busy),
            ("SQLite INSERT, back to back", found.busy_insert),
            ("on_end, every 2 ms", found.spaced),
            ("SQLite INSERT, every 2 ms", found.spaced_insert),
        )
    ]
    rows: list[tuple[Cell, ...]] = [
        (name.replace("_", ", "), few, many, many / few)
        for name, few, many in zip(RowCosts._fields, found.few, found.many, strict=True)
    ]
    in_memory, durable = found.rates
    newest = f"Of {WAITING + NEW} that wait, the {NEW} newest are among the first {found.until_newest} deliveries."
    return [
        Table(
            "Outbox: on_end of a step",
            ("", "p50, µs", "p99, µs"),
            ends,
            "Beside two computing threads. Goals: 20, 200.",
        ),
        Table(
            "Outbox: deliveries per second",
            ("memory", "outbox", "outbox / memory"),
            [(f"{in_memory:.0f}", durable, durable / in_memory)],
            "Goal: at least 0.5.",
        ),
        Table("Outbox: rows that wait", ("", f"{FEW}", f"{MANY}", "ratio"), rows, f"Goal: at most 1.5. {newest}"),
    ]
