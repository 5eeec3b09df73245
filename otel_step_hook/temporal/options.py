"""How the activity is retried: by the delays of our own policy, which it gives to Temporal with each failure."""

from datetime import timedelta

from temporalio.common import RetryPolicy

# What Temporal would do where an attempt has no result, because its worker was killed, or stood still.
_INITIAL_BACKOFF = timedelta(seconds=1)
_MAX_BACKOFF = timedelta(hours=1)


def retry_policy() -> RetryPolicy:
    """Return Temporal's policy for attempts without a result; those with one have a delay of their own.

    They are limited by the schedule-to-close timeout, and not by their number.
    """
    return RetryPolicy(initial_interval=_INITIAL_BACKOFF, backoff_coefficient=2.0, maximum_interval=_MAX_BACKOFF)
