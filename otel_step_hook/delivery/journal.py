"""The journal of an outbox: owns a file in shared memory that `put` copies events into, without a system call.

What is copied into the mapping survives the process, also SIGKILL, and is moved into the database by the worker thread.
The file is allocated in full before it is used: to write into a hole of a full disk would be SIGBUS, which ends the
process. Its owner holds a lock on it, which forked children do not inherit, and which ends with the process.
"""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import marshal
import mmap
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Self

from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from otel_step_hook.delivery.model import KnownPipeline, Pipeline, pipeline_key
from otel_step_hook.steps.event import Outcome, StepEvent

SLOTS = 8192  # events that a journal has room for; what a fast application ends while the worker thread writes a batch
SLOT_SIZE = 1024  # bytes of one event with its header; most have 250 to 500
_RESOURCE_SLOTS = 4  # a process has one or two resources
_RESOURCE_SIZE = 65_536  # bytes of one resource with its header
_MAX_PIPELINES = 16  # remembered; a process has one or two
MAGIC = b"otel-step-hook journal 1\n".ljust(64, b"\0")
_FIRST_SLOT = len(MAGIC) + _RESOURCE_SLOTS * _RESOURCE_SIZE
SIZE = _FIRST_SLOT + SLOTS * SLOT_SIZE  # bytes of a journal
_HEADER = struct.Struct("<IIQ")  # of a slot: length and CRC-32 of the content, and its number; all 0 when it is free
_ROOM = SLOT_SIZE - _HEADER.size  # bytes of one event
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # to write zeros would fail, too, after most of them
# Of `marshal`, which is four times as fast as `json`: every Python since 2.5 writes and reads it, for plain values.
_FORMAT = 2


class JournalRecord(NamedTuple):
    """An event as it was put. *put_at* is in monotonic seconds; of a process that has ended, in unix seconds."""

    slot: int
    put_at: float
    pipeline: Pipeline
    event: StepEvent


