"""What is logged, at which level, and how often: owns the rate of repeated lines."""

import contextlib
import logging
import time
import traceback
from collections.abc import Callable, Hashable
from pathlib import Path

log = logging.getLogger("otel_step_hook")

EVERY = 60.0  # seconds; trouble that repeats is told at most this often
_ID_LENGTH = 120  # characters of a step id in a line; ids are as long as users make them


def say(level: int, message: str, *args: object) -> None:
    """Log, whatever the application's handlers and filters raise: no webhook is lost to them.

    SystemExit, too: some handlers exit, which on this thread would end nothing but the deliveries.
    """
    with contextlib.suppress(Exception, SystemExit):
        log.log(level, message, *args, stacklevel=2)


def printable(step_id: str) -> str:
    """*step_id* for a log line: one line, no control characters, not too long."""
    text = step_id if len(step_id) <= _ID_LENGTH else f"{step_id[:_ID_LENGTH]}…"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def where(error: BaseException) -> str:
    """Type and place of *error*, for a log line; not its message, which may hold a key or a header."""
    # Not extract_tb(): it reads the source files, and this may be the application's thread.
    codes = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    places = [f" <- {Path(code.co_filename).name}:{line} {code.co_name}" for code, line in reversed(codes[-4:])]
    return f"{type(error).__name__}{''.join(places)}"


class Trouble:
    """Tells the first of each kind of trouble at once, counts the rest, and tells the count a minute later.

    Used by one thread. *schedule*, when set, calls a function after so many seconds.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._told: dict[Hashable, _Told] = {}
        self.schedule: Callable[[float, Callable[[], None]], object] | None = None

    def tell(self, level: int, kind: Hashable, message: str, times: int = 1) -> None:
        """Log *message*, unless one of its *kind* was logged less than a minute ago: then count it.

        *times* is how often it has happened; all but the first are counted in any case.
        """
        now = self._monotonic()
        told = self._told.get(kind)
        if told is None or (now - told.at >= EVERY and not told.unsaid):
            told = self._told[kind] = _Told(now)
            say(level, "%s", message)
            times -= 1
        if not times:
            return
        if not told.unsaid and self.schedule is not None:
            self.schedule(max(0.0, EVERY - (now - told.at)), self.tell_rest)
        told.unsaid += times
        told.level, told.message = level, message

    def tell_rest(self, *, all_of_it: bool = False) -> None:
        """Log the counts that are a minute old, or all of them."""
        now = self._monotonic()
        for told in [told for told in self._told.values() if told.unsaid]:
            left = EVERY - (now - told.at)
            if all_of_it or left <= 0:
                say(told.level, "%d more like this: %s", told.unsaid, told.message)
                told.at, told.unsaid = now, 0
            elif self.schedule is not None:
                self.schedule(left, self.tell_rest)


class _Told:
    """One kind of trouble: when it was told last, and what has not been told since."""

    __slots__ = ("at", "level", "message", "unsaid")

    def __init__(self, at: float) -> None:
        self.at = at
        self.unsaid = 0
        self.level = logging.WARNING
        self.message = ""
