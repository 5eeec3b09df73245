"""The log of the libraries below: owns the filter that keeps lines about our own requests out of it."""

import contextlib
import functools
import logging
import os
from collections.abc import Iterator

from otel_step_hook.delivery import native

# The loggers that the libraries use for clients: a filter of a logger does not hold for the loggers below it.
_LOGGERS = (
    "asyncio",
    "aiohttp.client",
    "aiohttp.internal",
    "httpx",
    "httpcore.connection",
    "httpcore.http11",
    "httpcore.proxy",
)
_own_threads: set[tuple[int, int]] = set()  # process and thread: a forked child may give the same thread to others


class _NotOurs(logging.Filter):
    """Drops the lines below WARNING that our own threads cause; those of all other threads pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or (os.getpid(), native.get_ident()) not in _own_threads


@functools.cache
def install() -> None:
    """Add the filter, once for all hooks. No level is changed."""
    only_others = _NotOurs()
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(only_others)


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Drop the libraries' lines about what the calling thread does: at DEBUG they show an answer's headers.

    A receiver may echo the key in them. Warnings and errors are logged.
    """
    thread = (os.getpid(), native.get_ident())
    _own_threads.add(thread)
    try:
        yield
    finally:
        _own_threads.discard(thread)
