"""Who may take a journal over: the lock of its owner, and races between processes."""

import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from delivering import event
from storing import PIPELINE, end_of, forked, in_child, killed_after, needs_fork
from support import log_lines

from otel_step_hook.delivery import journal as journal_module
from otel_step_hook.delivery import takeover
from otel_step_hook.delivery.journal import MAGIC, SLOTS, Journal, journal_prefix
from otel_step_hook.delivery.takeover import abandoned, count_abandoned

pytestmark = needs_fork

PREFIX = "steps.db."
MAGIC_LENGTH = 64  # bytes
UNREADABLE = "ERROR {} is no journal that this version of otel-step-hook can read, and is left as it is"


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets what other tests have logged: each file is named once in a process."""
    monkeypatch.setattr(takeover, "_warned", set())


def create(directory: Path, owner: str = "owner") -> Journal:
    """The journal of *owner* in *directory*."""
    return Journal.create(directory, PREFIX, owner)


def taken(directory: Path, prefix: str = PREFIX) -> list[str]:
    """The step ids that this process takes over from journals in *directory*, which it removes."""
    found = []
    for journal in abandoned(directory, prefix):
        found += [record.event.step_id for record in journal.take(SLOTS)]
        journal.close(remove=True)
    return found


def die_with(directory: Path, *step_ids: str, owner: str = "owner", prefix: str = PREFIX) -> Path:
    """Let a process be killed that has these steps in its journal; return its path."""

    def write() -> None:
        journal = Journal.create(directory, prefix, owner)
        for step_id in step_ids:
            journal.write(event(step_id), PIPELINE, 0.0)

    killed_after(write)
    return directory / f"{prefix}{owner}.journal"


@contextmanager
def living(directory: Path) -> Iterator[None]:
    """A process that has a step in its journal, and lives until the context is left."""
    ready, is_ready = os.pipe()

    def live() -> None:
        journal = create(directory, "living")
        journal.write(event("of-living"), PIPELINE, 0.0)
        os.write(is_ready, b".")
        signal.pause()

    child = forked(live)
    os.close(is_ready)
    try:
        assert os.read(ready, 1) == b"."
        yield
    finally:
        os.close(ready)
        os.kill(child, signal.SIGKILL)
        end_of(child)


def is_locked(path: Path) -> bool:
    """Whether another process than a new one has a lock on *path*."""

    def lock() -> None:
        file = os.open(path, os.O_RDWR)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os._exit(7)

    return in_child(lock) == 7


def test_the_journal_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    """It is never taken over; once its process is killed, it is."""
    with living(tmp_path):
        assert taken(tmp_path) == []
        assert taken(tmp_path) == []
    assert taken(tmp_path) == ["of-living"]
    assert list(tmp_path.iterdir()) == []


def test_the_journals_of_this_process_are_left_alone(tmp_path: Path) -> None:
    """It keeps their locks, which would end if it opened and closed one of them once more."""
    own = create(tmp_path, "own")
    own.write(event("own"), PIPELINE, 0.0)
    die_with(tmp_path, "dead")
    assert taken(tmp_path) == ["dead"]
    assert is_locked(own.path)
    assert in_child(lambda: os._exit(0 if taken(tmp_path) == [] else 1)) == 0
    own.free(record.slot for record in own.take(1))
    own.close(remove=True)
    assert list(tmp_path.iterdir()) == []


def test_a_journal_that_is_closed_is_taken_over(tmp_path: Path) -> None:
    """What a process leaves at its end is for the next one, and for a second store of the same process."""
    journal = create(tmp_path)
    journal.write(event("left"), PIPELINE, 0.0)
    journal.close(remove=False)
    assert taken(tmp_path) == ["left"]


def test_what_was_not_done_with_is_taken_over_again(tmp_path: Path) -> None:
    """A journal that is closed without being removed has all its records for the next taker."""
    path = die_with(tmp_path, "one", "two")
    for journal in abandoned(tmp_path, PREFIX):
        journal.take(1)
        journal.close(remove=False)
    assert path.exists()
    assert taken(tmp_path) == ["one", "two"]


def test_several_takers_at_once_take_it_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of many processes and threads that look at the same moment, each journal goes to one; nothing is logged."""
    for number in range(20):
        die_with(tmp_path, f"step-{number}", owner=f"owner-{number}")
    (report, to_report), (gate, to_open) = os.pipe(), os.pipe()

    def take() -> None:
        os.read(gate, 1)
        os.write(to_report, "".join(f"{step_id}\n" for step_id in taken(tmp_path)).encode())
        assert not caplog.records

    children = [forked(take) for _ in range(6)]
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.extend(taken(tmp_path))) for _ in range(2)]
    os.write(to_open, b"." * 6)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [end_of(child) for child in children] == [0] * 6
    os.close(to_report)
    with os.fdopen(report) as lines:
        found += lines.read().split()
    for file in (gate, to_open):
        os.close(file)
    assert sorted(found) == sorted(f"step-{number}" for number in range(20))
    assert (list(tmp_path.iterdir()), log_lines(caplog)) == ([], [])


