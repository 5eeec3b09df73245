"""What is logged, and how often."""

import logging
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_step_hook.delivery.log import EVERY, KINDS, RateLimitedLog, log_safely, printable, where


class Clock:
    """A clock that stands still until it is told, and does then what has been scheduled."""

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
def trouble(clock: Clock) -> RateLimitedLog:
    """What tells of trouble by *clock*."""
    told = RateLimitedLog(clock)
    told.use_timer(clock.schedule)
    return told


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """Level and message of all lines so far; forgotten after that."""
    told = [(record.levelno, record.message) for record in caplog.records]
    caplog.clear()
    return told


def test_trouble_is_told_at_once_and_then_once_a_minute(
    trouble: RateLimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The first of a kind at once; what repeats is counted, and told with the latest message a minute later."""
    for number in range(5):
        trouble.log(logging.WARNING, "slow", f"slow {number}")
        clock.advance(1.0)
    assert lines(caplog) == [(logging.WARNING, "slow 0")]
    clock.advance(EVERY - 5.0)
    assert lines(caplog) == [(logging.WARNING, "4 more like this: slow 4")]
    clock.advance(10 * EVERY)
    assert lines(caplog) == []
    assert clock.scheduled == []


def test_trouble_that_goes_on_is_told_every_minute(
    trouble: RateLimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A receiver that is down for an hour is about sixty lines, and every failure is in a count."""
    for number in range(3600):
        trouble.log(logging.WARNING, "down", f"down {number}")
        clock.advance(1.0)
    clock.advance(EVERY)
    told = lines(caplog)
    assert 59 <= len(told) <= 62
    counted = [int(message.split()[0]) for _, message in told if "more like this" in message]
    assert sum(counted) + len(told) - len(counted) == 3600


def test_trouble_after_a_quiet_minute_is_told_at_once(
    trouble: RateLimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """What has not happened for a minute is news."""
    trouble.log(logging.WARNING, "slow", "first")
    clock.advance(EVERY)
    trouble.log(logging.WARNING, "slow", "second")
    assert [message for _, message in lines(caplog)] == ["first", "second"]


def test_what_has_happened_many_times_is_told_once_and_counted(
    trouble: RateLimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A thousand at once are one line now and one count later, as if they had come one by one."""
    trouble.log(logging.ERROR, "dropped", "first", 1000)
    trouble.log(logging.ERROR, "dropped", "second", 2)
    assert lines(caplog) == [(logging.ERROR, "first")]
    clock.advance(EVERY)
    assert lines(caplog) == [(logging.ERROR, "1001 more like this: second")]


def test_each_kind_is_told_by_itself(trouble: RateLimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """One kind of trouble does not hide another; each count has its own minute."""
    for kind in ("slow", "down"):
        trouble.log(logging.WARNING, kind, f"{kind} first")
        trouble.log(logging.ERROR, kind, f"{kind} again")
        clock.advance(20.0)
    assert [message for _, message in lines(caplog)] == ["slow first", "down first"]
    clock.advance(EVERY - 40.0)
    assert lines(caplog) == [(logging.ERROR, "1 more like this: slow again")]
    clock.advance(20.0)
    assert lines(caplog) == [(logging.ERROR, "1 more like this: down again")]


def test_at_the_end_all_counts_are_told(trouble: RateLimitedLog, caplog: pytest.LogCaptureFixture) -> None:
    """A process that ends within the minute still says how often."""
    trouble.log(logging.WARNING, "slow", "first")
    trouble.log(logging.WARNING, "slow", "second")
    trouble.log_counts(all_of_them=True)
    trouble.log_counts(all_of_them=True)
    assert [message for _, message in lines(caplog)] == ["first", "1 more like this: second"]


def test_without_a_schedule_counts_are_kept_until_somebody_asks(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Between two loops nothing is scheduled, and nothing is forgotten."""
    trouble = RateLimitedLog(clock)
    for _ in range(3):
        trouble.log(logging.WARNING, "slow", "slow")
    trouble.log_counts()
    assert len(lines(caplog)) == 1
    clock.advance(EVERY)
    trouble.use_timer(clock.schedule)  # the next loop
    clock.advance(0.0)
    assert lines(caplog) == [(logging.WARNING, "2 more like this: slow")]


def test_an_outage_has_one_timer(trouble: RateLimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Three kinds that go on for an hour, and each is told every minute: by one timer in all."""
    kinds = ("refused", "discarded", "queue full")
    for _ in range(3600):
        for kind in kinds:
            trouble.log(logging.ERROR, kind, kind)
        assert len(clock.scheduled) <= 1
        clock.advance(1.0)
    clock.advance(EVERY)
    told = [message for _, message in lines(caplog)]
    for kind in kinds:
        counts = [int(message.split()[0]) for message in told if message.endswith(f" more like this: {kind}")]
        assert 59 <= len(counts) <= 61
        assert sum(counts) == 3599  # all but the first, which was told at once


def test_kinds_without_end(trouble: RateLimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody can fill the memory or the log with ever new kinds of trouble; what is quiet for a minute makes room."""
    for _ in range(3):
        for number in range(10 * KINDS):
            trouble.log(logging.ERROR, number, f"odd {number}")
        assert len(lines(caplog)) == KINDS
        clock.advance(EVERY)
        assert [message for _, message in lines(caplog)] == [f"{9 * KINDS} more like this: odd {10 * KINDS - 1}"]
        clock.advance(EVERY)


def test_a_percent_sign_is_a_percent_sign(trouble: RateLimitedLog, caplog: pytest.LogCaptureFixture) -> None:
    """A message is text, not a format."""
    trouble.log(logging.WARNING, "odd", "100 %s %(key)s")
    assert lines(caplog) == [(logging.WARNING, "100 %s %(key)s")]


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_what_a_handler_raises_is_swallowed(error: type[BaseException]) -> None:
    """A log handler of the application that raises, or exits, does not reach whoever logs."""

    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002 -- logging's signature
            raise error

    logger, handler = logging.getLogger("otel_step_hook"), Raising()
    logger.addHandler(handler)
    try:
        log_safely(logging.ERROR, "anything")
    finally:
        logger.removeHandler(handler)


def test_a_line_tells_where_it_was_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The record's file and function are those of whoever had something to say."""
    log_safely(logging.ERROR, "anything")
    assert caplog.records[0].funcName == "test_a_line_tells_where_it_was_logged"


# Step ids and errors in a line


@given(st.text(st.characters(), max_size=300))
def test_any_step_id_is_one_line_of_limited_length(step_id: str) -> None:
    """No step id, however it is made, breaks a log into lines, colours a terminal, or fills the screen."""
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
    """What can be printed is, what cannot is escaped, what is too long is cut."""
    assert printable(step_id) == shown


def test_of_an_error_type_and_place_are_told_and_not_its_message() -> None:
    """Messages hold keys and headers; the place is what a maintainer needs."""

    def fail() -> None:
        raise ValueError("sekret")

    try:
        fail()
    except ValueError as error:
        told = where(error)
    assert told.startswith("ValueError <- test_log.py:")
    assert " fail <- test_log.py:" in told
    assert "sekret" not in told


def test_an_error_that_was_never_raised_has_no_place() -> None:
    """An error without a traceback is told by its type."""
    assert where(KeyError("sekret")) == "KeyError"


def test_ctrl_c_in_a_handler_gets_through() -> None:
    """Where shutdown() delivers on the application's own thread, its user may break it off."""

    def interrupt(_: logging.LogRecord) -> bool:
        raise KeyboardInterrupt

    logger = logging.getLogger("otel_step_hook")
    logger.addFilter(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            log_safely(logging.ERROR, "a line")
    finally:
        logger.removeFilter(interrupt)
