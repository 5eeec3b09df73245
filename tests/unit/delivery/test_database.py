"""The database of an outbox: its settings, files that it refuses, and how it is changed to a new version."""

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from storing import change, end_of, forked, needs_fork

from otel_step_hook.delivery import database as database_module
from otel_step_hook.delivery import native
from otel_step_hook.delivery.database import Database, OutboxError
from otel_step_hook.delivery.schema import MIGRATIONS, VERSION

Open = Callable[[], Database]


@pytest.fixture
def opened(path: Path) -> Iterator[Open]:
    """Opens the database, without waiting for others that use it, and closes it at the end."""
    made: list[Database] = []

    def open_it() -> Database:
        made.append(Database(path, busy_time=0.0))
        return made[-1]

    yield open_it
    for one in made:
        one.close()


def refused(path: Path) -> OutboxError:
    """Why the file *path* cannot be used."""
    with pytest.raises(OutboxError) as raised:
        Database(path, busy_time=0.0)
    return raised.value


def files(directory: Path) -> dict[str, bytes]:
    """The content of each file in *directory*."""
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_what_is_committed_survives_a_power_loss(opened: Open) -> None:
    """A write-ahead log, which each commit waits for: nobody waits for the worker thread."""
    database = opened()
    assert database.execute("PRAGMA journal_mode") == [("wal",)]
    assert database.execute("PRAGMA synchronous") == [(2,)]  # FULL
    assert database.execute("PRAGMA user_version") == [(VERSION,)]


@needs_fork
def test_processes_that_make_the_file_at_once(path: Path) -> None:
    """Many processes start at the same moment: each can use the file, and all rows are there."""
    gate, to_open = os.pipe()

    def use(number: int) -> None:
        os.read(gate, 1)
        database = Database(path)
        database.execute("INSERT INTO resource VALUES (?, '{}')", (str(number),))
        database.close()

    children = [forked(lambda number=number: use(number)) for number in range(8)]  # type: ignore[misc]  # -- binds it now
    os.write(to_open, b"." * len(children))
    assert [end_of(child) for child in children] == [0] * len(children)
    os.close(gate)
    os.close(to_open)
    database = Database(path)
    assert len(database.execute("SELECT * FROM resource")) == len(children)
    database.close()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_threads_that_make_the_file_at_once(path: Path) -> None:
    """Each endpoint of a process has a connection of its own."""
    start, made = threading.Barrier(8), list[Database]()

    def use() -> None:
        start.wait()
        made.append(Database(path))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    for one in made:
        one.close()


def test_a_file_of_a_newer_version_is_refused(path: Path, opened: Open) -> None:
    """A sentence says what to do, and not a byte is changed."""
    opened().close()
    change(path, f"PRAGMA user_version={VERSION + 1}")
    before = files(path.parent)
    error = refused(path)
    assert error.is_final
    assert str(error) == (
        f"was written by a newer version of otel-step-hook (its schema is {VERSION + 1}, known are those up to "
        f"{VERSION}): update otel-step-hook, or choose another file"
    )
    assert files(path.parent) == before


@pytest.mark.parametrize("statement", ["CREATE TABLE notes (note TEXT)", "PRAGMA user_version=1"])
def test_a_database_of_another_program_is_refused(path: Path, statement: str) -> None:
    """It is left as it is, also if it is nearly empty."""
    change(path, statement)
    before = files(path.parent)
    error = refused(path)
    assert (str(error), error.is_final) == ("is a database of another program: choose another file", True)
    assert files(path.parent) == before


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    """A text file stays as it is."""
    path.write_text("the notes of somebody\n" * 100)
    before = files(path.parent)
    error = refused(path)
    assert (str(error), error.is_final) == ("cannot be used: file is not a database", True)
    assert files(path.parent) == before


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        pytest.param(Path.mkdir, "unable to open database file", id="a directory"),
        pytest.param(lambda path: path.symlink_to(path), "Too many levels of symbolic links", id="a loop of links"),
        pytest.param(lambda path: shutil.rmtree(path.parent), "No such file or directory", id="a missing directory"),
        pytest.param(
            lambda path: (path.parent.rmdir(), path.parent.write_text("")), "Not a directory", id="below a file"
        ),
        pytest.param(os.mkfifo, "disk I/O error", id="a pipe"),
    ],
)
def test_a_path_that_cannot_be_opened(path: Path, prepare: Callable[[Path], object], reason: str) -> None:
    """That may be mended while the application runs: the error is not final."""
    prepare(path)
    error = refused(path)
    assert (str(error).partition(": ")[2], error.is_final) == (reason, False)
    if path.parent.is_file():
        path.parent.unlink()


@pytest.mark.parametrize("may_create", [True, False])
def test_a_link_to_nothing(path: Path, *, may_create: bool) -> None:
    """The error says that the path is a link: "no such file" would be a riddle where an application makes its file."""
    path.symlink_to(path.with_name("other.db"))
    with pytest.raises(OutboxError, match="is a symbolic link to a file that does not exist: choose") as raised:
        Database(path, may_create=may_create)
    assert not raised.value.is_final
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_that_is_cut_short(path: Path, opened: Open) -> None:
    """A file that has lost pages is named as corrupt for good, whatever statement finds it out."""
    database = opened()
    for number in range(200):
        database.execute("INSERT INTO resource VALUES (?, ?)", (str(number), "x" * 1000))
    database.close()
    os.truncate(path, 8192)
    with pytest.raises(OutboxError, match="cannot be used: database disk image is malformed") as raised:
        opened().execute("SELECT * FROM resource")
    assert raised.value.is_final


