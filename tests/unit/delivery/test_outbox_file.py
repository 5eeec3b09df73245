"""The file of an outbox: the clock it goes by, what dead processes left, and how long rows are kept."""

import itertools
from pathlib import Path

import pytest
from storing import (
    Clock,
    NewOutbox,
    by_id,
    in_child,
    journals,
    killed_after,
    locked,
    needs_fork,
    outbox,
    put_steps,
    rows,
)
from support import log_lines

from otel_step_hook.delivery import outbox_file
from otel_step_hook.delivery.database import OutboxError
from otel_step_hook.delivery.outbox_file import LOOK_INTERVAL
from otel_step_hook.delivery.rows import _BOOT, Changes, EndpointRows, Row

GIVE_UP = 1800.0  # seconds
needs_boot_id = pytest.mark.skipif(not _BOOT.exists(), reason="this system does not name its boots")


@needs_boot_id
@pytest.mark.parametrize("jumped", [-3600.0, 3600.0])
def test_a_wall_clock_that_jumps_between_two_processes(
    path: Path, new_outbox: NewOutbox, clock: Clock, jumped: float
) -> None:
    """Nothing is discarded early, no lease ends early, and nothing stalls."""
    first = new_outbox()
    put_steps(first, "firsts", "waits")
    (leased,) = first.claim(1)
    later = Clock()
    later.jumped = jumped
    second = outbox(path, later)
    put_steps(second, "seconds")
    assert second.claim_older(GIVE_UP) == []
    assert max(second.next_due() or 0.0, second.oldest_age()) == pytest.approx(0.0, abs=1e-5)
    assert set(by_id(second.claim(9))) == {"waits", "seconds"}
    for now in (clock, later):
        now.monotonic += 39.0
    assert first.claim_older(GIVE_UP) == second.claim_older(GIVE_UP) == first.claim(9) == second.claim(9) == []
    for now in (clock, later):
        now.monotonic += 2.0
    assert by_id(second.claim(9)).keys() == {leased.event.step_id}
    assert by_id(first.claim(9)).keys() == {"waits", "seconds"}
    second.close()


@needs_fork
@needs_boot_id
@pytest.mark.parametrize("jumped", [-3600.0, 0.0, 3600.0])
def test_a_wall_clock_that_jumps_before_a_process_dies(
    path: Path, new_outbox: NewOutbox, clock: Clock, jumped: float
) -> None:
    """What is taken over from its journal is as old as it is, whatever its clock said."""
    first = new_outbox()
    first.claim(0)

    def put_and_die() -> None:
        clock.jumped = jumped
        store = outbox(path, clock)
        store.claim(0)
        put_steps(store, "step")

    killed_after(put_and_die)
    clock.monotonic += LOOK_INTERVAL
    assert first.claim_older(GIVE_UP) == first.claim(0) == []
    assert first.oldest_age() == pytest.approx(LOOK_INTERVAL, abs=1e-5)
    assert set(by_id(first.claim(9))) == {"step"}


