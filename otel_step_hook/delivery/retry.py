"""The result of an attempt, what follows from it, and how long to wait before the next attempt. Pure."""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Literal, Self

from otel_step_hook.delivery.model import Delivery, Result

_SUCCESS = range(200, 300)
_GONE = 410
_OVERLOADED = frozenset({408, 425, 429})  # and all from 500 on: the endpoint is down or overloaded
_SERVER_ERROR = 500

_DELAY_SECONDS = re.compile(r"[0-9]{1,10}")  # up to 317 years; `int` alone would take "+5", "1_000" and "١٢٠"
_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_DAY = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LONG_DAY = "(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_TIME = "[0-9]{2}:[0-9]{2}:[0-9]{2}"
_HTTP_DATE = re.compile(
    f"{_DAY}, [0-9]{{2}} {_MONTH} [0-9]{{4}} {_TIME} GMT"  # IMF-fixdate
    f"|{_LONG_DAY}, [0-9]{{2}}-{_MONTH}-[0-9]{{2}} {_TIME} GMT"  # RFC 850
    f"|{_DAY} {_MONTH} [0-9 ][0-9] {_TIME} [0-9]{{4}}"  # asctime
)


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """The result of one attempt.

    *error_type* is None when the receiver has accepted the event; else it is the status code as text, "timeout", or
    the class name of an exception: a bounded set, fit for a metric's label. A *status_code* that contradicts it
    raises ValueError.
    *retry_after* is in seconds. *directive* is the answer's `webhook-delivery` header; "disable" asks for no
    further events, even with a 2xx. *is_stale*: a kept-alive connection ended before the first byte of an
    answer, so the request is sent again once, at once. *is_hopeless*: no attempt of this process can succeed; a
    store that outlives it keeps the delivery for another one. *has_answered*: bytes have arrived, and no status could
    be read in them. *peer* is the address and port that was connected to. *detail* is what OpenSSL says of a failure of
    TLS. *location* is where a redirect leads, and *excerpt* the start of the answer's body; both may echo secrets and
    are not in the repr.
    """

    status_code: int | None = None
    error_type: str | None = None
    retry_after: float | None = None
    directive: Literal["", "abort-message", "disable"] = ""
    is_stale: bool = False
    is_hopeless: bool = False
    has_answered: bool = False
    peer: tuple[str, int] | None = None
    detail: str = ""
    location: str = field(default="", repr=False)
    excerpt: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        if self.status_code is not None and self.is_success != (self.status_code in _SUCCESS):
            raise ValueError(
                f"an AttemptResult has status_code={self.status_code} and error_type={self.error_type!r}; "
                "expected no error_type with a 2xx, and one with any other status"
            )

    @classmethod
    def of_answer(
        cls,
        status: int,
        header: Callable[[str], str | None],
        *,
        now: float,
        peer: tuple[str, int] | None = None,
        excerpt: bytes = b"",
    ) -> Self:
        """Return the result of an HTTP answer at *now* (unix seconds); *header* returns a header's value or None."""
        directive = (header("webhook-delivery") or "").strip().lower()
        return cls(
            status_code=status,
            error_type=None if status in _SUCCESS else str(status),
            retry_after=parse_retry_after(header("retry-after"), now=now),
            directive="disable" if directive == "disable" else "abort-message" if directive == "abort-message" else "",
            peer=peer,
            location=header("location") or "",
            excerpt=excerpt,
        )

    @classmethod
    def of_status(cls, status: int, *, peer: tuple[str, int] | None) -> Self:
        """Return the result of an answer of which nothing but the status could be read."""
        return cls(status_code=status, error_type=None if status in _SUCCESS else str(status), peer=peer)

    @property
    def is_success(self) -> bool:
        """Whether the receiver has accepted the event."""
        return self.error_type is None

    @property
    def is_final(self) -> bool:
        """Whether the receiver has refused the event for good: by a 410, or by a directive without a 2xx."""
        return not self.is_success and (self.status_code == _GONE or self.directive != "")

    @property
    def is_outage(self) -> bool:
        """Whether the result shows that the endpoint is down or overloaded, for all events."""
        status = self.status_code
        if status is None and self.directive:  # another system than the receiver refuses this one delivery
            return False
        return not self.is_success and (status is None or status >= _SERVER_ERROR or status in _OVERLOADED)


