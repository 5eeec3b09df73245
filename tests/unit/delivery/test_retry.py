import math
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_step_hook.delivery.retry import AttemptResult, RetryPolicy, is_expected, parse_retry_after

_NOW = datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC).timestamp()
_POLICY = RetryPolicy(initial_backoff=1.0, max_backoff=3600.0, backoff_multiplier=2.0, give_up_after=86400.0)


def _longest() -> float:
    return 1.0


def _shortest() -> float:
    return 0.0


# AttemptResult


@pytest.mark.parametrize("status", [200, 204, 299])
def test_a_2xx_is_a_success(status: int) -> None:
    """Any 2xx is a success, and neither final nor an outage."""
    result = AttemptResult(status_code=status)
    assert (result.is_success, result.is_final, result.is_outage) == (True, False, False)


@pytest.mark.parametrize("status", [101, 199, 300, 307, 400, 404, 429, 503, 999])
def test_any_other_status_is_an_expected_failure_to_be_retried(status: int) -> None:
    """Any status but a 2xx and a 410, a redirect included, is an expected failure that is retried."""
    result = AttemptResult(status_code=status, error_type=str(status))
    assert (result.is_success, result.is_final, is_expected(str(result.error_type))) == (False, False, True)


def test_a_timeout_is_an_expected_failure() -> None:
    """A timeout is an expected failure that is retried."""
    result = AttemptResult(error_type="timeout")
    assert (result.is_success, result.is_final, is_expected(str(result.error_type))) == (False, False, True)


def test_an_exception_is_an_error() -> None:
    """A failure that is neither a status nor a timeout is unexpected, and is retried."""
    result = AttemptResult(error_type="ConnectionRefusedError", is_stale=True)
    assert (result.is_success, result.is_final, is_expected(str(result.error_type))) == (False, False, False)


def test_gone_is_final() -> None:
    """A delivery that is answered with 410 is not retried."""
    assert AttemptResult(status_code=410, error_type="410").is_final


@pytest.mark.parametrize("directive", ["abort-message", "disable"])
def test_a_directive_makes_a_failure_final(directive: Literal["abort-message", "disable"]) -> None:
    """A delivery is not retried after a failure with a directive."""
    assert AttemptResult(status_code=500, error_type="500", directive=directive).is_final


@pytest.mark.parametrize("directive", ["abort-message", "disable"])
def test_a_directive_leaves_a_success_a_success(directive: Literal["abort-message", "disable"]) -> None:
    """A 2xx is a success with any directive, which is about the next events."""
    result = AttemptResult(status_code=200, directive=directive)
    assert (result.is_success, result.is_final, result.directive) == (True, False, directive)


@pytest.mark.parametrize(("status", "error_type"), [(503, None), (302, None), (204, "timeout")])
def test_a_result_that_contradicts_itself_is_refused(status: int | None, error_type: str | None) -> None:
    """A 2xx with an error type, or another status without one, raises ValueError."""
    with pytest.raises(ValueError, match=r"error_type=.*; expected no error_type with a 2xx, and one with any other"):
        AttemptResult(status_code=status, error_type=error_type)


def test_the_answer_is_not_in_the_repr() -> None:
    """The repr of a result does not show the answer, so that a receiver that echoes the key leaks no secret."""
    assert "sekret" not in repr(AttemptResult(status_code=200, excerpt=b"authorization: Bearer sekret"))
    assert "sekret" not in repr(AttemptResult(status_code=302, error_type="302", location="https://sekret.test/"))


def test_a_result_is_an_immutable_value() -> None:
    """Retry-After, peer and excerpt are as they were given, and cannot be changed."""
    result = AttemptResult(503, "503", retry_after=2.5, peer=("::1", 443), excerpt=b"busy")
    assert (result.retry_after, result.peer, result.excerpt) == (2.5, ("::1", 443), b"busy")
    with pytest.raises(FrozenInstanceError):
        result.retry_after = 0.0  # type: ignore[misc]  # -- the assignment is what is tested


# RetryPolicy


