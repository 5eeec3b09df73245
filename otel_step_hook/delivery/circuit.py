"""The circuit: owns how many attempts an endpoint that is down is worth."""

import math
import random
from collections.abc import Callable

from otel_step_hook.delivery.retry import AttemptResult, RetryPolicy

_FAILURES = 10  # in a row, of whatever deliveries: more than the attempts that happen to be in flight in a restart
_LONGEST = 5.0  # seconds between two probes: how late an endpoint is found to be up again


class Circuit:
    """Opens after failures in a row that say that the endpoint is down; then one attempt at a time is a probe.

    Probes begin after growing waits, of 5 seconds at most. The first attempt that finds the endpoint up closes it.
    """

    def __init__(self, policy: RetryPolicy, *, rand: Callable[[], float] = random.random) -> None:
        self._policy = policy
        self._rand = rand
        self._failures = 0
        self._next_probe = -math.inf  # monotonic seconds

    @property
    def is_open(self) -> bool:
        """Whether nothing but probes is sent."""
        return self._failures >= _FAILURES

    def attempts_allowed(self, in_flight: int, *, concurrency: int, now: float) -> int:
        """How many attempts may begin at the monotonic time *now*, beside those *in_flight*."""
        if not self.is_open:
            return concurrency - in_flight
        return int(in_flight == 0 and now >= self._next_probe)

    def wait(self, now: float) -> float:
        """Seconds until the next probe may begin; 0 while the circuit is closed."""
        return max(0.0, self._next_probe - now) if self.is_open else 0.0

    def record(self, result: AttemptResult, *, now: float) -> None:
        """Count an attempt that ended at the monotonic time *now*."""
        if not result.is_outage:
            self._failures = 0
            return
        self._failures += 1
        if self.is_open:
            backoff = self._policy.backoff(self._failures - _FAILURES + 1, rand=self._rand)
            self._next_probe = now + min(backoff, _LONGEST)
