"""The log of the library: which lines are logged, how often, and what they may contain."""

import io
import logging
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_step_hook.delivery.log import EVERY, KINDS, Fields, Line, RateLimitedLog, log_safely, printable, where


class Clock:
    """A clock that stands still until `advance` is called, which calls the functions that are due."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.scheduled: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now

    def schedule(self, delay: float, function: Callable[[], None]) -> None:
        assert delay >= 0
        self.scheduled.append((self.now + delay, function))

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [function for at, function in self.scheduled if at <= self.now]
        self.scheduled = [(at, function) for at, function in self.scheduled if at > self.now]
        for function in due:
            function()


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture
def limited_log(clock: Clock) -> RateLimitedLog:
    """A rate-limited log that goes by *clock*."""
    log = RateLimitedLog(clock)
    log.use_timer(clock.schedule)
    return log


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """Level and message of all lines since the last call."""
    found = [(record.levelno, record.message) for record in caplog.records]
    caplog.clear()
    return found


def test_a_line_is_logged_at_once_and_its_repeats_once_a_minute(
    limited_log: RateLimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The first line of a kind is logged at once; its repeats are counted, and logged with the latest text."""
    for number in range(5):
        limited_log.log(logging.WARNING, "slow", f"slow {number}")
        clock.advance(1.0)
    assert lines(caplog) == [(logging.WARNING, "slow 0")]
    clock.advance(EVERY - 5.0)
    assert lines(caplog) == [(logging.WARNING, "4 more like this: slow 4")]
    clock.advance(10 * EVERY)
    assert lines(caplog) == []
    assert clock.scheduled == []


