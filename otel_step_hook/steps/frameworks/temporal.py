"""Temporal's activities: a step is an activity, whatever number of attempts it takes."""

import sys
from datetime import UTC, datetime, timedelta
from typing import Any

from otel_step_hook.steps.event import Outcome
from otel_step_hook.steps.outcome import is_cancellation
from otel_step_hook.steps.profile import (
    NOT_TERMINAL,
    FrameworkProfile,
    Verdict,
    both,
    has_attribute,
    joined_attributes,
    name_matches,
)
from otel_step_hook.steps.spans import StartedSpan

_LONGEST = 100  # times the initial interval: Temporal's own limit where a policy names none


def outcome(span: StartedSpan, exception: BaseException | None) -> Outcome | Verdict | None:
    """Not terminal for the attempt of a Temporal activity after which there will be another.

    What looks like a cancellation and is none is the end of this attempt alone: it has run out of
    time, or the worker stops. Without another attempt, the activity has failed.
    """
    try:
        return _outcome(span, exception)
    except Exception:  # noqa: BLE001 -- of a release that was never tried; the general rules decide
        return None


def _outcome(span: StartedSpan, exception: BaseException | None) -> Outcome | Verdict | None:
    activity = sys.modules.get("temporalio.activity")
    if exception is None or activity is None or not getattr(activity, "in_activity", bool)():
        return None
    details, info = getattr(activity, "cancellation_details", lambda: None)(), activity.info()
    if details is not None and details.cancel_requested:
        return None  # whatever comes of it, nothing is tried again
    if not is_cancellation(exception):
        return NOT_TERMINAL if _is_retried(info, exception, span) else None
    if details is None or not _is_taken_away(details, info, span):
        return None
    return NOT_TERMINAL if details.reset or _is_retried(info, exception, span) else Outcome.FAILED


def _is_taken_away(details: Any, info: Any, span: StartedSpan) -> bool:
    """Whether this attempt alone has been ended, and not the activity."""
    if details.not_found:
        return _has_timed_out(info, span)
    return bool(details.timed_out or details.worker_shutdown or details.paused or details.reset)


def _has_timed_out(info: Any, span: StartedSpan) -> bool:
    """Whether the server has given this attempt up: it tells no more than that it does not know it any more."""
    limits = (
        info.started_time + info.start_to_close_timeout if info.start_to_close_timeout else None,
        info.scheduled_time + info.schedule_to_close_timeout if info.schedule_to_close_timeout else None,
    )
    return any(limit is not None and _end(span) >= limit for limit in limits)


def _is_retried(info: Any, exception: BaseException, span: StartedSpan) -> bool:
    """Whether the server will make another attempt, by the rules of its retry policies."""
    policy = getattr(info, "retry_policy", None)
    # Exceptions of others may have attributes of these names, which Temporal does not look at.
    temporals = exception if isinstance(exception, sys.modules["temporalio.exceptions"].ApplicationError) else None
    if policy is None or (temporals and temporals.non_retryable):  # None: an old server or SDK does not tell
        return False
    kind = temporals.type if temporals else type(exception).__name__
    if kind in (policy.non_retryable_error_types or ()):
        return False
    if policy.maximum_attempts and info.attempt >= policy.maximum_attempts:
        return False
    if not info.schedule_to_close_timeout:
        return True
    delay = (temporals and temporals.next_retry_delay) or _interval(policy, info.attempt)
    return bool(_end(span) + delay < info.scheduled_time + info.schedule_to_close_timeout)


def _end(span: StartedSpan) -> datetime:
    return datetime.fromtimestamp(span.end_time / 1e9, UTC)


def _interval(policy: Any, attempt: int) -> timedelta:
    limit = (policy.maximum_interval or policy.initial_interval * _LONGEST).total_seconds()
    growth = policy.backoff_coefficient ** min(attempt - 1, 100)  # more would only overflow: the limit is far below
    return timedelta(seconds=min(limit, policy.initial_interval.total_seconds() * growth))


PROFILES = (
    FrameworkProfile(
        name="temporal",
        required_attributes=("temporalActivityID",),  # the tracer, and with it the scope, may be the application's own
        is_step=both(has_attribute("temporalActivityID"), name_matches("RunActivity:.*")),
        step_id=joined_attributes("temporalRunID", "temporalActivityID"),
        outcome=outcome,
    ),
)
