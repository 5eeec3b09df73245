"""The store on disk while its file cannot be used, and when it can be used again."""

from pathlib import Path

import pytest
from storing import (
    Clock,
    NewOutbox,
    by_id,
    descriptors,
    journals,
    locked,
    put_steps,
    rows,
    step_ids,
)
from support import log_lines

from otel_step_hook.delivery.journal import SLOT_SIZE, SLOTS
from otel_step_hook.delivery.store import Stored

LONG = "x" * SLOT_SIZE  # a step id that is too long for the journal
UNUSABLE = "; meanwhile webhooks are sent from memory, and what waits there may be lost"


def test_what_waits_while_the_file_is_locked_is_written_later(
    path: Path, clock: Clock, new_outbox: NewOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    """Deliveries are made meanwhile, from the journal and from memory; all that is left becomes rows."""
    caplog.set_level("INFO")
    new_outbox().claim(1)
    store = new_outbox()
    with locked(path):
        assert put_steps(store, "one", "two", LONG, "three") == [Stored.DURABLE] * 2 + [
            Stored.IN_MEMORY,
            Stored.DURABLE,
        ]
        assert (store.next_due(), store.is_durable) == (0.0, False)
        claimed = by_id(store.claim(3))
        assert len(claimed) == 3
        assert store.counts() == (4, 1, 0)
        store.finish(claimed.pop("one"), "delivered")
        for delivery in claimed.values():
            delivery.attempts, delivery.error_type, delivery.body = 1, "503", b"{}"
            store.retry(delivery, delay=60.0)
        put_steps(store, "four")
        assert not store.is_flushed(store.mark())
        assert len(journals(path.parent)) == 1
    clock.monotonic += 5.0
    assert store.is_flushed(store.mark())
    assert (store.is_durable, store.counts()) == (True, (4, 0, 0))
    assert sorted(step_ids(path)) == sorted(["two", LONG, "three", "four"])
    assert sorted(rows(path, "attempts")) == [0, 0, 1, 1]
    assert [delivery.attempts for delivery in store.claim(9)] == [0, 0]
    assert store.next_due() == pytest.approx(55.0)  # seconds: the backoffs go on
    clock.monotonic += 55.0
    assert [delivery.attempts for delivery in store.claim(9)] == [1, 1]
    assert log_lines(caplog)[:2] == [
        f"ERROR the outbox {path} cannot be used: database is locked{UNUSABLE}",
        f"INFO the outbox {path} can be used again",
    ]


def test_one_line_a_minute_says_that_the_file_cannot_be_used(
    path: Path, clock: Clock, new_outbox: NewOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried again every two seconds, and named at most once a minute."""
    new_outbox().claim(1)
    store = new_outbox()
    with locked(path):
        for _ in range(70):
            put_steps(store, "step")
            store.claim(0)
            clock.monotonic += 1.0
    assert len(log_lines(caplog)) == 2
    clock.monotonic += 5.0
    store.claim(0)
    assert store.is_durable
    with locked(path):
        put_steps(store, "again")
        store.claim(0)
    assert len(log_lines(caplog)) == 3  # at once: it had been usable meanwhile


def test_a_file_that_can_never_be_used(
    path: Path, clock: Clock, new_outbox: NewOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    """Deliveries are made from the journal, whose slots are free when they are finished; nothing is left."""
    path.write_text("the notes of somebody\n" * 50)
    before = descriptors()
    store = new_outbox(size=2)
    put_steps(store, *(f"step-{number}" for number in range(5)))
    for _ in range(3):
        claimed = store.claim(2)
        for delivery in claimed:
            store.unclaim([delivery])
        for delivery in store.claim_older(0.0):
            store.finish(delivery, "discarded")
        clock.monotonic += 40.0
    assert (store.counts(), store.next_due(), store.oldest_age()) == ((0, 0, 0), None, 0.0)
    assert store._journal is not None
    assert len(store._journal._free) == SLOTS
    store.close()
    assert ([file.name for file in path.parent.iterdir()], descriptors()) == ([path.name], before)
    assert log_lines(caplog) == [f"ERROR the outbox {path} cannot be used: file is not a database{UNUSABLE}"]


def test_what_is_not_delivered_from_the_journal_is_left_in_it(path: Path, new_outbox: NewOutbox) -> None:
    """Events that wait in memory keep their slots, so that the next process can deliver them."""
    path.write_text("the notes of somebody\n" * 50)
    store = new_outbox()
    put_steps(store, "one", "two", "three")
    claimed = store.claim(2)
    store.finish(claimed[0], "delivered")
    store.unclaim(claimed[1:])
    store.close()
    path.unlink()
    assert set(by_id(new_outbox().claim(9))) == {"two", "three"}


def test_only_what_is_in_memory_alone_is_lost_at_the_end(
    path: Path, new_outbox: NewOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    """What has a slot of the journal is kept, also the copy that was claimed into memory, and the loop can end."""
    new_outbox().claim(1)
    store = new_outbox()
    with locked(path):
        put_steps(store, "one", LONG, "two", LONG + "2")
        claimed = by_id(store.claim(3))
        assert {step_id: store.keeps(delivery) for step_id, delivery in claimed.items()} == {
            "one": True,
            LONG: False,
            LONG + "2": False,
        }
        store.unclaim([claimed["one"], claimed[LONG]])
        put_steps(store, "three")
        lost = by_id(store.claim_lost())
        assert set(lost) == {LONG}
        for delivery in (claimed[LONG + "2"], lost[LONG]):
            store.finish(delivery, "discarded")
        store.close()
        assert (len(store), store.next_due(), store.counts().in_memory) == (0, None, 0)
    assert log_lines(caplog)[-1] == (
        f"WARNING 3 steps wait in a journal beside the outbox {path}, which could not be used: the next process with "
        "this outbox delivers them"
    )
    assert set(by_id(new_outbox().claim(9))) == {"one", "two", "three"}
    assert journals(path.parent) == []


@pytest.mark.timeout(20)
def test_a_store_that_is_full_and_unusable_waits(path: Path, new_outbox: NewOutbox) -> None:
    """While memory has no room for what is in the journal, nothing is due: a worker must not spin."""
    path.write_text("the notes of somebody\n" * 50)
    store = new_outbox(size=1)
    put_steps(store, "one", "two")
    (delivery,) = store.claim(5)
    assert (store.claim(5), store.next_due()) == ([], None)
    store.retry(delivery, delay=30.0)
    assert (store.claim(5), store.next_due()) == ([], 30.0)
    (delivery,) = store.claim_older(0.0)
    store.finish(delivery, "discarded")
    assert store.next_due() == 0.0
    assert set(by_id(store.claim(5))) == {"two"}


def test_backoffs_go_on_while_the_file_cannot_be_used(path: Path, clock: Clock, new_outbox: NewOutbox) -> None:
    """Each attempt to write what waits in memory leaves its due times as they are."""
    new_outbox().claim(1)
    store = new_outbox()
    with locked(path):
        put_steps(store, "one", LONG)
        for delivery in store.claim(2):
            store.retry(delivery, delay=30.0)
        for left in (30.0, 25.0, 20.0):
            assert (store.claim(9), store.next_due()) == ([], left)
            clock.monotonic += 5.0
        put_steps(store, "new")
        assert set(by_id(store.claim(9))) == {"new"}


@pytest.mark.timeout(20)
def test_what_is_in_the_journal_is_discarded_too(path: Path, new_outbox: NewOutbox) -> None:
    """While the file cannot be used and no attempt begins, as for an endpoint that is disabled, nothing stays due."""
    path.write_text("the notes of somebody\n" * 50)
    store = new_outbox(size=2)
    put_steps(store, "one", "two", "three")
    store.claim(0)
    discarded: list[str] = []
    while claimed := store.claim_older(0.0):
        for delivery in claimed:
            discarded.append(delivery.event.step_id)
            store.finish(delivery, "discarded")
    assert (discarded, store.next_due()) == (["one", "two", "three"], None)


def test_the_age_counts_from_the_end_of_the_step(path: Path, clock: Clock, new_outbox: NewOutbox) -> None:
    """Also of what has waited in the journal while the file could not be used, before it is claimed into memory."""
    new_outbox().claim(1)
    store = new_outbox()
    with locked(path):
        put_steps(store, "step")
        put_at = clock.monotonic
        clock.monotonic += 100.0
        (delivery,) = store.claim(1)
        assert delivery.submitted_at == put_at
        store.retry(delivery, delay=0.0)
        assert store.claim_older(100.0) == [delivery]


@pytest.mark.timeout(20)
def test_a_store_is_closed_while_deliveries_from_memory_are_leased(
    path: Path, clock: Clock, new_outbox: NewOutbox
) -> None:
    """They cannot be written, and the close does not wait for them; their slots stay for the next process."""
    new_outbox().claim(1)
    store = new_outbox()
    with locked(path):
        put_steps(store, "leased", "waits")
        assert len(store.claim(1)) == 1
    clock.monotonic += 5.0
    store.close()
    assert step_ids(path) == ["waits"]
    assert set(by_id(new_outbox().claim(9))) == {"leased", "waits"}