def test_a_line_that_goes_on_is_logged_every_minute(
    limited_log: RateLimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure every second for an hour is about sixty lines, and each one is in a count."""
    for number in range(3600):
        limited_log.log(logging.WARNING, "down", f"down {number}")
        clock.advance(1.0)
    clock.advance(EVERY)
    found = lines(caplog)
    assert 59 <= len(found) <= 62
    counted = [int(message.split()[0]) for _, message in found if "more like this" in message]
    assert sum(counted) + len(found) - len(counted) == 3600


def test_a_line_after_a_quiet_minute_is_logged_at_once(
    limited_log: RateLimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A line that has not occurred for a minute is logged like a first one."""
    limited_log.log(logging.WARNING, "slow", "first")
    clock.advance(EVERY)
    limited_log.log(logging.WARNING, "slow", "second")
    assert [message for _, message in lines(caplog)] == ["first", "second"]


def test_many_occurrences_at_once_are_one_line_and_a_count(
    limited_log: RateLimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A thousand occurrences in one call are one line now, and one count a minute later."""
    limited_log.log(logging.ERROR, "dropped", "first", 1000)
    limited_log.log(logging.ERROR, "dropped", "second", 2)
    assert lines(caplog) == [(logging.ERROR, "first")]
    clock.advance(EVERY)
    assert lines(caplog) == [(logging.ERROR, "1001 more like this: second")]


def test_each_kind_is_limited_by_itself(
    limited_log: RateLimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A line of one kind does not suppress lines of another kind; each count has its own minute."""
    for kind in ("slow", "down"):
        limited_log.log(logging.WARNING, kind, f"{kind} first")
        limited_log.log(logging.ERROR, kind, f"{kind} again")
        clock.advance(20.0)
    assert [message for _, message in lines(caplog)] == ["slow first", "down first"]
    clock.advance(EVERY - 40.0)
    assert lines(caplog) == [(logging.ERROR, "1 more like this: slow again")]
    clock.advance(20.0)
    assert lines(caplog) == [(logging.ERROR, "1 more like this: down again")]


def test_at_the_end_all_counts_are_logged(limited_log: RateLimitedLog, caplog: pytest.LogCaptureFixture) -> None:
    """A process that ends within the minute still logs its counts, once."""
    limited_log.log(logging.WARNING, "slow", "first")
    limited_log.log(logging.WARNING, "slow", "second")
    limited_log.log_counts(all_of_them=True)
    limited_log.log_counts(all_of_them=True)
    assert [message for _, message in lines(caplog)] == ["first", "1 more like this: second"]


def test_without_a_timer_counts_are_kept(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Counts from between two event loops are logged by the timer of the next loop."""
    limited_log = RateLimitedLog(clock)
    for _ in range(3):
        limited_log.log(logging.WARNING, "slow", "slow")
    limited_log.log_counts()
    assert len(lines(caplog)) == 1
    clock.advance(EVERY)
    limited_log.use_timer(clock.schedule)  # the next loop
    clock.advance(0.0)
    assert lines(caplog) == [(logging.WARNING, "2 more like this: slow")]


def test_all_kinds_share_one_timer(limited_log: RateLimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Three kinds that go on for an hour are each logged every minute, by one timer in all."""
    kinds = ("refused", "discarded", "queue full")
    for _ in range(3600):
        for kind in kinds:
            limited_log.log(logging.ERROR, kind, kind)
        assert len(clock.scheduled) <= 1
        clock.advance(1.0)
    clock.advance(EVERY)
    messages = [message for _, message in lines(caplog)]
    for kind in kinds:
        counts = [int(message.split()[0]) for message in messages if message.endswith(f" more like this: {kind}")]
        assert 59 <= len(counts) <= 61
        assert sum(counts) == 3599  # all but the first, which was logged at once


def test_the_number_of_kinds_is_bounded(
    limited_log: RateLimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Ever new kinds of lines fill neither the memory nor the log; a kind that is quiet for a minute is forgotten."""
    for _ in range(3):
        for number in range(10 * KINDS):
            limited_log.log(logging.ERROR, number, f"odd {number}")
        assert len(lines(caplog)) == KINDS
        clock.advance(EVERY)
        assert [message for _, message in lines(caplog)] == [f"{9 * KINDS} more like this: odd {10 * KINDS - 1}"]
        clock.advance(EVERY)


def test_a_message_is_no_format(limited_log: RateLimitedLog, caplog: pytest.LogCaptureFixture) -> None:
    """Percent signs in a message are logged as they are."""
    limited_log.log(logging.WARNING, "odd", "100 %s %(key)s")
    assert lines(caplog) == [(logging.WARNING, "100 %s %(key)s")]


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_an_exception_of_a_log_handler_is_suppressed(error: type[BaseException]) -> None:
    """A log handler of the application that raises, or exits, does not affect the code that logs."""

    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002 -- logging's signature
            raise error

    logger, handler = logging.getLogger("otel_step_hook"), Raising()
    logger.addHandler(handler)
    try:
        log_safely(logging.ERROR, "anything")
    finally:
        logger.removeHandler(handler)


def test_a_record_names_the_function_that_has_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The function of a log record is the one that has called `log_safely`."""
    log_safely(logging.ERROR, "anything")
    assert caplog.records[0].funcName == "test_a_record_names_the_function_that_has_logged"


# Step ids and errors in a line


@given(st.text(st.characters(), max_size=300))
def test_any_step_id_is_one_line_of_limited_length(step_id: str) -> None:
    """No step id breaks a log into lines, colours a terminal, or fills the screen."""
    shown = printable(step_id)
    assert shown.isprintable()
    assert len(shown) <= 10 * 121  # each character as its escape, at most


@pytest.mark.parametrize(
    ("step_id", "shown"),
    [
        ("step-1", "step-1"),
        ("schritt-ü", "schritt-ü"),
        ("a\nb\x1b[31m", "a\\nb\\x1b[31m"),
        ("\ud800", "\\ud800"),
        ("x" * 120, "x" * 120),
        ("x" * 121, "x" * 120 + "…"),
    ],
)
def test_a_step_id_stays_readable(step_id: str, shown: str) -> None:
    """Printable characters stay, other characters are escaped, and a long step id is cut."""
    assert printable(step_id) == shown


def test_an_error_is_logged_by_type_and_place_without_its_message() -> None:
    """An error's message may hold a key or a header; a maintainer needs the type and the place."""

    def fail() -> None:
        raise ValueError("sekret")

    try:
        fail()
    except ValueError as error:
        text = where(error)
    assert text.startswith("ValueError <- test_log.py:")
    assert " fail <- test_log.py:" in text
    assert "sekret" not in text


def test_an_error_that_was_never_raised_has_no_place() -> None:
    """An error without a traceback is logged by its type alone."""
    assert where(KeyError("sekret")) == "KeyError"


def test_ctrl_c_in_a_log_filter_is_raised() -> None:
    """When shutdown() delivers on the application's own thread, Ctrl-C may interrupt it."""

    def interrupt(_: logging.LogRecord) -> bool:
        raise KeyboardInterrupt

    logger = logging.getLogger("otel_step_hook")
    logger.addFilter(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            log_safely(logging.ERROR, "a line")
    finally:
        logger.removeFilter(interrupt)


def test_an_error_is_shown_where_the_log_is_closed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It goes to the process's stderr, unlike warnings; while one stream is open, nothing goes there."""
    closed, opened = io.StringIO(), io.StringIO()
    closed.close()
    monkeypatch.setattr(logging.getLogger("otel_step_hook"), "propagate", False)
    monkeypatch.setattr(logging, "lastResort", None)
    monkeypatch.setattr(logging.getLogger("otel_step_hook"), "handlers", [logging.StreamHandler(closed)])
    monkeypatch.setattr(logging, "raiseExceptions", False)
    log_safely(logging.ERROR, "%d steps", 3)
    log_safely(logging.WARNING, "a warning")
    logging.getLogger("otel_step_hook").addHandler(logging.StreamHandler(opened))
    log_safely(logging.ERROR, "another error")
    assert (capfd.readouterr().err, opened.getvalue()) == ("3 steps\n", "another error\n")


def test_a_process_without_any_handler_shows_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An application that has removed every handler, that of last resort included, does not want to see lines."""
    monkeypatch.setattr(logging.getLogger("otel_step_hook"), "propagate", False)
    monkeypatch.setattr(logging, "lastResort", None)
    log_safely(logging.ERROR, "an error")
    assert "an error" not in capfd.readouterr().err


# Lines with fields


class Made:
    """Makes a line, and counts how often."""

    def __init__(self) -> None:
        self.texts = self.fields = 0

    def line(self) -> Line:
        return Line(self._text, self._fields, {"shared": "value"})

    def _text(self) -> str:
        self.texts += 1
        return "slow"

    def _fields(self) -> Fields:
        self.fields += 1
        return {"own": 1, "shared": "value"}


def test_a_line_is_made_when_it_is_logged(
    limited_log: RateLimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a thousand lines of one kind, the texts of the first and of the count are made, and the first's fields."""
    made = Made()
    for _ in range(1000):
        limited_log.log(logging.WARNING, "slow", made.line())
    assert (made.texts, made.fields) == (1, 1)
    clock.advance(EVERY)
    assert (made.texts, made.fields) == (2, 1)
    first, count = caplog.records
    assert (vars(first)["own"], vars(first)["shared"]) == (1, "value")
    assert (count.message, vars(count)["shared"], "own" in vars(count)) == (
        "999 more like this: slow",
        "value",
        False,
    )


def test_lines_beyond_the_limit_share_nothing(
    limited_log: RateLimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The count of lines of several kinds has no fields: they may be about several endpoints."""
    for number in range(2 * KINDS):
        limited_log.log(logging.ERROR, number, Made().line())
    caplog.clear()
    clock.advance(EVERY)
    (count,) = caplog.records
    assert "shared" not in vars(count)
