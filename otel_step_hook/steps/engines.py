"""What the workflow engines in this process say of the code that is running now.

They are asked only where the application has imported them, and nothing of them is imported here.
"""

import sys
from datetime import UTC, datetime, timedelta
from types import ModuleType

from opentelemetry.sdk.trace import ReadableSpan

from otel_step_hook.steps.outcome import is_cancellation
from otel_step_hook.steps.rules import NOT_TERMINAL, Attributes, Verdict

_LONGEST = 100  # times the initial interval: Temporal's own limit where a policy names none


def is_replaying() -> bool:
    """Whether this is Temporal workflow code that runs again what has happened before."""
    workflow = sys.modules.get("temporalio.workflow")
    return workflow is not None and workflow.in_workflow() and workflow.unsafe.is_replaying()


def dbos_step() -> object:
    """The number of the DBOS step that is beginning, in its workflow; None outside of one."""
    dbos = getattr(sys.modules.get("dbos"), "DBOS", None)
    return getattr(dbos, "step_id", None)


def temporal_word(span: ReadableSpan, _: Attributes, exception: BaseException | None) -> Verdict | None:
    """Not terminal for the attempt of a Temporal activity after which there will be another."""
    activity = sys.modules.get("temporalio.activity")
    if exception is None or activity is None or not activity.in_activity():
        return None
    details = activity.cancellation_details() if is_cancellation(exception) else None
    if details is None:
        is_retried = not is_cancellation(exception) and _is_retried(activity, exception, span)
    elif details.cancel_requested or details.not_found:
        is_retried = False
    elif details.timed_out:
        is_retried = _is_retried(activity, exception, span)
    else:  # the worker stops, or somebody has paused or reset the activity
        is_retried = bool(details.worker_shutdown or details.paused or details.reset)
    return NOT_TERMINAL if is_retried else None


def _is_retried(activity: ModuleType, exception: BaseException, span: ReadableSpan) -> bool:
    """Whether the server will make another attempt, by the rules of its retry policies."""
    info = activity.info()
    policy = getattr(info, "retry_policy", None)
    if policy is None or getattr(exception, "non_retryable", False):  # None: an old server or SDK does not tell
        return False
    kind = getattr(exception, "type", None) or type(exception).__name__
    if kind in (policy.non_retryable_error_types or ()):
        return False
    if policy.maximum_attempts and info.attempt >= policy.maximum_attempts:
        return False
    if not info.schedule_to_close_timeout:
        return True
    delay = getattr(exception, "next_retry_delay", None) or _interval(policy, info.attempt)
    ended = datetime.fromtimestamp((span.end_time or 0) / 1e9, UTC)
    return bool(ended + delay < info.scheduled_time + info.schedule_to_close_timeout)


def _interval(policy: object, attempt: int) -> timedelta:
    initial, coefficient, longest = (
        getattr(policy, name) for name in ("initial_interval", "backoff_coefficient", "maximum_interval")
    )
    limit = (longest or initial * _LONGEST).total_seconds()
    # In floats, which overflow only after a thousand doublings; an attempt beyond the limit waits no longer anyway.
    return timedelta(seconds=min(limit, initial.total_seconds() * coefficient ** min(attempt - 1, 100)))
