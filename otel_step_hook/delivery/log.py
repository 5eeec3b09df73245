"""The logger of this package: owns how often a repeated line is logged."""

import logging
import math
import os
import sys
import traceback
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path

from otel_step_hook.delivery.clock import monotonic

log = logging.getLogger("otel_step_hook")

Fields = Mapping[str, str | int]  # attributes of a `LogRecord`, which formatters for JSON write beside the line
Schedule = Callable[[float, Callable[[], None]], object]  # calls a function after a number of seconds

PREFIX = "otel_step_hook."  # of the names of fields that are ours alone
EVERY = 60.0  # seconds; a line that repeats is logged at most this often
KINDS = 64  # of lines that are counted separately; further kinds are counted together, as one kind
_OTHERS = "others"  # the kind of those beyond the limit
_ID_LENGTH = 120  # characters of a step id in a line; ids are as long as users make them


@dataclass(slots=True)
class Line:
    """A line whose *text* and *fields* are made when it is logged, and not while it is only counted.

    Its repetitions have the fields in *shared*.
    """

    text: Callable[[], str]
    fields: Callable[[], Fields]
    shared: Fields


def log_safely(level: int, message: str, *args: object, fields: Fields | None = None) -> None:
    """Log a line with *fields*, and ignore exceptions of the application's handlers, except KeyboardInterrupt.

    SystemExit is ignored too: some handlers exit, which on the worker thread would end only the deliveries. While the
    interpreter finalizes, a line that could block for ever is not logged. Where the application has closed its log, an
    error goes to the stderr that the process was started with.
    """
    try:
        if level >= logging.ERROR and _is_closed():
            # Not by the stream: its lock may be held for ever. Without a stderr this raises, too.
            os.write(sys.__stderr__.fileno(), f"{message % args}\n".encode())  # type: ignore[union-attr]  # -- see above
        elif not sys.is_finalizing() or _locks_are_free():
            _log_line(level, message, args, fields)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001, S110 -- see above
        pass


def _log_line(level: int, message: str, args: tuple[object, ...], fields: Fields | None) -> None:
    try:
        log.log(level, message, *args, stacklevel=3, extra=fields)
    except KeyError as error:
        if not fields or "Attempt to overwrite" not in str(error):
            raise
        # The application's factory of records sets some of them, and `logging` refuses a second value: `trace_id`.
        own = {name: value for name, value in fields.items() if name.startswith(PREFIX)}
        log.log(level, message, *args, stacklevel=3, extra=own)


def _handlers() -> list[logging.Handler]:
    """Return the handlers that get the lines, or that of the logging module which gets them where there is none."""
    logger, handlers = log, list(log.handlers)
    while logger.propagate and logger.parent is not None:
        logger = logger.parent
        handlers += logger.handlers
    return handlers or [handler for handler in (logging.lastResort,) if handler is not None]


def _is_closed() -> bool:
    """Whether every handler writes to a stream that is closed: Dramatiq's workers close theirs before they end."""
    handlers = _handlers()
    return bool(handlers) and all(getattr(getattr(one, "stream", None), "closed", False) for one in handlers)


def _locks_are_free() -> bool:
    """Whether this thread can take the locks that a line needs.

    A daemon thread that Python has stopped in the middle of a line of its own holds them for ever. No other thread
    runs while the interpreter finalizes, so what is free stays free.
    """
    # The first is the lock of the module; it is private.
    for lock in (vars(logging).get("_lock"), *(handler.lock for handler in _handlers())):
        if lock is not None:
            if not lock.acquire(blocking=False):
                return False
            lock.release()
    return True


def printable(step_id: str) -> str:
    """Return *step_id* for a log line: without control characters, and at most 120 characters of it."""
    text = step_id if len(step_id) <= _ID_LENGTH else f"{step_id[:_ID_LENGTH]}…"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def where(error: BaseException) -> str:
    """Return type and place of *error* for a log line, without its message, which may hold a key or a header."""
    # Not extract_tb(): it reads source files, and this may run on the application's thread.
    codes = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    places = [f" <- {Path(code.co_filename).name}:{line} {code.co_name}" for code, line in reversed(codes[-4:])]
    return f"{type(error).__name__}{''.join(places)}"


class RateLimitedLog:
    """Logs the first line of each kind at once, counts repeated lines, and logs their count a minute or two later.

    For one thread, except `has_counts`. It keeps at most `KINDS` kinds of lines, and at most one timer.
    """

    def __init__(self, monotonic: Callable[[], float] = monotonic) -> None:
        self._monotonic = monotonic
        self._kinds: dict[Hashable, _Kind] = {}
        self._schedule: Schedule | None = None
        self._is_scheduled = False

    def use_timer(self, schedule: Schedule | None) -> None:
        """Schedule timers by *schedule* from now on, or none; an earlier timer has ended with its event loop."""
        self._schedule, self._is_scheduled = schedule, False
        self._schedule_next()

    def log(self, level: int, kind: Hashable, line: str | Line, times: int = 1) -> None:
        """Log *line*, or only count it if one of its *kind* was logged less than a minute ago.

        *times* is how often it has happened; all but the first time are only counted.
        """
        entry = self._entry(kind)
        now = self._monotonic()
        if not entry.count and now - entry.logged_at >= EVERY:
            entry.logged_at = now
            if isinstance(line, Line):
                log_safely(level, "%s", line.text(), fields=line.fields())
            else:
                log_safely(level, "%s", line)
            times -= 1
        if times:
            entry.count += times
            entry.level, entry.line = level, line
            self._schedule_next()

    def _entry(self, kind: Hashable) -> "_Kind":
        if kind not in self._kinds and len(self._kinds) >= KINDS - 1:
            now = self._monotonic()
            self._kinds = {k: entry for k, entry in self._kinds.items() if entry.count or now - entry.logged_at < EVERY}
            kind = kind if len(self._kinds) < KINDS - 1 else _OTHERS
        return self._kinds.setdefault(kind, _Kind())

    def has_counts(self) -> bool:
        """Whether there are counts that have not been logged. From any thread."""
        return any(entry.count for entry in list(self._kinds.values()))

    def log_counts(self, *, all_of_them: bool = False) -> None:
        """Log the counts of kinds whose last line is a minute old, or the counts of all kinds."""
        now = self._monotonic()
        for kind, entry in list(self._kinds.items()):
            if entry.count and (all_of_them or now - entry.logged_at >= EVERY):
                count, entry.count, entry.logged_at = entry.count, 0, now
                line, entry.line = entry.line, ""
                text, shared = (line.text(), line.shared) if isinstance(line, Line) else (line, None)
                shared = None if kind == _OTHERS else shared  # they share nothing that is known
                log_safely(entry.level, "%d more like this: %s", count, text, fields=shared)
        self._schedule_next()

    def _schedule_next(self) -> None:
        """Schedule a timer for the count that is due first, unless one is set: when it ends, it schedules the next."""
        if self._is_scheduled or self._schedule is None:
            return
        first = min((entry.logged_at for entry in self._kinds.values() if entry.count), default=None)
        if first is not None:
            self._is_scheduled = True
            self._schedule(max(0.0, first + EVERY - self._monotonic()), self._on_timer)

    def _on_timer(self) -> None:
        self._is_scheduled = False
        self.log_counts()


class _Kind:
    """Lines of one kind: when one was logged last, and how many were counted since."""

    __slots__ = ("count", "level", "line", "logged_at")

    def __init__(self) -> None:
        self.logged_at = -math.inf  # monotonic seconds
        self.count = 0
        self.level = logging.WARNING
        self.line: str | Line = ""