def test_a_journal_that_another_process_has_just_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Between being found and being locked, another process may have taken it over: that is no error."""
    path = die_with(tmp_path, "step")
    file = os.open(path, os.O_RDWR)
    assert taken(tmp_path) == ["step"]
    assert takeover._take_over(path, file) is None
    assert log_lines(caplog) == []


def test_a_journal_is_locked_until_it_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise another process could take the same records over a second time, and deliver them again."""
    die_with(tmp_path, "step")
    unlink, seen = Path.unlink, []

    def unlink_and_look(path: Path, *, missing_ok: bool = False) -> None:
        seen.append(is_locked(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink_and_look)
    assert taken(tmp_path) == ["step"]
    assert seen == [True]


def test_a_journal_that_vanishes_before_it_is_opened(tmp_path: Path) -> None:
    """It has been taken over by another process, or is a name without a file."""
    (tmp_path / f"{PREFIX}gone.journal").symlink_to(tmp_path / "nowhere")
    assert taken(tmp_path) == []
    assert not journal_module._open_here


@pytest.mark.parametrize("content", [b"", b"\0" * 100], ids=["empty", "allocated"])
def test_a_journal_that_its_owner_did_not_finish_making_is_removed(tmp_path: Path, content: bytes) -> None:
    """Its process was killed, or the disk was full; no event can be in it."""
    path = tmp_path / f"{PREFIX}owner.journal"
    path.write_bytes(content)
    assert taken(tmp_path) == []
    assert path.exists()  # perhaps it is being made
    os.utime(path, (0, 0))
    assert taken(tmp_path) == []
    assert not path.exists()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"otel-step-hook journal 2\n".ljust(MAGIC_LENGTH, b"\0") + b"records", id="another version"),
        pytest.param(b"the notes of somebody", id="another program"),
    ],
)
def test_a_journal_of_another_version_stays(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """It is left as it is, and a line says so, once."""
    path = tmp_path / f"{PREFIX}owner.journal"
    path.write_bytes(content)
    assert taken(tmp_path) == taken(tmp_path) == []
    assert path.read_bytes() == content
    assert log_lines(caplog) == [UNREADABLE.format(path.name)]


def test_records_are_counted_where_they_are(tmp_path: Path) -> None:
    """Those of dead processes, of one endpoint or of all; the journals stay, and can be taken over."""
    database = tmp_path / "steps.db"
    for endpoint, step_ids in (("one", ["1", "2"]), ("two", ["3"])):
        die_with(tmp_path, *step_ids, prefix=journal_prefix(database, endpoint))
    (tmp_path / f"{journal_prefix(database, 'one')}short.journal").write_bytes(MAGIC)
    (tmp_path / f"{journal_prefix(database, 'one')}new.journal").touch()
    (tmp_path / f"{journal_prefix(database, 'one')}gone.journal").symlink_to(tmp_path / "nowhere")
    own = Journal.create(tmp_path, journal_prefix(database, "one"), "own")
    own.write(event(), PIPELINE, 0.0)
    assert [count_abandoned(database, endpoint) for endpoint in (None, "one", "two", "three")] == [3, 2, 1, 0]
    assert in_child(lambda: _count_one(database)) == 0
    own.close(remove=True)
    assert taken(tmp_path, journal_prefix(database, "two")) == ["3"]


def _count_one(database: Path) -> None:
    assert count_abandoned(database, "one") == 2  # the parent's is locked


def test_a_journal_that_was_cut_short_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that somebody has copied in part is no journal; the others are taken over."""
    path = die_with(tmp_path, "lost", owner="a")
    os.truncate(path, 100_000)
    die_with(tmp_path, "step", owner="b")
    assert taken(tmp_path) == ["step"]
    assert path.stat().st_size == 100_000
    assert log_lines(caplog) == [UNREADABLE.format(path.name)]


def test_any_file_name(tmp_path: Path) -> None:
    """Journals are found beside a database whose name has characters that patterns of names use."""
    die_with(tmp_path, "step", prefix="steps[1]*?.db.")
    assert taken(tmp_path, "steps[1]*?.db.") == ["step"]


def test_a_record_that_is_put_during_the_close_is_left_to_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file stays when a thread has written to a slot, and has not returned yet."""
    journal, write = create(tmp_path), journal_module._write

    def write_and_close(*arguments: Any) -> None:
        write(*arguments)
        if arguments[1] > MAGIC_LENGTH:  # the event, and not its resource
            journal.close(remove=True)

    monkeypatch.setattr(journal_module, "_write", write_and_close)
    journal.write(event("step"), PIPELINE, 0.0)
    assert taken(tmp_path) == ["step"]


def test_a_record_that_is_put_after_the_close_waits_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that has got a slot, and is stopped until the journal is closed, writes nothing, and does not fail."""
    journal, write = create(tmp_path), journal_module._write

    def close_and_write(*arguments: Any) -> None:
        if arguments[1] > MAGIC_LENGTH:
            journal.close(remove=True)
        write(*arguments)

    monkeypatch.setattr(journal_module, "_write", close_and_write)
    assert not journal.write(event(), PIPELINE, 0.0)
    assert taken(tmp_path) == []


def test_a_closed_journal_takes_nothing(tmp_path: Path) -> None:
    """An event that comes after the close has to wait elsewhere; nothing raises."""
    journal = create(tmp_path)
    journal.close(remove=True)
    assert not journal.write(event(), PIPELINE, 0.0)
