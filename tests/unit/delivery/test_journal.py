"""The records of the journal: what is copied into it, and what comes back after its process has died."""

import os
import stat
import struct
import zlib
from pathlib import Path

import pytest
from delivering import event
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanContext, TraceFlags, TraceState
from storing import PIPELINE, in_child, killed_after, needs_fork

from otel_step_hook.delivery.journal import SLOT_SIZE, SLOTS, Journal, JournalRecord
from otel_step_hook.delivery.model import Pipeline
from otel_step_hook.delivery.takeover import abandoned
from otel_step_hook.steps.event import Outcome, StepEvent

pytestmark = needs_fork

PREFIX = "steps.db."
FIRST_SLOT = 64 + 4 * 65_536  # bytes: the magic, and four slots for resources
HEADER = struct.Struct("<IIQ")
CONTEXT = SpanContext(
    0x0AF7651916CD43DD8448EB211C80319C,
    0xB7AD6B7169203331,
    is_remote=False,
    trace_flags=TraceFlags(1),
    trace_state=TraceState([("vendor", "value")]),
)
EVENT = StepEvent("step-1 ü", Outcome.FAILED, "step", CONTEXT, 1_700_000_000_000_000_000, 1_700_000_001_000_000_000, {})
# Of `EVENT`, put at 1700000001.5: every release reads what an earlier one has left, on whatever Python.
GOLDEN = bytes.fromhex(
    "280c0000006700006040fc54d94169000000007509000000737465702d3120c3bc75060000006661696c6564750400000073"
    "7465706c090000009c310039842c4722d83da8594546b27b0a006c0500000031334052c52d6b3d0b006901000000750c0000"
    "0076656e646f723d76616c75656c050000000000546cf873bc3c01006c05000000004a8963f973bc3c01004e"
)


def create(directory: Path, owner: str = "owner") -> Journal:
    """The journal of a process in *directory*."""
    return Journal.create(directory, PREFIX, owner)


def left(directory: Path) -> list[JournalRecord]:
    """What processes that have ended left in *directory*; their journals are removed."""
    found = []
    for journal in abandoned(directory, PREFIX):
        found += journal.take(SLOTS)
        journal.close(remove=True)
    return found


def write_and_die(directory: Path, *events: StepEvent, pipeline: Pipeline = PIPELINE) -> None:
    """Let a process write *events* to its journal, and be killed."""

    def write() -> None:
        journal = create(directory)
        assert all(journal.write(one, pipeline, float(number)) for number, one in enumerate(events))

    killed_after(write)


def test_records_come_back_in_order_after_a_kill(tmp_path: Path) -> None:
    """All events of a killed process come back as they were put, in their order, also from slots that were reused."""
    events = [event(f"step-{number}") for number in range(20)]

    def write() -> None:
        journal = create(tmp_path)
        for number, one in enumerate(events[:12]):
            assert journal.write(one, PIPELINE, float(number))
        journal.free(record.slot for record in journal.take(10))
        for number, one in enumerate(events[12:], 12):
            assert journal.write(one, PIPELINE, float(number))

    killed_after(write)
    found = left(tmp_path)
    assert [record.event for record in found] == events[10:]
    assert [record.put_at for record in found] == [float(number) for number in range(10, 20)]
    assert [record.pipeline.processor for record in found] == [None] * 10
    assert {record.pipeline.resource.attributes["service.name"] for record in found} == {"tests"}


@pytest.mark.parametrize(
    "more",
    [
        {"step_id": "lone \ud800 surrogate \0 ü"},
        {"name": "lone \udfff surrogate"},
        {"details": {"run_id": "1", "nested": {"list": [1, 2.5, None, True]}}},
        {"outcome": Outcome.CANCELLED},
        {"context": CONTEXT},
        {"start_time": 0, "end_time": 2**70},
    ],
)
def test_each_value_of_an_event_comes_back(tmp_path: Path, more: dict[str, object]) -> None:
    """Details, trace state, lone surrogates and any number survive the process."""
    step = event(**more)  # type: ignore[arg-type]  # -- each case knows its types
    write_and_die(tmp_path, step)
    (record,) = left(tmp_path)
    assert record.event == step
    assert record.event.context.trace_state == step.context.trace_state


def test_a_name_that_is_no_string_comes_back_as_text(tmp_path: Path) -> None:
    """OpenTelemetry's SDK accepts any object as the name of a span."""
    write_and_die(tmp_path, event(name=("a", 1)))
    assert left(tmp_path)[0].event.name == "('a', 1)"


