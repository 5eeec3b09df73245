"""The file of an outbox that somebody removes or replaces while it is used."""

import contextlib
import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from storing import Clock, NewOutbox, by_id, in_child, locked, needs_fork, put_steps, rows, step_ids
from support import log_lines

from otel_step_hook.delivery.outbox_file import LOOK_INTERVAL


def remove_all(path: Path) -> None:
    """Remove the file, and the others that SQLite has made beside it."""
    for file in path.parent.glob(f"{path.name}*"):
        if file.suffix != ".journal":
            file.unlink()


@pytest.mark.parametrize("remove", [Path.unlink, remove_all], ids=["file", "files"])
def test_a_file_that_is_removed_is_restored(
    path: Path,
    new_outbox: NewOutbox,
    clock: Clock,
    remove: Callable[[Path], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With all rows, leases and counts, for its user alone; what follows is written to the new one."""
    store = new_outbox()
    put_steps(store, "leased", "waits")
    (leased,) = store.claim(1)
    remove(path)
    put_steps(store, "later")
    clock.monotonic += LOOK_INTERVAL
    store.claim(0)
    assert sorted(step_ids(path)) == ["later", "leased", "waits"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert log_lines(caplog) == [f"ERROR the outbox {path} was removed: it has been restored"]
    store.finish(leased, "delivered")
    put_steps(store, "last")
    assert set(by_id(store.claim(9))) == {"waits", "later", "last"}
    assert (sorted(step_ids(path)), store.counts()) == (["last", "later", "waits"], (3, 0, 0))
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()
    clock.monotonic += LOOK_INTERVAL
    store.claim(0)
    assert len(log_lines(caplog)) == 1


@pytest.mark.parametrize("act", ["fork", "fault", "exit"])
def test_a_removed_file_is_restored_also_if_something_comes_before_the_next_look(
    path: Path, new_outbox: NewOutbox, clock: Clock, caplog: pytest.LogCaptureFixture, act: str
) -> None:
    """A fork, a lock of another program and the end of the process would close the last connection to its rows."""
    store = new_outbox()
    put_steps(store, "one", "two")
    store.claim(1)
    with locked(path) if act == "fault" else contextlib.nullcontext():
        remove_all(path)
        if act == "fault":
            put_steps(store, "three")
            store.claim(1)
    if act == "fork":
        assert in_child(lambda: None) == 0
    if act == "exit":
        store.close()
    clock.monotonic += LOOK_INTERVAL
    store.claim(0)
    assert set(step_ids(path)) >= {"one", "two"}
    assert log_lines(caplog)[-1] == f"ERROR the outbox {path} was removed: it has been restored"


@needs_fork
def test_a_file_that_is_removed_just_after_a_fork(
    path: Path, new_outbox: NewOutbox, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody has its rows any more: a line says how many are lost."""
    store = new_outbox()
    put_steps(store, "one", "two")
    store.claim(0)
    assert in_child(lambda: None) == 0
    remove_all(path)
    put_steps(store, "three")
    store.claim(0)
    assert step_ids(path) == ["three"]
    line = f"ERROR the outbox {path} was removed while it was closed for a fork: its 2 deliveries are lost, unless "
    assert log_lines(caplog) == [line + "another process has it open"]


def test_a_removed_file_is_restored_for_all_endpoints(
    path: Path, new_outbox: NewOutbox, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Several endpoints, and processes, each have what they have written since in the new file."""
    stores = [new_outbox(endpoint, endpoints=frozenset({"one", "two"})) for endpoint in ("one", "two")]
    for number, store in enumerate(stores):
        put_steps(store, f"before-{number}")
        store.claim(0)
    remove_all(path)
    for number, store in enumerate(stores):
        put_steps(store, f"after-{number}")
        store.claim(0)
    clock.monotonic += LOOK_INTERVAL
    for store in stores:
        store.claim(0)
    for number, store in enumerate(stores):
        put_steps(store, f"last-{number}")
        store.claim(0)
    assert sorted(step_ids(path)) == sorted(
        f"{when}-{number}" for when in ("before", "after", "last") for number in (0, 1)
    )
    assert log_lines(caplog) == [f"ERROR the outbox {path} was removed: it has been restored"] * 2


def test_a_file_that_is_replaced_by_another_stays(
    path: Path, new_outbox: NewOutbox, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits is delivered from the old one, which lives as long as the process; a line says so."""
    store = new_outbox()
    put_steps(store, "one", "two")
    store.claim(1)
    path.unlink()
    path.write_text("the notes of somebody\n" * 50)
    clock.monotonic += LOOK_INTERVAL
    assert set(by_id(store.claim(9))) == {"two"}
    assert path.read_text() == "the notes of somebody\n" * 50
    (line,) = log_lines(caplog)
    assert line.startswith(f"ERROR the outbox {path} was removed or replaced, and ")
    assert line.endswith(": its 2 deliveries are lost if this process ends")
    clock.monotonic += LOOK_INTERVAL + 1.0
    store.claim(9)
    assert len(log_lines(caplog)) == 1  # at most once a minute
    clock.monotonic += LOOK_INTERVAL + 1.0
    store.claim(9)
    assert len(log_lines(caplog)) == 2


def test_a_directory_that_vanishes(
    path: Path, new_outbox: NewOutbox, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits is delivered as long as the process lives; the file is restored once there is a directory."""
    store = new_outbox()
    put_steps(store, "one", "two")
    store.claim(1)
    shutil.rmtree(path.parent)
    put_steps(store, "three")
    clock.monotonic += LOOK_INTERVAL
    assert set(by_id(store.claim(9))) == {"two", "three"}
    assert len(log_lines(caplog)) == 1
    path.parent.mkdir()
    clock.monotonic += LOOK_INTERVAL
    store.claim(0)
    assert sorted(step_ids(path)) == ["one", "three", "two"]
    assert len(rows(path)) == 3
