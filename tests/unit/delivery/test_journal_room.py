"""What a journal has no room for, and a disk that has no room for a journal."""

import errno
import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from delivering import event
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor
from storing import PIPELINE, in_child, needs_fork

from otel_step_hook.delivery import journal as journal_module
from otel_step_hook.delivery.journal import SLOT_SIZE, SLOTS, Journal
from otel_step_hook.delivery.model import Pipeline

PREFIX = "steps.db."


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A journal of this process; the test closes it."""
    return Journal.create(tmp_path, PREFIX, "owner")


def test_a_full_journal_takes_no_more(journal: Journal) -> None:
    """Once every slot holds an event, the next one has to wait elsewhere, until a slot is free again."""
    step = event()
    assert all(journal.write(step, PIPELINE, 0.0) for _ in range(SLOTS))
    assert not journal.write(step, PIPELINE, 0.0)
    assert len(journal) == SLOTS
    (record,) = journal.take(1)
    assert not journal.write(step, PIPELINE, 0.0)
    journal.free([record.slot])
    assert journal.write(step, PIPELINE, 0.0)
    assert not journal.write(step, PIPELINE, 0.0)
    journal.close(remove=True)


def test_many_threads_take_each_slot_once(journal: Journal) -> None:
    """Threads that write at the same time take as many events as there are slots, each into one of its own."""
    step, start, taken = event(), threading.Barrier(4), list[bool]()

    def fill() -> None:
        start.wait()
        taken.extend(journal.write(step, PIPELINE, 0.0) for _ in range(SLOTS // 2))

    threads = [threading.Thread(target=fill) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken.count(True) == SLOTS
    assert sorted(record.slot for record in journal.take(2 * SLOTS)) == list(range(SLOTS))
    journal.close(remove=True)


def _circular() -> dict[str, object]:
    details: dict[str, object] = {}
    details["itself"] = details
    return details


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"step_id": "x" * SLOT_SIZE}, id="too long"),
        pytest.param({"details": {"run_id": object()}}, id="an object"),
        pytest.param({"details": {"path": Path()}}, id="a path"),
        pytest.param({"details": _circular()}, id="a value that holds itself"),
    ],
)
def test_an_event_that_does_not_fit_takes_no_slot(journal: Journal, more: dict[str, object]) -> None:
    """What is too long for a slot, or is no plain value, is refused, and leaves the slots to others."""
    assert not journal.write(event(**more), PIPELINE, 0.0)  # type: ignore[arg-type]  # -- each case knows its types
    assert (len(journal), len(journal._free)) == (0, SLOTS)
    journal.close(remove=True)


@pytest.mark.parametrize(
    "attributes",
    [pytest.param({"long": "x" * 70_000}, id="too long"), pytest.param({"bytes": b"plain"}, id="plain")],
)
def test_a_resource_that_is_too_long_takes_no_slot(journal: Journal, attributes: dict[str, str | bytes]) -> None:
    """Events with such a resource are refused, again and again, and those with another one are taken."""
    is_plain = "bytes" in attributes
    pipeline = Pipeline(None, Resource(attributes))
    assert [journal.write(event(), pipeline, 0.0) for _ in range(3)] == [is_plain] * 3
    assert journal.write(event(), PIPELINE, 0.0)
    journal.close(remove=True)


def test_a_resource_that_is_no_plain_value_takes_no_slot(journal: Journal) -> None:
    """A resource of somebody's own class may hold any object."""

    class Own(Resource):
        @property
        def attributes(self) -> dict[str, object]:  # type: ignore[override]  # -- see above
            return {"own": object()}

    assert not journal.write(event(), Pipeline(None, Own({})), 0.0)
    journal.close(remove=True)


def test_more_resources_than_slots(journal: Journal) -> None:
    """Four resources have room; events of a fifth are refused, and those of the four are taken for ever."""
    pipelines = [Pipeline(None, Resource({"number": number})) for number in range(30)]
    assert [journal.write(event(), one, 0.0) for one in pipelines] == [True] * 4 + [False] * 26
    assert [journal.write(event(), one, 0.0) for one in pipelines[:5]] == [True] * 4 + [False]
    journal.close(remove=True)


def test_equal_resources_share_a_slot(journal: Journal) -> None:
    """An application that makes a provider for each request has many resources with the same attributes."""
    for _ in range(50):
        pipeline = Pipeline(SpanProcessor(), Resource({"service.name": "tests"}))
        assert journal.write(event(), pipeline, 0.0)
    journal.close(remove=True)


def _with_limit(action: Callable[[], object], size: int) -> int:
    """Run *action* in a child that may not make files longer than *size* bytes."""

    def limited() -> None:
        usual = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
        try:
            action()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)  # coverage writes its file at the end

    return in_child(limited)


@needs_fork
@pytest.mark.parametrize("size", [0, 1000, 5_000_000])
@pytest.mark.parametrize("has_fallocate", [True, False], ids=["fallocate", "zeros"])
def test_a_disk_without_room_is_an_error(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch, *, has_fallocate: bool
) -> None:
    """A journal that cannot be allocated in full is an OSError, and no file is left."""
    if not has_fallocate:  # as on macOS
        monkeypatch.delattr(os, "posix_fallocate")

    def create() -> None:
        with pytest.raises(OSError, match="File too large"):
            Journal.create(tmp_path, PREFIX, "owner")

    assert _with_limit(create, size) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EOPNOTSUPP])
def test_a_file_system_that_does_not_allocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Zeros are written where it has no such call; on a full disk that would be useless work."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    if number == errno.EOPNOTSUPP:
        journal = Journal.create(tmp_path, PREFIX, "owner")
        assert journal.path.stat().st_blocks * 512 > SLOTS * SLOT_SIZE
        journal.close(remove=True)
    else:
        monkeypatch.delattr(os, "pwrite")
        with pytest.raises(OSError, match="No space left"):
            Journal.create(tmp_path, PREFIX, "owner")
    assert list(tmp_path.iterdir()) == []


def test_a_system_without_fallocate_writes_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks are allocated there, too."""
    monkeypatch.delattr(os, "posix_fallocate")
    journal = Journal.create(tmp_path, PREFIX, "owner")
    found = journal.path.stat()
    assert found.st_blocks * 512 >= found.st_size > SLOTS * SLOT_SIZE
    journal.close(remove=True)


@needs_fork
def test_later_writes_need_no_room(tmp_path: Path) -> None:
    """When the disk becomes full after the journal was made, every slot can still be written."""
    journal = Journal.create(tmp_path, PREFIX, "owner")

    def fill() -> None:
        assert all(journal.write(event(), PIPELINE, 0.0) for _ in range(SLOTS))

    assert _with_limit(fill, 0) == 0
    journal.close(remove=True)


def test_a_directory_that_is_missing_is_an_error(tmp_path: Path) -> None:
    """The journal is made where the database is, or not at all."""
    with pytest.raises(FileNotFoundError):
        Journal.create(tmp_path / "missing", PREFIX, "owner")
    assert not journal_module._open_here
