"""The file of an outbox: who makes it, and how several connections and processes share it."""

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from otel_step_hook.delivery.database import Database, OutboxError, Values

_OTHER_PROCESS = (
    "import sqlite3; other = sqlite3.connect({!r}); other.execute('SELECT * FROM row_count'); other.close()"
)


def test_several_connections_of_a_process_keep_their_locks(tmp_path: Path) -> None:
    """Another process that closes the file leaves the write-ahead log alone: both connections here still use it."""
    path = tmp_path / "steps.db"
    first, second = Database(path), Database(path)
    first.execute("SELECT * FROM row_count")
    subprocess.run([sys.executable, "-c", _OTHER_PROCESS.format(str(path))], check=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["steps.db", "steps.db-shm", "steps.db-wal"]
    first.execute("INSERT INTO resource VALUES ('hash', '{}')")
    first.close()
    second.close()
    third = Database(path)
    assert third.execute("SELECT hash FROM resource") == [("hash",)]
    third.close()


def test_the_file_is_for_its_user_alone(tmp_path: Path) -> None:
    """The file has mode 0600, whatever characters its name has; SQLite's further files follow it."""
    path = tmp_path / "a b%20?#[ü].db"
    database = Database(path)
    database.execute("SELECT * FROM row_count")
    assert {file.name: oct(stat.S_IMODE(file.stat().st_mode)) for file in tmp_path.iterdir()} == {
        f"{path.name}{end}": "0o600" for end in ("", "-shm", "-wal")
    }
    database.close()


@pytest.mark.parametrize("content", [None, b""], ids=["missing", "empty"])
def test_a_file_that_is_only_opened(tmp_path: Path, content: bytes | None) -> None:
    """With *may_create* false, a file that is missing or empty is an error, and stays as it is."""
    path = tmp_path / "steps.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OutboxError) as raised:
        Database(path, may_create=False)
    assert str(raised.value) == (
        "cannot be opened: No such file or directory"
        if content is None
        else "is empty: expected a file that an application has used as its outbox"
    )
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if content is None else [content])


def test_a_file_system_without_links(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is made there, too, for its user alone, also if another process is faster."""

    def link(_: Path, target: Path) -> None:
        if target.name == "other.db":
            target.touch()
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    database = Database(path)
    assert database.execute("SELECT * FROM delivery") == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    Database(path.with_name("other.db")).close()
    assert not list(path.parent.glob("*.new"))
    database.close()


def test_a_file_system_without_shared_memory(path: Path) -> None:
    """SQLite keeps no write-ahead log there, and the file is refused."""

    class Elsewhere(Database):
        """On such a file system, which tests do not have: SQLite answers with the mode that it has kept."""

        def execute(self, statement: str, values: Values = ()) -> list[tuple[Any, ...]]:
            return [("delete",)] if "journal_mode" in statement else super().execute(statement, values)

    with pytest.raises(OutboxError, match="is on a file system without shared memory: choose one on a local disk"):
        Elsewhere(path)