def is_expected(error_type: str) -> bool:
    """Whether *error_type* is a timeout or a status: an everyday failure, which is logged as a warning."""
    return error_type == "timeout" or error_type.isdigit()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to try again, and when to give up. All fields are in seconds, except the multiplier."""

    initial_backoff: float
    max_backoff: float
    backoff_multiplier: float
    give_up_after: float

    def next_delay(
        self,
        attempt: int,
        *,
        elapsed: float,
        retry_after: float | None = None,
        rand: Callable[[], float] = random.random,
    ) -> float | None:
        """Return the seconds to wait after failed *attempt* (counted from 1), or None to give up.

        Half of the backoff is fixed, and *rand* (0 to 1) chooses the other half, so that senders which failed
        together do not return together. The wait is at least the receiver's *retry_after*, of which at most
        `max_backoff` counts. None when the wait would end `give_up_after` seconds or more after the step's end,
        which was *elapsed* seconds ago.
        """
        delay = max(self.backoff(attempt, rand=rand), min(retry_after or 0.0, self.max_backoff))
        return delay if elapsed + delay < self.give_up_after else None

    def backoff(self, attempt: int, *, rand: Callable[[], float] = random.random) -> float:
        """Return the seconds to wait after failed *attempt*: one half is fixed, *rand* chooses the other."""
        try:
            grown = self.initial_backoff * float(self.backoff_multiplier) ** (attempt - 1)
        except OverflowError:  # more than a float holds
            grown = self.max_backoff if self.initial_backoff else 0.0
        return min(grown, self.max_backoff) * (0.5 + rand() / 2)


@dataclass(frozen=True, slots=True)
class Finish:
    """The delivery ends with *result*; *error_type* is why it is discarded."""

    result: Result
    error_type: str | None = None


@dataclass(frozen=True, slots=True)
class RetryIn:
    """The next attempt is due after *delay* seconds."""

    delay: float


def decide(
    delivery: Delivery,
    result: AttemptResult,
    policy: RetryPolicy,
    *,
    elapsed: float,
    left: float,
    rand: Callable[[], float] = random.random,
) -> Finish | RetryIn:
    """Return what follows from the *result* of an attempt, *elapsed* seconds after the step's end.

    *left* is the number of seconds until the process stops: infinite while no stop is planned, and for a store that
    outlives the process. A success without a status is a handover: another system than the receiver has accepted it.
    """
    if result.error_type is None:
        return Finish("handed_over" if result.status_code is None else "delivered")
    if result.is_final:
        return Finish("discarded", result.error_type)
    delay = policy.next_delay(delivery.attempts, elapsed=elapsed, retry_after=result.retry_after, rand=rand)
    if delay is None:
        return Finish("discarded", result.error_type)
    return Finish("discarded", "shutdown") if delay >= left else RetryIn(delay)


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Return the seconds from *now* (unix) that a `Retry-After` header asks to wait; None if it is missing or invalid.

    As strict as RFC 9110 10.2.3: digits, or a date in one of its three forms, always in UTC. A date in the past
    is 0.0. Never raises. The only bound is 10 digits: the caller limits the wait.
    """
    text = (value or "").strip(" \t")
    if _DELAY_SECONDS.fullmatch(text):
        return float(text)
    if not _HTTP_DATE.fullmatch(text):
        return None
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:  # the 31st of February, 25 o'clock
        return None
    return max(0.0, moment.replace(tzinfo=UTC).timestamp() - now)  # asctime has no zone


def error_type_of(error: Exception) -> str:
    """Return ``timeout``, or the name of the most specific cause: ``ConnectionRefusedError``, not ``ConnectError``."""
    names = [type(error).__name__]
    for cause in causes_of(error):
        if isinstance(cause, TimeoutError):  # also the kernel's, and that of one of several addresses
            return "timeout"
        if isinstance(cause, OSError) and type(cause) is not OSError:
            names.append(type(cause).__name__)
    return names[-1]


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield *error* and the errors below it: its cause, or its context, which httpcore's ``from None`` leaves."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
