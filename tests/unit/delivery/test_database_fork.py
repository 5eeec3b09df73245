"""The database across a fork: SQLite keeps what it knows of a file's locks in memory, and a child inherits that."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from storing import in_child, needs_fork

from otel_step_hook.delivery import database as module
from otel_step_hook.delivery.database import ClosedByForkError, Database, OutboxError

pytestmark = needs_fork
INSERT = "INSERT INTO resource VALUES (?, '{}')"


def _hashes(path: Path) -> list[str]:
    database = Database(path)
    found = [name for (name,) in database.execute("SELECT hash FROM resource ORDER BY hash")]
    assert database.execute("PRAGMA integrity_check") == [("ok",)]
    database.close()
    return found


def test_a_child_keeps_its_rows_when_its_parent_and_others_have_closed_the_file(tmp_path: Path) -> None:
    """The child holds locks of its own: nobody takes the write-ahead log away that it writes to."""
    path = tmp_path / "steps.db"
    opened, go_on = os.pipe(), os.pipe()

    def child() -> None:
        database = Database(path)
        database.execute("SELECT * FROM resource")
        os.write(opened[1], b".")
        os.read(go_on[0], 1)
        database.execute(INSERT, ("child",))
        os._exit(0)

    def parent() -> None:
        database = Database(path)
        database.execute("SELECT * FROM resource")
        if not os.fork():
            child()
        os.read(opened[0], 1)
        os._exit(0)

    assert in_child(parent) == 0
    other = Database(path)
    other.execute(INSERT, ("other",))
    other.close()
    os.write(go_on[1], b".")
    os.close(go_on[1])
    os.close(opened[1])
    os.read(opened[0], 1)  # ends when the child has: it holds the other end
    assert _hashes(path) == ["child", "other"]


def test_a_fork_during_a_transaction_leaves_it_to_be_repeated(tmp_path: Path) -> None:
    """The parent's transaction is rolled back, and the child writes at once: it inherits no lock that nobody holds."""
    path = tmp_path / "steps.db"
    database = Database(path)

    def child() -> None:
        Database(path, busy_time=0.0).execute(INSERT, ("child",))

    def parent() -> None:
        with database.transaction():
            database.execute(INSERT, ("parent",))
            assert in_child(child) == 0
            database.execute(INSERT, ("parent, too",))

    with pytest.raises(ClosedByForkError):
        parent()
    database.close()
    assert _hashes(path) == ["child"]


@contextmanager
def _held(lock: "threading.Lock") -> Iterator[None]:
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


@pytest.mark.parametrize("of_opening", [False, True], ids=["a statement runs", "the file is being opened"])
def test_a_child_refuses_the_file_when_the_fork_could_not_wait(tmp_path: Path, *, of_opening: bool) -> None:
    """Where SQLite was in use for longer than a fork waits, the child says that it cannot use it."""
    path = tmp_path / "steps.db"
    database = Database(path)

    def child() -> None:
        with pytest.raises(OutboxError, match="was in use while this process was forked") as raised:
            Database(path)
        assert raised.value.is_final

    with _held(module._opening if of_opening else database._inside):
        assert in_child(child) == 0
    database.close()


def test_a_fork_leaves_a_file_that_was_removed_open(tmp_path: Path) -> None:
    """Its rows are in the parent's connection alone, from where they can be copied back; the child refuses the file."""
    path = tmp_path / "steps.db"
    database = Database(path)
    database.execute(INSERT, ("parent",))
    path.unlink()

    def child() -> None:
        with pytest.raises(OutboxError, match="was in use while this process was forked"):
            Database(path)

    assert in_child(child) == 0
    database.copy_back("default")
    database.close()
    assert _hashes(path) == ["parent"]


def test_a_child_that_python_did_not_fork_refuses_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server such as uWSGI forks without Python's hooks: the process id shows it."""
    path = tmp_path / "steps.db"
    database = Database(path)
    with monkeypatch.context() as forked:
        forked.setattr(os, "getpid", lambda: -1)
        with pytest.raises(OutboxError, match="was in use while this process was forked"):
            Database(path)
    database.close()