@pytest.mark.parametrize(("attempt", "longest"), [(1, 1.0), (2, 2.0), (3, 4.0), (12, 2048.0), (13, 3600.0)])
def test_the_backoff_grows_up_to_its_maximum(attempt: int, longest: float) -> None:
    """Each backoff is the multiplier times the last, up to the maximum; a wait is at least half of its backoff."""
    assert _POLICY.next_delay(attempt, elapsed=0.0, rand=_longest) == longest
    assert _POLICY.next_delay(attempt, elapsed=0.0, rand=_shortest) == longest / 2


def test_waits_are_jittered_by_default() -> None:
    """Two deliveries that failed together are not retried together."""
    assert len({_POLICY.next_delay(9, elapsed=0.0) for _ in range(10)}) > 1


@pytest.mark.parametrize(
    ("hint", "delay"), [(None, 4.0), (0.0, 4.0), (3.9, 4.0), (5.5, 5.5), (3600.0, 3600.0), (1e10, 3600.0)]
)
def test_a_retry_after_delays_but_never_hastens(hint: float | None, delay: float) -> None:
    """A Retry-After counts where it is longer than the backoff, and up to max_backoff."""
    assert _POLICY.next_delay(3, elapsed=0.0, retry_after=hint, rand=_longest) == delay


@pytest.mark.parametrize(("elapsed", "delay"), [(0.0, 8.0), (21.9, 8.0), (22.0, None), (22.1, None), (1e9, None)])
def test_no_delay_ends_too_late(elapsed: float, delay: float | None) -> None:
    """No delay ends at give_up_after or later: an attempt then would come too late."""
    policy = RetryPolicy(initial_backoff=8.0, max_backoff=60.0, backoff_multiplier=2.0, give_up_after=30.0)
    assert policy.next_delay(1, elapsed=elapsed, rand=_longest) == delay


def test_a_retry_after_beyond_the_end_gives_up_at_once() -> None:
    """If the receiver asks for more time than is left, there is no further attempt."""
    policy = RetryPolicy(initial_backoff=1.0, max_backoff=3600.0, backoff_multiplier=2.0, give_up_after=30.0)
    assert policy.next_delay(1, elapsed=1.0, retry_after=120.0) is None


@pytest.mark.parametrize("attempt", [1, 2, 10**6, 10**400])
def test_a_backoff_of_zero_stays_zero(attempt: int) -> None:
    """An initial backoff of zero never grows, not even where its power overflows a float."""
    policy = RetryPolicy(initial_backoff=0.0, max_backoff=60.0, backoff_multiplier=2.0, give_up_after=30.0)
    assert policy.next_delay(attempt, elapsed=0.0) == 0.0


@given(
    policy=st.builds(RetryPolicy, st.floats(1e-3, 1e6), st.floats(1e-3, 1e6), st.floats(1.0, 1e300), st.just(math.inf)),
    attempt=st.integers(1, 10**9),
    hint=st.none() | st.floats(0.0, 1e300),
    jitter=st.floats(0.0, 1.0),
)
def test_every_delay_keeps_its_bounds(policy: RetryPolicy, attempt: int, hint: float | None, jitter: float) -> None:
    """No delay overflows, is above max_backoff, below half the backoff, or below a Retry-After in bounds."""
    delay = policy.next_delay(attempt, elapsed=0.0, retry_after=hint, rand=lambda: jitter)
    assert delay is not None
    assert min(policy.initial_backoff, policy.max_backoff) / 2 <= delay <= policy.max_backoff
    assert delay >= min(hint or 0.0, policy.max_backoff)


@given(attempt=st.integers(1, 100), elapsed=st.floats(0.0, 100.0), hint=st.none() | st.floats(0.0, 100.0))
def test_a_delay_ends_before_the_time_to_give_up(attempt: int, elapsed: float, hint: float | None) -> None:
    """After each delay there is time left."""
    policy = RetryPolicy(initial_backoff=1.0, max_backoff=60.0, backoff_multiplier=2.0, give_up_after=30.0)
    delay = policy.next_delay(attempt, elapsed=elapsed, retry_after=hint)
    assert delay is None or elapsed + delay < 30.0


