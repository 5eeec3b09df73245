"""What other threads have counted for the worker's thread to report: steps that were dropped, and faults."""

import itertools
import logging

from otel_step_hook.delivery.log import RateLimitedLog, where
from otel_step_hook.delivery.telemetry import Telemetry

_DROPPED = {
    "queue_full": "STEP_COMPLETE_MAX_QUEUE_SIZE events are waiting; the newest are dropped",
    "shutdown": "the step ended after shutdown()",
    "unreadable": "the span could not be read",
}


class EventCounter:
    """Counts from any thread, signal handler or finaliser, without a lock and in no more memory; read by one thread."""

    __slots__ = ("_count", "_detail", "_reads", "_taken", "has_new")

    def __init__(self) -> None:
        self._count = itertools.count()  # its next() is atomic, and the only way to read it
        self._reads = 0
        self._taken = 0
        self._detail = ""
        self.has_new = False

    def add(self, error: Exception | None = None) -> None:
        """Count one; of the first since `take` it is kept where *error* was raised."""
        if error is not None and not self._detail:
            self._detail = where(error)
        next(self._count)
        self.has_new = True

    def take(self) -> tuple[int, str]:
        """How many have come since the last time, and the place of the first of them."""
        self.has_new = False  # first: what comes in from now on sets it again
        detail, self._detail = self._detail, ""
        in_all = next(self._count) - self._reads
        self._reads += 1
        new, self._taken = in_all - self._taken, in_all
        return new, detail


class DropCounts:
    """Steps that were dropped, by reason, and faults that lost nothing. `drop` and `add_fault`: from anywhere."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint  # its name
        self._drops = {reason: EventCounter() for reason in _DROPPED}
        self._faults = EventCounter()

    def drop(self, reason: str, error: Exception | None = None) -> None:
        """Count a step that is lost, perhaps because of *error*."""
        self._drops[reason].add(error)

    def add_fault(self, error: Exception) -> None:
        """Count *error*, which lost nothing."""
        self._faults.add(error)

    def has_new(self) -> bool:
        """Whether anything has not been reported. From any thread."""
        return self._faults.has_new or any(drops.has_new for drops in self._drops.values())

    def report(self, telemetry: Telemetry, log: RateLimitedLog) -> None:
        """Record and log what is new, all at once: one by one, a fast application would leave no time for the rest."""
        if not self.has_new():
            return
        for reason, drops in self._drops.items():
            count, detail = drops.take()
            if count:
                telemetry.dropped(reason, count)
                message = f"dropped a step ({reason}, endpoint {self._endpoint}): {detail or _DROPPED[reason]}"
                log.log(logging.ERROR, ("dropped", reason), message, count)
        count, detail = self._faults.take()
        if count:
            log.log(logging.ERROR, "fault", f"a fault of otel-step-hook: {detail}", count)
