"""What is logged, at which level, and how often: owns the rate of repeated lines."""

import contextlib
import logging
import math
import time
import traceback
from collections.abc import Callable, Hashable
from pathlib import Path

log = logging.getLogger("otel_step_hook")

Schedule = Callable[[float, Callable[[], None]], object]  # calls a function after so many seconds

EVERY = 60.0  # seconds; trouble that repeats is told at most this often
KINDS = 64  # of trouble that are told apart; what is on top of them counts as one, for as long as they go on
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
    """Tells the first of each kind of trouble at once, counts the rest, and tells the count a minute or two later.

    Used by one thread, but for `has_rest`. Knows at most `KINDS` kinds, and has at most one timer, whatever happens.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._told: dict[Hashable, _Told] = {}
        self._schedule: Schedule | None = None
        self._is_scheduled = False

    def use(self, schedule: Schedule | None) -> None:
        """Tell counts by this timer from now on, or by none; one that was scheduled before is gone with its loop."""
        self._schedule, self._is_scheduled = schedule, False
        self._schedule_next()

    def tell(self, level: int, kind: Hashable, message: str, times: int = 1) -> None:
        """Log *message*, unless one of its *kind* was logged less than a minute ago: then count it.

        *times* is how often it has happened; all but the first are counted in any case.
        """
        told = self._of(kind)
        now = self._monotonic()
        if not told.unsaid and now - told.at >= EVERY:
            told.at = now
            say(level, "%s", message)
            times -= 1
        if times:
            told.unsaid += times
            told.level, told.message = level, message
            self._schedule_next()

    def _of(self, kind: Hashable) -> "_Told":
        if kind not in self._told and len(self._told) >= KINDS - 1:
            now = self._monotonic()
            self._told = {kind: told for kind, told in self._told.items() if told.unsaid or now - told.at < EVERY}
            kind = kind if len(self._told) < KINDS - 1 else "others"
        return self._told.setdefault(kind, _Told())

    def has_rest(self) -> bool:
        """Whether there are counts that have not been logged. From any thread."""
        return any(told.unsaid for told in list(self._told.values()))

    def tell_rest(self, *, all_of_it: bool = False) -> None:
        """Log the counts that are a minute old, or all of them."""
        now = self._monotonic()
        for told in list(self._told.values()):
            if told.unsaid and (all_of_it or now - told.at >= EVERY):
                unsaid, told.unsaid, told.at = told.unsaid, 0, now
                say(told.level, "%d more like this: %s", unsaid, told.message)
        self._schedule_next()

    def _schedule_next(self) -> None:
        """Have a timer for the count that is due first, unless there is one: the others wait for it, or follow it."""
        if self._is_scheduled or self._schedule is None:
            return
        first = min((told.at for told in self._told.values() if told.unsaid), default=None)
        if first is not None:
            self._is_scheduled = True
            self._schedule(max(0.0, first + EVERY - self._monotonic()), self._on_timer)

    def _on_timer(self) -> None:
        self._is_scheduled = False
        self.tell_rest()


class _Told:
    """One kind of trouble: when it was told last, and what has not been told since."""

    __slots__ = ("at", "level", "message", "unsaid")

    def __init__(self) -> None:
        self.at = -math.inf  # monotonic seconds
        self.unsaid = 0
        self.level = logging.WARNING
        self.message = ""