class Journal:
    """The events of one process for one endpoint that are not in the database yet.

    `write` may be called from any thread, from a signal handler and by the garbage collector at any moment: it takes no
    lock and makes no system call. The other methods are for one thread at a time.
    """

    def __init__(self, path: Path, file: int, mapping: mmap.mmap) -> None:
        self.path = path
        self.owner = owner_of(path)
        self._file = file
        self._mapping = mapping
        self._numbers = itertools.count(1)  # its next() is atomic
        self._free = deque(range(SLOTS - 1, -1, -1))  # from the right: slots that were used last are in the cache
        # Not records: making one would cost the application's thread as much as the copy.
        self._written: deque[tuple[int, float, Pipeline, StepEvent]] = deque()
        self._resource_slots = deque(range(_RESOURCE_SLOTS))
        self._resource_contents: dict[bytes, int] = {}  # what the slots of resources hold
        self._resources: dict[tuple[int, int], tuple[KnownPipeline, int]] = {}  # the slot of each resource; -1: none

    @classmethod
    def create(cls, directory: Path, prefix: str, owner: str) -> Self:
        """Make the journal of *owner* in *directory*; its name begins with *prefix*.

        Raises OSError, on a full disk, too.
        """
        path = directory / f"{prefix}{owner}.journal"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        enter(path)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _allocate(file)
            os.pwrite(file, MAGIC, 0)
            path.stat()  # before it was locked, another process may have removed it, as that of a dead one
            return cls(path, file, mmap.mmap(file, SIZE))
        except BaseException:
            remove_file(path, file)
            raise

    def write(self, event: StepEvent, pipeline: Pipeline, put_at: float, clock_offset: float = 0.0) -> bool:
        """Copy *event*, put at the monotonic time *put_at*, into a free slot; *clock_offset* makes unix seconds of it.

        False when no slot is free, when the event is too long for one, and after `close`.
        """
        known = self._resources.get((id(pipeline.processor), id(pipeline.resource)))
        number = known[1] if known is not None and known[0].is_of(pipeline) else self._resource_slot(pipeline)
        trace_id, span_id, _, flags, trace_state, _ = event.context
        details = event.details
        try:
            content = marshal.dumps(
                (
                    put_at + clock_offset,
                    number,
                    event.step_id,
                    event.outcome._value_,
                    str(event.name),
                    trace_id,
                    span_id,
                    int(flags),
                    trace_state.to_header() if trace_state else "",
                    event.start_time,
                    event.end_time,
                    dict(details) if details else None,
                ),
                _FORMAT,
            )
            if number < 0 or len(content) > _ROOM:
                return False
            slot = self._free.pop()
            _write(self._mapping, _FIRST_SLOT + slot * SLOT_SIZE, content, next(self._numbers))
        # `details` of somebody's profile holds other objects, or the mapping is closed; no slot is free.
        except (ValueError, IndexError):
            return False
        self._written.append((slot, put_at, pipeline, event))
        return True

    def _resource_slot(self, pipeline: Pipeline) -> int:
        """Write the resource of *pipeline* into a slot, and return its number; -1 when there is no room for it."""
        number = self._write_resource(pipeline.resource)
        if len(self._resources) >= _MAX_PIPELINES:
            self._resources.clear()
        self._resources[pipeline_key(pipeline)] = (KnownPipeline(pipeline), number)
        return number

    def _write_resource(self, resource: Resource) -> int:
        try:
            content = marshal.dumps((dict(resource.attributes), resource.schema_url), _FORMAT)
            if content in self._resource_contents:
                return self._resource_contents[content]
            if len(content) > _RESOURCE_SIZE - _HEADER.size:
                return -1
            number = self._resource_slots.popleft()
            _write(self._mapping, len(MAGIC) + number * _RESOURCE_SIZE, content, 1)
        except (ValueError, IndexError):  # as in `write`
            return -1
        self._resource_contents[content] = number
        return number

    def __len__(self) -> int:
        return len(self._written)

    def oldest_age(self, now: float) -> float:
        """Return the age in seconds of the oldest record that was not taken; 0 when there is none. From any thread."""
        try:
            return now - self._written[0][1]
        except IndexError:
            return 0.0

    def take(self, limit: int) -> list[JournalRecord]:
        """Return the oldest records, at most *limit*, which keep their slots until `free`. Each is returned once."""
        return [JournalRecord(*self._written.popleft()) for _ in range(min(limit, len(self._written)))]

    def put_back(self, records: list[JournalRecord]) -> None:
        """Let `take` return *records* again, first."""
        self._written.extendleft(reversed(records))

    def free(self, slots: Iterable[int]) -> None:
        """Make *slots* free: what they held is in the database, or finished."""
        for slot in slots:
            self.clear(slot)
            self._free.append(slot)

    def clear(self, slot: int) -> None:
        """Empty *slot*. Of a journal that was recovered, for good: nobody writes to it."""
        start = _FIRST_SLOT + slot * SLOT_SIZE
        self._mapping[start : start + _HEADER.size] = bytes(_HEADER.size)

    def recover(self) -> None:
        """Read the records that the dead owner has left, in their order. A torn record is none."""
        resources = [self._resource(number) for number in range(_RESOURCE_SLOTS)]
        found = []
        for slot in range(SLOTS):
            number, content = _read(self._mapping, _FIRST_SLOT + slot * SLOT_SIZE, SLOT_SIZE)
            if content:
                found.append((number, _record(slot, marshal.loads(content), resources)))  # noqa: S302 -- own file, mode 0600
        self._written.extend(record for _, record in sorted(found, key=lambda one: one[0]))

    def _resource(self, number: int) -> Resource:
        _, content = _read(self._mapping, len(MAGIC) + number * _RESOURCE_SIZE, _RESOURCE_SIZE)
        return Resource(*marshal.loads(content)) if content else Resource({})  # noqa: S302 -- own file, mode 0600

    def close(self, *, remove: bool) -> None:
        """Release the lock; *remove* the file, or leave its records to the next process."""
        free = 0
        with contextlib.suppress(IndexError):  # from now on no other thread gets a slot
            while self._free.pop() >= 0:
                free += 1
        # A thread that has a slot already may write into it: then the record is left to the next process.
        if remove and free == SLOTS:
            remove_file(self.path, self._file)
        else:
            close_file(self.path, self._file)
        # Last: a mapping has a descriptor of its own, and the lock on the file ends when that is closed.
        self._mapping.close()


