"""The journals of processes that have ended: finds them beside a database, and locks those that it takes over."""

import fcntl
import glob
import logging
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

from otel_step_hook.delivery.journal import (
    MAGIC,
    SIZE,
    Journal,
    close_file,
    count_records,
    enter,
    is_linked,
    journal_prefix,
    leave,
    remove_file,
)
from otel_step_hook.delivery.log import log_safely

# Seconds after which a journal that is still being made is left over from a process that was killed.
_MAKING_TIME = 60.0


def abandoned(directory: Path, prefix: str) -> Iterator[Journal]:
    """Yield the journals of processes that have ended, one after the other, locked and with their records read.

    The caller closes each. The lock on a file ends when its process opens and closes the file once more, so those that
    this process has open are left out.
    """
    for path in sorted(directory.glob(f"{glob.escape(prefix)}*.journal")):
        if enter(path):
            try:
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except OSError:  # another process has removed it
                leave(path)
                continue
            journal = _take_over(path, file)
            if journal is not None:
                yield journal


def count_abandoned(database: Path, endpoint: str | None = None) -> int:
    """Return how many records there are in the journals of processes that have ended, and leave them there.

    The journals beside *database* of *endpoint*, by default of all endpoints. Those that this process has open are left
    out, as in `abandoned`.
    """
    any_endpoint = f"{glob.escape(database.name)}.{'[0-9a-f]' * 8}."
    pattern = any_endpoint if endpoint is None else glob.escape(journal_prefix(database, endpoint))
    return sum(_count(path) for path in sorted(database.parent.glob(f"{pattern}*.journal")) if enter(path))


def _count(path: Path) -> int:
    """Return the number of records of *path*, which `enter` has noted; 0 while its owner is alive."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # another process has removed it
        leave(path)
        return 0
    try:
        if os.pread(file, len(MAGIC), 0) != MAGIC:  # its owner may be about to lock it
            return 0
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.lockf(file, fcntl.LOCK_UN)  # at once: another process may want to take it over
        with mmap.mmap(file, SIZE, access=mmap.ACCESS_READ) as mapping:
            return count_records(mapping)
    except (OSError, ValueError):  # its owner is alive; it is shorter than a journal
        return 0
    finally:
        close_file(path, file)


def _take_over(path: Path, file: int) -> Journal | None:
    """Return the journal *path* if its owner has ended. Removes one that its owner did not finish making."""
    magic, found = os.pread(file, len(MAGIC), 0), os.fstat(file)
    # Before the lock: its owner may be about to lock it.
    if not magic.strip(b"\0") and time.time() - found.st_mtime < _MAKING_TIME:
        close_file(path, file)
        return None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # its owner is alive
        close_file(path, file)
        return None
    if not magic.strip(b"\0"):
        remove_file(path, file)
    elif magic != MAGIC or found.st_size < SIZE:
        close_file(path, file)
        _warn_once(path.name)
    elif not is_linked(file, path):  # another process has taken it over since it was found
        close_file(path, file)
    else:
        journal = Journal(path, file, mmap.mmap(file, SIZE))
        journal.recover()
        return journal
    return None


def _warn_once(name: str) -> None:
    if name not in _warned:
        _warned.add(name)
        text = "%s is no journal that this version of otel-step-hook can read, and is left as it is"
        log_safely(logging.ERROR, text, name)


_warned: set[str] = set()  # the names of journals that a line has named; one for each file that is left