def test_a_system_that_does_not_name_its_boots(
    path: Path, new_outbox: NewOutbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process goes by its own clock there, and steps wait no longer for it."""
    monkeypatch.setattr("otel_step_hook.delivery.rows._BOOT", path / "nowhere")
    store = new_outbox()
    put_steps(store, "step")
    assert set(by_id(store.claim(9))) == {"step"}


@needs_fork
def test_what_a_killed_process_left_is_due_at_once(
    path: Path, new_outbox: NewOutbox, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Its rows, its leases, and what was in its journal; those of a living process stay its own."""
    caplog.set_level("INFO")
    living, store = new_outbox(), new_outbox()
    put_steps(living, "livings")
    assert set(by_id(living.claim(1))) == {"livings"}
    store.claim(0)

    def work_and_die() -> None:
        dead = outbox(path, clock)
        put_steps(dead, "leased", "waits")
        assert len(dead.claim(1)) == 1
        put_steps(dead, "in journal", "in journal, too")

    killed_after(work_and_die)
    assert len(journals(path.parent)) == 2
    clock.monotonic += LOOK_INTERVAL
    assert set(by_id(store.claim(9))) == {"leased", "waits", "in journal", "in journal, too"}
    assert len(journals(path.parent)) == 1
    assert log_lines(caplog) == [f"INFO took 2 steps of a process that has ended over into the outbox {path}"]


@needs_fork
def test_the_leases_of_a_process_that_left_no_record_end(
    path: Path, new_outbox: NewOutbox, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """An empty journal shows that its owner is dead; no line is needed for that."""
    caplog.set_level("INFO")

    def lease_and_die() -> None:
        dead = outbox(path, clock)
        put_steps(dead, "leased")
        assert len(dead.claim(1)) == 1

    killed_after(lease_and_die)
    assert set(by_id(new_outbox().claim(9))) == {"leased"}
    assert (journals(path.parent), log_lines(caplog)) == ([], [])


@needs_fork
def test_a_fork_in_the_middle_of_a_transaction(path: Path, new_outbox: NewOutbox) -> None:
    """It closes the file for a moment; the transaction is repeated, and nothing is written twice."""
    store, forks = new_outbox(), [1]
    put_steps(store, "one", "two")

    def lease_and_fork(endpoint_rows: EndpointRows, now: float) -> list[Row]:
        if forks:
            assert in_child(forks.pop) == 0
            forks.pop()
        return endpoint_rows.lease(9, 0, now)

    assert store._write(lease_and_fork) is not None
    assert rows(path, "owner IS NOT NULL") == [1, 1]


@needs_fork
def test_a_journal_stays_until_all_of_it_is_in_the_file(path: Path, new_outbox: NewOutbox, clock: Clock) -> None:
    """A file that cannot be used at that moment costs nothing: it is taken over later."""
    store = new_outbox()
    store.claim(0)
    killed_after(lambda: put_steps(outbox(path, clock), "step"))
    clock.monotonic += LOOK_INTERVAL
    with locked(path):
        assert store.claim(9) == []
        assert len(journals(path.parent)) == 1
    clock.monotonic += LOOK_INTERVAL
    assert set(by_id(store.claim(9))) == {"step"}
    assert journals(path.parent) == []


@needs_fork
def test_what_is_in_the_file_leaves_the_journal_at_once(
    path: Path, new_outbox: NewOutbox, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a later part of a journal cannot be written, the earlier one is not delivered a second time."""
    monkeypatch.setattr(outbox_file, "BATCH", 2)
    killed_after(lambda: put_steps(outbox(path, clock), "one", "two", "three"))
    write, calls = EndpointRows.write, itertools.count()

    def fail_once(endpoint_rows: EndpointRows, changes: Changes, now: float) -> None:
        if next(calls) == 1:
            raise OutboxError("is full", is_final=False)
        write(endpoint_rows, changes, now)

    monkeypatch.setattr(EndpointRows, "write", fail_once)
    store = new_outbox()
    store.claim(0)
    clock.monotonic += 3.0  # the file is tried again, before the next look
    for delivery in store.claim(9):
        store.finish(delivery, "delivered")
    store.claim(0)
    clock.monotonic += LOOK_INTERVAL
    assert set(by_id(store.claim(9))) == {"three"}
    assert len(journals(path.parent)) == 0


def test_discarded_rows_are_kept_for_their_time(new_outbox: NewOutbox, clock: Clock) -> None:
    """After that they are purged, with the next look; beyond the limit of rows at once."""
    store = new_outbox(keep=100.0, max_rows=3)
    put_steps(store, "one", "two", "three")
    for delivery in store.claim(2):
        store.finish(delivery, "discarded")
    store.claim(0)
    clock.monotonic += 50.0
    store.claim(0)
    assert store.counts() == (1, 0, 2)
    put_steps(store, "four", "five")
    store.claim(0)
    clock.monotonic += LOOK_INTERVAL
    store.claim(0)
    assert store.counts() == (3, 0, 0)
