"""The circuit of an endpoint: owns how many attempts may begin while the endpoint is down."""

import math
import random
from collections.abc import Callable

from otel_step_hook.delivery.retry import AttemptResult, RetryPolicy

_FAILURES = 10  # in a row, over all deliveries: more than are in flight, by default, when the receiver restarts
_MAX_WAIT = 5.0  # seconds between two probes: how late an endpoint is found to be up again


class Circuit:
    """Opens after 10 failures in a row that show that the endpoint is down; then probes it, one attempt at a time.

    The wait before each probe grows, up to 5 seconds. The first attempt that finds the endpoint up closes the circuit.
    """

    def __init__(self, policy: RetryPolicy, *, rand: Callable[[], float] = random.random) -> None:
        self._policy = policy
        self._rand = rand
        self._failures = 0
        self._next_probe = -math.inf  # monotonic seconds

    @property
    def is_open(self) -> bool:
        """Whether the endpoint is down, and only probes are sent."""
        return self._failures >= _FAILURES

    def attempts_allowed(self, in_flight: int, *, concurrency: int, now: float) -> int:
        """Return how many attempts may begin at the monotonic time *now*, besides those *in_flight*."""
        if not self.is_open:
            return concurrency - in_flight
        return int(in_flight == 0 and now >= self._next_probe)

    def wait(self, now: float) -> float:
        """Return the seconds until the next probe may begin; 0 while the circuit is closed."""
        return max(0.0, self._next_probe - now) if self.is_open else 0.0

    def record(self, result: AttemptResult, *, now: float) -> None:
        """Count the *result* of an attempt that ended at the monotonic time *now*."""
        if not result.is_outage:
            self._failures = 0
            return
        self._failures += 1
        if self.is_open:
            backoff = self._policy.backoff(self._failures - _FAILURES + 1, rand=self._rand)
            self._next_probe = now + min(backoff, _MAX_WAIT)
