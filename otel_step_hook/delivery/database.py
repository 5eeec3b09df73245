"""The database of an outbox: owns sqlite3, and what a fork must know of it.

For the worker thread and the command line: each statement gives the interpreter's lock away, and waits for it again.
"""

import contextlib
import ctypes
import os
import sqlite3
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from otel_step_hook.delivery import native
from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.schema import APPLICATION_ID, COPY, MIGRATIONS, SCHEMA, VERSION

_MAX_LOG = 4_194_304  # bytes that the write-ahead log keeps after a checkpoint, which comes after as many
BUSY_TIME = 5.0  # seconds to wait while another process writes
_BUSY_POLL = 0.001  # seconds between two attempts meanwhile
_FORK_TIME = 0.05  # seconds that a fork waits for a statement to end
_FINAL_ERRORS = ("file is not a database", "malformed", "unsupported file format")  # parts of SQLite's messages

Values = Sequence[object] | dict[str, object]


class OutboxError(Exception):
    """The file cannot be used as an outbox, now or ever (*is_final*); its text says why, and what to do."""

    def __init__(self, text: str, *, is_final: bool) -> None:
        super().__init__(text)
        self.is_final = is_final


class ClosedByForkError(OutboxError):
    """The connection was closed for a fork, and its transaction rolled back: open the file again, and repeat it."""

    def __init__(self) -> None:
        super().__init__("was closed while the process forked", is_final=False)