def journal_prefix(path: Path, endpoint: str) -> str:
    """Return how the names of the journals of *endpoint* begin, which stand beside the database *path*."""
    return f"{path.name}.{hashlib.sha256(endpoint.encode()).hexdigest()[:8]}."


def owner_of(path: Path) -> str:
    """Return the id of the process that has made the journal *path*: it stands in its name."""
    return path.name.split(".")[-2]


def _allocate(file: int) -> None:
    """Allocate all blocks of *file*. Raises OSError when the disk is full."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, SIZE)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise
        else:
            return
    # macOS has no such call, nor have some file systems.
    zeros, start = bytes(65_536), 0
    while start < SIZE:
        start += os.pwrite(file, zeros[: SIZE - start], start)


def _write(mapping: mmap.mmap, start: int, content: bytes, number: int) -> None:
    begin = start + _HEADER.size
    # The header last: a process that is killed in between leaves a slot that is free, or whose CRC does not agree.
    mapping[begin : begin + len(content)] = content
    mapping[start:begin] = _HEADER.pack(len(content), zlib.crc32(content), number)


def _read(mapping: mmap.mmap, start: int, size: int) -> tuple[int, bytes]:
    """Return number and content of a slot; no content when it is free or torn."""
    length, crc, number = _HEADER.unpack_from(mapping, start)
    begin = start + _HEADER.size
    content = mapping[begin : begin + length] if 0 < length <= size - _HEADER.size else b""
    return number, content if zlib.crc32(content) == crc else b""


def count_records(mapping: mmap.mmap) -> int:
    """Return how many slots of a journal hold an event."""
    return sum(1 for start in range(_FIRST_SLOT, SIZE, SLOT_SIZE) if _read(mapping, start, SLOT_SIZE)[1])


def _record(slot: int, content: tuple[Any, ...], resources: list[Resource]) -> JournalRecord:
    put_at, number, step_id, outcome, name, trace_id, span_id, flags, state, start, end, details = content
    trace_state = TraceState.from_header([state]) if state else TraceState()
    context = SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(flags), trace_state=trace_state)
    event = StepEvent(step_id, Outcome(outcome), name, context, start, end, details or {})
    return JournalRecord(slot, put_at, Pipeline(None, resources[number]), event)


def is_linked(file: int, path: Path) -> bool:
    """Whether *path* still names the open *file*."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False


def enter(path: Path) -> bool:
    """Note that this process has *path* open. False when it has already."""
    token = object()
    return _open_here.setdefault((os.getpid(), path.name), token) is token


def leave(path: Path) -> None:
    """Note that this process does not have *path* open."""
    _open_here.pop((os.getpid(), path.name), None)


def close_file(path: Path, file: int) -> None:
    """Close *file*, which is open at *path*: its lock ends."""
    os.close(file)
    leave(path)


def remove_file(path: Path, file: int) -> None:
    """Remove *path*, which this process has locked and open as *file*, and close it."""
    # Before it is closed: the lock keeps others from it until then.
    if is_linked(file, path):
        path.unlink(missing_ok=True)
    close_file(path, file)


# The journals that are open, by process id and name: a forked child may open those of its parent, once it has ended.
_open_here: dict[tuple[int, str], object] = {}
