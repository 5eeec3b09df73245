"""Dropped steps, events in memory alone, and faults: other threads count them, the worker thread reports the counts."""

import itertools
import logging

from otel_step_hook.delivery.log import RateLimitedLog, where
from otel_step_hook.delivery.telemetry import Telemetry

_DROPPED = {
    "queue_full": "STEP_COMPLETE_MAX_QUEUE_SIZE events are waiting; the newest are dropped",
    "outbox_full": "STEP_COMPLETE_OUTBOX_MAX_ROWS deliveries are waiting, or journal and memory queue are full; the "
    "newest are dropped",
    "shutdown": "the step ended after shutdown()",
    "unreadable": "the span could not be read",
}


class EventCounter:
    """Counts events without a lock and in constant memory.

    `add` may be called from any thread, signal handler or finaliser, `take` from one thread.
    """

    __slots__ = ("_count", "_detail", "_reads", "_taken", "has_new")

    def __init__(self) -> None:
        self._count = itertools.count()  # its next() is atomic, and the only way to read it
        self._reads = 0
        self._taken = 0
        self._detail = ""
        self.has_new = False

    def add(self, error: Exception | None = None) -> None:
        """Count an event; keep where *error* was raised, for the first event since `take`."""
        if error is not None and not self._detail:
            self._detail = where(error)
        next(self._count)
        self.has_new = True

    def take(self) -> tuple[int, str]:
        """Return how many events were added since the last call, and where the error of the first one was raised."""
        self.has_new = False  # first: an event that is added from now on sets it again
        detail, self._detail = self._detail, ""
        total = next(self._count) - self._reads
        self._reads += 1
        new, self._taken = total - self._taken, total
        return new, detail


class DropCounts:
    """Counts dropped steps by reason, events that an outbox has in memory alone, and faults that lost no step.

    `drop`, `add_in_memory` and `add_fault` may be called from any thread, signal handler or finaliser.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint  # its name
        self._drops = {reason: EventCounter() for reason in _DROPPED}
        self._in_memory = EventCounter()
        self._faults = EventCounter()

    def drop(self, reason: str, error: Exception | None = None) -> None:
        """Count a step that is dropped for *reason*, perhaps because of *error*."""
        self._drops[reason].add(error)

    def add_in_memory(self) -> None:
        """Count an event that an outbox has put into memory alone: for the moment, a kill would lose it."""
        self._in_memory.add()

    def add_fault(self, error: Exception) -> None:
        """Count *error*, which lost no step."""
        self._faults.add(error)

    def has_new(self) -> bool:
        """Whether a count has not been reported yet. From any thread."""
        return self._faults.has_new or self._in_memory.has_new or any(drops.has_new for drops in self._drops.values())

    def report(self, telemetry: Telemetry, log: RateLimitedLog) -> None:
        """Record and log the new counts.

        A fast application may drop steps faster than they could be reported one by one.
        """
        if not self.has_new():
            return
        for reason, drops in self._drops.items():
            count, detail = drops.take()
            if count:
                telemetry.dropped(reason, count)
                message = f"dropped a step ({reason}, endpoint {self._endpoint}): {detail or _DROPPED[reason]}"
                log.log(logging.ERROR, ("dropped", reason), message, count)
        count, _ = self._in_memory.take()
        if count:
            telemetry.put_in_memory(count)
        count, detail = self._faults.take()
        if count:
            log.log(logging.ERROR, "fault", f"a fault of otel-step-hook: {detail}", count)