def test_pages_that_were_overwritten(path: Path, opened: Open) -> None:
    """The same for a file whose pages hold something else."""
    database = opened()
    database.execute("INSERT INTO resource VALUES ('hash', '{}')")
    database.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096 * 30)
    with pytest.raises(OutboxError, match="malformed") as raised:
        opened().execute("SELECT * FROM resource, delivery, clock")
    assert raised.value.is_final


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "known"])
def test_a_file_that_another_program_locks(path: Path, opened: Open, *, is_new: bool) -> None:
    """It can be used again as soon as the other one is done: the error is not final."""
    if not is_new:
        opened().close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(OutboxError, match="cannot be used: database is locked") as raised:
        opened().execute("BEGIN IMMEDIATE")
    assert not raised.value.is_final
    other.execute("ROLLBACK")
    other.close()
    assert opened().execute("SELECT * FROM delivery") == []


def test_a_writer_waits_for_another(path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process writes, a statement waits, and then runs."""
    database, other = opened(), sqlite3.connect(path, isolation_level=None)
    database.busy_time = 20.0
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(native, "sleep", lambda _: other.in_transaction and other.execute("COMMIT"))
    assert database.change("INSERT INTO resource VALUES ('hash', '{}')") == 1
    other.close()


def test_a_transaction_that_fails_changes_nothing(opened: Open) -> None:
    """An exception of the body, and one of a statement, roll it back."""
    database = opened()

    def run(bad: str) -> None:
        with database.transaction():
            database.execute("INSERT INTO resource VALUES ('hash', '{}')")
            database.execute(bad)

    for bad in ("INSERT INTO nowhere VALUES (1)", "ROLLBACK"):  # the second: as a full disk does
        with pytest.raises(OutboxError):
            run(bad)
    assert database.execute("SELECT * FROM resource") == []
    with database.transaction():
        database.execute("INSERT INTO resource VALUES ('hash', '{}')")
    assert database.execute("SELECT * FROM resource") == [("hash", "{}")]


@pytest.fixture
def next_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release whose schema has a further column and a trigger."""
    migration = """
    ALTER TABLE delivery ADD COLUMN priority INTEGER NOT NULL DEFAULT 7;
    CREATE TRIGGER with_semicolons AFTER DELETE ON resource BEGIN
        UPDATE delivery SET priority = 8;
        UPDATE delivery SET priority = 9;
    END;
    """
    monkeypatch.setattr(database_module, "VERSION", VERSION + 1)
    monkeypatch.setattr(database_module, "MIGRATIONS", (*MIGRATIONS, migration))


_ROW = (
    "INSERT INTO delivery "
    "VALUES (1, 'msg_1', 'default', '{}', 'hash', NULL, 1.0, 1.0, 1, 0, '', '', NULL, NULL, NULL, 0)"
)


def test_a_file_of_an_older_version_is_migrated(path: Path, opened: Open, request: pytest.FixtureRequest) -> None:
    """Its rows stay, and a new file gets the same schema."""
    opened().execute(_ROW)
    request.getfixturevalue("next_version")
    database = opened()
    assert database.execute("SELECT webhook_id, priority FROM delivery") == [("msg_1", 7)]
    assert database.execute("PRAGMA user_version") == [(VERSION + 1,)]
    new = Database(path.with_name("new.db"))
    schema = "SELECT name, sql FROM sqlite_schema ORDER BY name"
    assert new.execute(schema) == database.execute(schema)
    new.close()


@pytest.mark.usefixtures("next_version")
def test_a_migration_that_fails_leaves_the_file_as_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is done, or nothing."""
    with monkeypatch.context() as older:
        older.setattr(database_module, "VERSION", VERSION)
        older.setattr(database_module, "MIGRATIONS", ())
        Database(path).close()
    broken = "CREATE TABLE other (x);\nCREATE TABLE delivery (x);"
    monkeypatch.setattr(database_module, "MIGRATIONS", (broken,))
    assert "already exists" in str(refused(path))
    with monkeypatch.context() as older:
        older.setattr(database_module, "VERSION", VERSION)
        database = Database(path)
        assert database.execute("SELECT 1 FROM sqlite_schema WHERE name = 'other'") == []
        database.close()


def test_a_newer_process_migrates_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two versions that make the file at once, the older one refuses what the newer one has made."""
    real = Database.transaction

    def transaction(database: Database) -> AbstractContextManager[None]:
        change(path, f"PRAGMA user_version={VERSION + 1}")
        return real(database)

    monkeypatch.setattr(Database, "transaction", transaction)
    assert "newer version" in str(refused(path))
    monkeypatch.undo()
    assert "newer version" in str(refused(path))