class Database:
    """The open database at *path*. Raises `OutboxError` from every method.

    A file that is missing or empty is made an outbox, or refused when *may_create* is false.

    For one thread at a time. A fork closes it, between two statements; after that its methods raise
    `ClosedByForkError`. SQLite keeps in memory what locks the process has on a file, and believes it in a forked
    child, which has none: then another process deletes the log that the child writes to.
    """

    def __init__(self, path: Path, *, may_create: bool = True, busy_time: float = BUSY_TIME) -> None:
        self.path = path
        self.busy_time = busy_time  # seconds to wait while another process writes
        self._inside = native.allocate_lock()  # held while a statement runs
        self._pid = os.getpid()
        self._is_closed_by_fork = False
        try:
            if may_create:
                _create(path)
            self._identity = path.stat()
            with _opening:
                self._connection = self._connect()
                _open_databases.add(self)
        except OSError as error:
            raise OutboxError(_unopened(path, error), is_final=False) from error
        except sqlite3.Error as error:
            raise _outbox_error(error) from error
        try:
            self._prepare(may_create=may_create)
            self._companions = [(file, _stat(file)) for file in (Path(f"{path}-wal"), Path(f"{path}-shm"))]
        except BaseException:
            self.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        # By process id: by default uWSGI forks without Python's hooks (unbit/uwsgi#1995).
        if _inherited or any(one._pid != self._pid for one in tuple(_open_databases)):  # noqa: SLF001 -- ours
            raise OutboxError(
                "was in use while this process was forked, so that SQLite cannot use it here: fork before the first "
                "step, or start another process",
                is_final=True,
            )
        # Its threads follow each other; `isolation_level`: transactions begin and end as they are written here.
        return sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=0,
            isolation_level=None,
            check_same_thread=False,
        )

    def _prepare(self, *, may_create: bool) -> None:
        # In one transaction: another process may make the tables between two statements.
        self.execute("BEGIN")
        tables = self.execute("SELECT 1 FROM sqlite_schema LIMIT 1")
        application, found = self.execute("PRAGMA application_id")[0][0], self._version()
        self.execute("COMMIT")
        if application != APPLICATION_ID and (found or tables):
            raise OutboxError("is a database of another program: choose another file", is_final=True)
        if not (found or may_create):
            raise OutboxError("is empty: expected a file that an application has used as its outbox", is_final=True)
        if self.execute("PRAGMA journal_mode=WAL")[0][0] != "wal":
            raise OutboxError("is on a file system without shared memory: choose one on a local disk", is_final=True)
        self.execute("PRAGMA synchronous=FULL")
        self.execute(f"PRAGMA journal_size_limit={_MAX_LOG}")
        if found < VERSION:
            self._migrate()

    def _version(self) -> int:
        found: int = self.execute("PRAGMA user_version")[0][0]
        if found > VERSION:
            raise OutboxError(
                f"was written by a newer version of otel-step-hook (its schema is {found}, known are those up to "
                f"{VERSION}): update otel-step-hook, or choose another file",
                is_final=True,
            )
        return found

    def _migrate(self) -> None:
        with self.transaction():
            steps = (SCHEMA, *MIGRATIONS)[self._version() :]  # again: another process may have done it
            for statement in _statements("".join(steps)):
                self.execute(statement)
            self.execute(f"PRAGMA application_id={APPLICATION_ID}")
            self.execute(f"PRAGMA user_version={VERSION}")

    def execute(self, statement: str, values: Values = ()) -> list[tuple[Any, ...]]:
        """Run one statement, and return its rows."""
        return self._run(statement, values)[0]

    def change(self, statement: str, values: Values = ()) -> int:
        """Run one statement, and return how many rows it has changed."""
        return self._run(statement, values)[1]

    def _run(self, statement: str, values: Values) -> tuple[list[tuple[Any, ...]], int]:
        deadline = monotonic() + self.busy_time
        while True:
            try:
                with self._inside:
                    cursor = self._connection.execute(statement, values)
                    # All rows at once: a statement that is half done keeps its locks.
                    return cursor.fetchall(), cursor.rowcount
            except sqlite3.Error as error:
                if self._is_closed_by_fork:
                    raise ClosedByForkError from error
                is_busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
                if not is_busy or monotonic() >= deadline:
                    raise _outbox_error(error) from error
            # Not SQLite's own wait, which soon sleeps for 100 ms: a process that writes without a pause would win.
            native.sleep(_BUSY_POLL)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the body in one transaction, which is rolled back if it raises."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(OutboxError):  # a full disk has rolled it back already
                self.execute("ROLLBACK")
            raise

    def is_removed(self) -> bool:
        """Whether somebody has removed or replaced the file: what is written to it would be lost with the process."""
        found = _stat(self.path)
        return found is None or not os.path.samestat(self._identity, found)

    def copy_back(self, endpoint: str) -> None:
        """Make the file anew after it was removed, with all rows; if it is there again, add those of *endpoint*."""
        is_there = self.path.exists()
        for file, known in self._companions:
            found = _stat(file)
            if known is not None and found is not None and os.path.samestat(known, found):
                file.unlink(missing_ok=True)  # SQLite would take it for that of the new file
        Database(self.path).close()
        self.execute("ATTACH ? AS restored", (str(self.path),))
        try:
            with self.transaction():
                for statement in COPY:
                    self.execute(statement, {"endpoint": endpoint if is_there else None})
        finally:
            self.execute("DETACH restored")

    def close(self) -> None:
        """Close the connection. Does not raise."""
        with _opening:  # a fork that begins now goes through the set
            _open_databases.discard(self)
        with contextlib.suppress(sqlite3.Error), self._inside:
            self._connection.close()

    def close_for_fork(self, timeout: float) -> bool:
        """Close the connection once no statement runs, and let none begin until `end_fork`.

        False when a statement has run for *timeout* seconds, or when the file was removed, whose rows only this
        connection has any more: then nothing has changed.
        """
        if self.is_removed() or not native.acquire(self._inside, timeout):
            return False
        self._is_closed_by_fork = True
        _open_databases.discard(self)
        with contextlib.suppress(AttributeError):  # before Python 3.12, which takes some 10 ms longer here
            self._connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE)  # type: ignore[attr-defined]  # -- see above
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
        return True

    def end_fork(self) -> None:
        """Let statements begin, which raise `ClosedByForkError`."""
        self._inside.release()

    def leave_to_parent(self) -> None:
        """In a forked child: keep the connection for ever, since closing it would change its parent's files."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))


def _unopened(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return "is a symbolic link to a file that does not exist: choose the path of the file itself, and it is made"
    return f"cannot be opened: {error.strerror}"


def _outbox_error(error: sqlite3.Error) -> OutboxError:
    is_final = any(known in str(error) for known in _FINAL_ERRORS)
    return OutboxError(f"cannot be used: {error}", is_final=is_final)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _create(path: Path) -> None:
    """Make an empty file for this user alone, unless there is one: SQLite would make it for everybody.

    Under another name: to close the file itself would end the locks of all connections of this process on it
    (https://sqlite.org/howtocorrupt.html, 2.2), and the next process that closes it would delete the log.
    """
    if path.exists():
        return
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex}.new")
    os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        os.link(new, path)
    except FileExistsError:  # another process was faster
        pass
    except OSError:  # a file system without links
        with contextlib.suppress(FileExistsError):  # it stays open, see above
            os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    finally:
        new.unlink(missing_ok=True)


def _statements(script: str) -> Iterable[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _before_fork() -> None:
    """Close all databases, within `_FORK_TIME`. A child would inherit their locks, and SQLite's mutexes as they are."""
    deadline = monotonic() + _FORK_TIME
    if native.acquire(_opening, _FORK_TIME):  # else a file is being opened
        _forking.append(_opening.release)
    _forking.extend(
        one.end_fork for one in tuple(_open_databases) if one.close_for_fork(max(0.0, deadline - monotonic()))
    )


def _after_fork_in_parent() -> None:
    while _forking:
        _forking.pop()()


def _after_fork_in_child() -> None:
    global _opening  # noqa: PLW0603 -- one for each process
    if _open_databases or _opening.release not in _forking:
        _inherited.append(True)
    _forking.clear()
    _opening = native.allocate_lock()
    for database in tuple(_open_databases):
        database.leave_to_parent()
    _open_databases.clear()


_open_databases: "weakref.WeakSet[Database]" = weakref.WeakSet()
_opening = native.allocate_lock()  # held while a connection is made
_forking: list[Callable[[], None]] = []  # what a fork has stopped, to be continued after it
_inherited: list[bool] = []  # not empty in a child that has inherited a connection
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