# Retry-After


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0.0), ("120", 120.0), (" 120\t", 120.0), ("007", 7.0), ("9999999999", 9999999999.0)],
)
def test_retry_after_in_seconds(value: str, seconds: float) -> None:
    """Digits are a number of seconds."""
    assert parse_retry_after(value, now=_NOW) == seconds


@pytest.mark.parametrize(
    "value",
    ["Sun, 06 Nov 1994 08:51:37 GMT", "Sunday, 06-Nov-94 08:51:37 GMT", "Sun Nov  6 08:51:37 1994"],
    ids=["IMF-fixdate", "RFC 850", "asctime"],
)
def test_retry_after_as_a_date(value: str) -> None:
    """A date in each of its three formats is the number of seconds from now, and 0 once it has passed."""
    assert parse_retry_after(value, now=_NOW) == 120.0
    assert parse_retry_after(value, now=_NOW + 119.5) == 0.5
    assert parse_retry_after(value, now=_NOW + 120.0) == 0.0
    assert parse_retry_after(value, now=_NOW + 1e9) == 0.0


def test_a_retry_after_that_is_not_valid_is_ignored() -> None:
    """A value that RFC 9110 does not allow is parsed as None."""
    values: list[str | None] = [
        None,
        "",
        "-5",
        "+5",
        "1.5",
        "1_000",
        "1e3",
        "inf",
        "nan",
        "1e309",
        "\u0661\u0662\u0660",  # Arabic digits
        "\uff11\uff12\uff10",  # fullwidth digits
        "\u00a0120",
        "120\n",
        "1" * 11,
        "1" * 20,
        "1" * 5000,
        "120, 120",
        "soon",
        "Sun, 06 Nov 99999 08:49:37 GMT",
        "Sun, 31 Feb 2030 08:49:37 GMT",
        "Sun, 06 Nov 2030 25:00:00 GMT",
        "Sun, 06 Nov 2030 08:49:37 +0100",
        "Sun, 06 Nov 2030 08:49:37",
        "06 Nov 2030 08:49:37 GMT",
        "2030-11-06T08:49:37Z",
        "Sun, 06 Nov 2030 08:49:37 GMT, 120",
    ]
    read = {value: parse_retry_after(value, now=_NOW) for value in values}
    assert {value: seconds for value, seconds in read.items() if seconds is not None} == {}


_DATE_LIKE = st.from_regex(
    r"Sun, [0-9]{2} (Nov|Feb) [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT"
    r"|Sunday, [0-9]{2}-(Nov|Feb)-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT"
    r"|Sun (Nov|Feb) [0-9 ][0-9] [0-9]{2}:[0-9]{2}:[0-9]{2} [0-9]{4}",
    fullmatch=True,
)


@given(value=st.text() | st.text("0123456789+-_. einf", max_size=25) | _DATE_LIKE, now=st.floats(0, 1e11))
def test_any_header_is_a_finite_number_of_seconds_or_none(value: str, now: float) -> None:
    """Any text of a receiver is parsed without an exception."""
    seconds = parse_retry_after(value, now=now)
    assert seconds is None or (math.isfinite(seconds) and seconds >= 0.0)


@given(st.datetimes(datetime(2000, 1, 1), datetime(2068, 12, 31)), st.sampled_from([0, 1, 2]))  # noqa: DTZ001 -- made aware below
def test_the_three_forms_agree(naive: datetime, form: int) -> None:
    """A time means the same in each date format, whatever the time zone of this machine."""
    moment = naive.replace(microsecond=0, tzinfo=UTC)
    written = (
        moment.strftime("%a, %d %b %Y %H:%M:%S GMT"),
        moment.strftime("%A, %d-%b-%y %H:%M:%S GMT"),
        f"{moment:%a %b} {moment.day:2} {moment:%H:%M:%S %Y}",
    )
    assert parse_retry_after(written[form], now=0.0) == moment.timestamp()


def test_a_refusal_by_another_system_is_final_and_no_outage() -> None:
    """A system that the delivery was to be handed over to, and that will refuse it again, works."""
    refused = AttemptResult(error_type="INVALID_ARGUMENT", directive="abort-message")
    assert (refused.is_final, refused.is_outage) == (True, False)
