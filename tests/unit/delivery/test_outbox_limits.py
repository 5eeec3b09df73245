"""The limits of an outbox, the rows of other endpoints, and the files that remain after its end."""

from pathlib import Path

import pytest
from storing import (
    Clock,
    NewOutbox,
    by_id,
    change,
    descriptors,
    options,
    put_steps,
    rows,
    step_ids,
)
from support import log_lines

from otel_step_hook.delivery.journal import SLOT_SIZE
from otel_step_hook.delivery.store import Stored

LONG = "x" * SLOT_SIZE  # a step id that is too long for the journal
UNUSABLE = "; meanwhile webhooks are sent from memory, and what waits there may be lost"
NO_JOURNAL = "has no journal (No such file or directory): what waits in memory is lost if the process is killed"
IN_MEMORY = (
    ": its journal was full, or they were too long for it; a kill at that moment loses them (the metric "
    "step_hook.outbox.in_memory_events counts them)"
)


def test_what_waits_in_memory_is_said_once(path: Path, new_outbox: NewOutbox, caplog: pytest.LogCaptureFixture) -> None:
    """Events that are too long for the journal wait in memory until the next transaction, and are counted."""
    store = new_outbox()
    assert put_steps(store, LONG, LONG, "short") == [Stored.IN_MEMORY] * 2 + [Stored.DURABLE]
    assert store.counts() == (3, 2, 0)
    mark = store.mark()
    assert store.is_flushed(mark)
    assert store.counts() == (3, 0, 0)
    put_steps(store, LONG)
    store.claim(0)
    assert store.counts() == (4, 0, 0)
    assert log_lines(caplog) == [
        f"WARNING 2 events waited in memory before they were written to the outbox {path}{IN_MEMORY}"
    ]


def test_beyond_the_limit_new_events_are_dropped(path: Path, new_outbox: NewOutbox) -> None:
    """The limit counts what waits, of all endpoints, before it is written and after; what ends makes room."""
    store, other = new_outbox(max_rows=4), new_outbox("other", max_rows=4)
    put_steps(other, "others")
    other.claim(0)
    assert put_steps(store, "one", "two") == [Stored.DURABLE] * 2
    claimed = store.claim(2)
    assert put_steps(store, "three", "four") == [Stored.DURABLE, Stored.FULL]
    assert put_steps(other, "five") == [Stored.DURABLE]  # it has not looked since; the next transaction does
    other.claim(0)
    assert put_steps(other, "six") == [Stored.FULL]
    store.finish(claimed[0], "delivered")
    store.finish(claimed[1], "discarded")
    store.claim(0)
    assert put_steps(store, "seven") == [Stored.DURABLE]
    assert len(rows(path)) == 4


def test_rows_of_unknown_endpoints_are_named_once_and_left(
    path: Path, clock: Clock, new_outbox: NewOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    """What another configuration has left is not delivered, and not deleted."""
    old = new_outbox("old")
    put_steps(old, "one", "two")
    old.close()
    store = new_outbox()
    for _ in range(3):
        assert store.claim(9) == []
        clock.monotonic += 60.0
    assert store.next_due() is None
    assert log_lines(caplog) == [
        f"WARNING the outbox {path} has 2 deliveries for endpoint old, which this process does not know: they are left"
    ]
    assert set(by_id(new_outbox("old").claim(9))) == {"one", "two"}


def test_a_row_that_cannot_be_read_does_not_keep_the_others(
    path: Path, new_outbox: NewOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    """A row that another version has written, or that was damaged, is discarded, and a line says so."""
    store = new_outbox()
    put_steps(store, "one", "broken", "two")
    store.claim(0)
    change(path, "UPDATE delivery SET event = replace(event, 'success', 'unheard-of') WHERE event LIKE '%broken%'")
    assert set(by_id(store.claim(9))) == {"one", "two"}
    store.claim(0)
    assert (rows(path, "error_type", "discarded_at"), store.counts()) == (["unreadable"], (2, 0, 1))
    assert log_lines(caplog) == [
        f"ERROR 1 deliveries in the outbox {path} cannot be read, and are discarded: their error is 'unreadable'"
    ]


def test_nothing_is_left_of_a_closed_store(path: Path, new_outbox: NewOutbox) -> None:
    """No journal and no descriptor; a later call opens the file again, and has no journal any more."""
    before = descriptors()
    store = new_outbox()
    put_steps(store, "one")
    store.claim(1)
    store.close()
    store.close()
    assert ([file.name for file in path.parent.iterdir()], descriptors()) == ([path.name], before)
    assert put_steps(store, "two") == [Stored.IN_MEMORY]
    store.claim(0)
    store.close()
    assert sorted(step_ids(path)) == ["one", "two"]
    assert descriptors() == before
    assert options(path).journal_prefix.startswith("steps.db.")


def test_a_directory_that_is_made_later(
    path: Path, clock: Clock, new_outbox: NewOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a directory there is no journal; what waits in memory is written once there is one."""
    path.parent.rmdir()
    store = new_outbox()
    assert put_steps(store, "one", "two") == [Stored.IN_MEMORY] * 2
    assert len(store.claim(1)) == 1
    assert log_lines(caplog) == [
        f"ERROR the outbox {path} {NO_JOURNAL}",
        f"ERROR the outbox {path} cannot be opened: No such file or directory{UNUSABLE}",
    ]
    path.parent.mkdir()
    clock.monotonic += 3.0
    assert len(store.claim(1)) == 1
    assert step_ids(path) == ["two"]
