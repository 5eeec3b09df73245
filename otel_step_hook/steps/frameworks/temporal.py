"""Temporal: a step is an activity, however many attempts it takes."""

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

_LONGEST = 100  # Temporal's default for the longest interval between attempts, in initial intervals


def outcome(span: StartedSpan, exception: BaseException | None) -> Outcome | Verdict | None:
    """Return not terminal for an attempt of an activity that will be followed by another attempt.

    A cancellation may end only this attempt: it has timed out, or the worker stops. If there is no other attempt, the
    activity has failed. The span does not have the reason (temporalio/sdk-python#1047), so Temporal's SDK is asked.
    """
    try:
        return _outcome(span, exception)
    except Exception:  # noqa: BLE001 -- an untested release may raise; then the general rules decide
        return None


def _outcome(span: StartedSpan, exception: BaseException | None) -> Outcome | Verdict | None:
    activity = sys.modules.get("temporalio.activity")
    if exception is None or activity is None or not getattr(activity, "in_activity", bool)():
        return None
    details, info = getattr(activity, "cancellation_details", lambda: None)(), activity.info()
    if details is not None and details.cancel_requested:
        return None  # an activity that was asked to cancel is not tried again
    if not is_cancellation(exception):
        return NOT_TERMINAL if _is_retried(info, exception, span) else None
    if details is None or not _ends_attempt_only(details, info, span):
        return None
    return NOT_TERMINAL if details.reset or _is_retried(info, exception, span) else Outcome.FAILED


def _ends_attempt_only(details: Any, info: Any, span: StartedSpan) -> bool:
    """Whether the cancellation ends this attempt only, and not the activity."""
    if details.not_found:
        return _has_timed_out(info, span)
    return bool(details.timed_out or details.worker_shutdown or details.paused or details.reset)


def _has_timed_out(info: Any, span: StartedSpan) -> bool:
    """Whether the server has let this attempt time out: it only reports that it does not know the attempt any more."""
    limits = (
        info.started_time + info.start_to_close_timeout if info.start_to_close_timeout else None,
        info.scheduled_time + info.schedule_to_close_timeout if info.schedule_to_close_timeout else None,
    )
    return any(limit is not None and _end(span) >= limit for limit in limits)


def _is_retried(info: Any, exception: BaseException, span: StartedSpan) -> bool:
    """Whether the server will make another attempt, by the rules of its retry policies."""
    policy = getattr(info, "retry_policy", None)
    # Temporal reads only its own exception: another one may have attributes of the same names.
    exceptions = sys.modules["temporalio.exceptions"]
    application_error = exception if isinstance(exception, exceptions.ApplicationError) else None
    if policy is None or (application_error and application_error.non_retryable):  # old servers and SDKs have None
        return False
    kind = application_error.type if application_error else type(exception).__name__
    if kind in (policy.non_retryable_error_types or ()):
        return False
    if policy.maximum_attempts and info.attempt >= policy.maximum_attempts:
        return False
    if not info.schedule_to_close_timeout:
        return True
    delay = (application_error and application_error.next_retry_delay) or _interval(policy, info.attempt)
    return bool(_end(span) + delay < info.scheduled_time + info.schedule_to_close_timeout)


def _end(span: StartedSpan) -> datetime:
    return datetime.fromtimestamp(span.end_time / 1e9, UTC)


def _interval(policy: Any, attempt: int) -> timedelta:
    limit = (policy.maximum_interval or policy.initial_interval * _LONGEST).total_seconds()
    growth = policy.backoff_coefficient ** min(attempt - 1, 100)  # larger exponents would overflow
    return timedelta(seconds=min(limit, policy.initial_interval.total_seconds() * growth))


PROFILES = (
    FrameworkProfile(
        name="temporal",
        required_attributes=("temporalActivityID",),  # without scopes: the application may supply the tracer
        # Not our own activity: its webhook would be followed by one about itself, and so on.
        is_step=both(
            has_attribute("temporalActivityID"), name_matches("RunActivity:(?!send_step_complete_webhook$).*")
        ),
        step_id=joined_attributes("temporalRunID", "temporalActivityID"),
        outcome=outcome,
    ),
)