def test_resources_come_back(tmp_path: Path) -> None:
    """Each record has the resource of its own pipeline."""
    resources = [Resource({"service.name": f"service-{number}", "list": [1, 2]}, "https://schema") for number in (1, 2)]

    def write() -> None:
        journal = create(tmp_path)
        for resource in resources * 2:
            assert journal.write(event(), Pipeline(None, resource), 0.0)

    killed_after(write)
    assert [record.pipeline.resource for record in left(tmp_path)] == resources * 2


def corrupt(path: Path, start: int, content: bytes) -> None:
    """Overwrite bytes of the file *path*."""
    with path.open("r+b") as file:
        file.seek(start)
        file.write(content)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(bytes(16), id="payload without header"),
        pytest.param(HEADER.pack(100, 12345, 1), id="wrong checksum"),
        pytest.param(HEADER.pack(SLOT_SIZE, 0, 1), id="longer than its slot"),
        pytest.param(HEADER.pack(0, 0, 7), id="no content"),
        pytest.param(b"\xff" * 16, id="bytes of something else"),
    ],
)
def test_a_torn_record_is_none(tmp_path: Path, header: bytes) -> None:
    """A process that is killed between content and header leaves no record there, and all others are read."""
    first, second = event("first"), event("second")
    write_and_die(tmp_path, first, second)
    corrupt(tmp_path / "steps.db.owner.journal", FIRST_SLOT, header)
    assert [record.event for record in left(tmp_path)] == [second]


def test_a_torn_content_is_none(tmp_path: Path) -> None:
    """A record whose content does not agree with its checksum is left out: its slot was written again."""
    first, second = event("first"), event("second")
    write_and_die(tmp_path, first, second)
    corrupt(tmp_path / "steps.db.owner.journal", FIRST_SLOT + HEADER.size + 20, b"torn")
    assert [record.event for record in left(tmp_path)] == [second]


def test_a_torn_resource_leaves_the_event(tmp_path: Path) -> None:
    """An event whose resource cannot be read is delivered with an empty one."""
    step = event()
    write_and_die(tmp_path, step)
    corrupt(tmp_path / "steps.db.owner.journal", 64 + HEADER.size, b"torn")
    (record,) = left(tmp_path)
    assert (record.event, record.pipeline.resource) == (step, Resource({}))


def test_the_bytes_of_a_record(tmp_path: Path) -> None:
    """The bytes are the same on every Python, and what an earlier release has written is read."""
    journal = create(tmp_path)
    assert journal.write(EVENT, PIPELINE, 1_700_000_001.5)
    journal.close(remove=False)
    path = tmp_path / "steps.db.owner.journal"
    written = path.read_bytes()
    length, checksum, number = HEADER.unpack_from(written, FIRST_SLOT)
    content = written[FIRST_SLOT + HEADER.size :][:length]
    assert (content.hex(), checksum, number) == (GOLDEN.hex(), zlib.crc32(GOLDEN), 1)
    (record,) = left(tmp_path)
    assert (record.event, record.put_at) == (EVENT, 1_700_000_001.5)


def test_the_file_is_allocated_and_for_its_user_alone(tmp_path: Path) -> None:
    """Mode 0600, and no hole: a write to a hole of a full disk would end the process."""
    journal = create(tmp_path)
    found = journal.path.stat()
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert found.st_blocks * 512 >= found.st_size == FIRST_SLOT + SLOTS * SLOT_SIZE
    journal.close(remove=True)
    assert list(tmp_path.iterdir()) == []


def test_records_are_taken_once_and_in_order(tmp_path: Path) -> None:
    """What is put back is taken again before the rest, and the oldest age is that of what was not taken."""
    journal = create(tmp_path)
    assert (journal.oldest_age(9.0), len(journal), journal.take(5)) == (0.0, 0, [])
    for number in range(5):
        journal.write(event(f"step-{number}"), PIPELINE, float(number))
    assert (journal.oldest_age(9.0), len(journal)) == (9.0, 5)
    first = journal.take(2)
    assert (journal.oldest_age(9.0), len(journal)) == (7.0, 3)
    journal.put_back(first)
    assert [record.event.step_id for record in journal.take(9)] == [f"step-{number}" for number in range(5)]
    journal.close(remove=True)


def test_a_child_that_was_forked_holds_no_lock(tmp_path: Path) -> None:
    """The journal of a parent that has ended is taken over although its child still has it open."""
    (in_read, in_write), (out_read, out_write) = os.pipe(), os.pipe()

    def write_and_fork() -> None:
        create(tmp_path).write(event("parents"), PIPELINE, 0.0)
        if not os.fork():
            os.read(in_read, 1)
            os.write(out_write, b".")
            os._exit(0)

    assert in_child(write_and_fork) == 0
    assert [record.event.step_id for record in left(tmp_path)] == ["parents"]
    os.write(in_write, b".")
    assert os.read(out_read, 1) == b"."
    for file in (in_read, in_write, out_read, out_write):
        os.close(file)
