"""The store in memory: owns the bounded queue between the application's threads and the worker."""

import heapq
import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from itertools import repeat

from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.model import Delivery, Pipeline, Result
from otel_step_hook.delivery.request import webhook_id
from otel_step_hook.delivery.store import Stored
from otel_step_hook.steps.event import StepEvent

_Put = tuple[int, StepEvent, Pipeline, float]
_LATE_AFTER = 1.0  # seconds that the oldest has waited, from which on the store is late
_MIN_SWEEP = 64  # entries of the heap that are not worth being swept


class MemoryStore:
    """A `Store` of at most *max_size* events, those in flight included. An event that finds it full is dropped.

    `put` costs the application a few appends: what can be computed later is computed on the worker's thread. What is
    put from anywhere goes into a ``deque``; ``queue.Queue`` and ``threading.Event`` would deadlock there.
    """

    def __init__(self, max_size: int, *, monotonic: Callable[[], float] = monotonic) -> None:
        self._monotonic = monotonic
        self._slots: deque[None] = deque(repeat(None, max_size))  # one for each event that may still come in
        self._numbers = itertools.count()  # its next() is atomic
        self._incoming: deque[_Put] = deque()
        # What follows is the worker's. Every delivery that is not finished, with its number, oldest first.
        self._unfinished: OrderedDict[Delivery, int] = OrderedDict()
        # Those of them that are not leased, each with the number of its one entry below that counts. `claim_older`
        # takes deliveries and leaves their entries, which are passed over.
        self._waiting: dict[Delivery, int] = {}
        self._never_tried: deque[Delivery] = deque()  # oldest first
        self._retries: list[tuple[float, int, Delivery]] = []  # a heap, by due time
        self._takes_newest = False

    def put(self, event: StepEvent, pipeline: Pipeline) -> Stored:
        """Take *event*, unless the store is full."""
        try:
            self._slots.pop()
        except IndexError:
            return Stored.FULL
        self._incoming.append((next(self._numbers), event, pipeline, self._monotonic()))
        return Stored.IN_MEMORY

    def mark(self) -> int:
        """A number above that of every event that was put before."""
        return next(self._numbers)

    def is_flushed(self, mark: int) -> bool:
        """Whether every event below *mark* is finished."""
        self._take_incoming()
        # The queue keeps the order of puts that did not overlap, so that the first tells of all before the mark.
        return next(iter(self._unfinished.values()), mark) >= mark

    def claim(self, limit: int) -> list[Delivery]:
        """Lease up to *limit* deliveries that are due, oldest first; when late, by turns with the newest never tried.

        So an endpoint that was down hears of what happens now while it catches up, and else everything in its order.
        """
        self._take_incoming()
        claimed: list[Delivery] = []
        while len(claimed) < limit and (delivery := self._next()) is not None:
            del self._waiting[delivery]
            claimed.append(delivery)
        return claimed

    def _next(self) -> Delivery | None:
        self._sweep()
        now = self._monotonic()
        first_new = self._never_tried[0].submitted_at if self._never_tried else math.inf
        first_again = self._retries[0][0] if self._retries else math.inf
        self._takes_newest = now - min(first_new, first_again) > _LATE_AFTER and not self._takes_newest
        if self._takes_newest and self._never_tried:
            return self._never_tried.pop()
        if self._never_tried and first_new <= first_again:
            return self._never_tried.popleft()
        return heapq.heappop(self._retries)[2] if first_again <= now else None

    def _sweep(self) -> None:
        """Drop the first entries that do not count any more."""
        while self._never_tried and self._never_tried[0] not in self._waiting:
            self._never_tried.popleft()
        while self._retries and not self._counts(self._retries[0]):
            heapq.heappop(self._retries)

    def _counts(self, entry: tuple[float, int, Delivery]) -> bool:
        return self._waiting.get(entry[2]) == entry[1]

    def claim_older(self, age: float) -> list[Delivery]:
        """Lease all deliveries, due or not, whose steps ended at least *age* seconds ago."""
        self._take_incoming()
        latest = self._monotonic() - age
        ended = itertools.takewhile(lambda delivery: delivery.submitted_at <= latest, self._unfinished)
        claimed = [delivery for delivery in ended if self._waiting.pop(delivery, None) is not None]
        self._sweep()
        if len(self._retries) > _MIN_SWEEP + 2 * len(self._waiting):
            self._retries = list(filter(self._counts, self._retries))
            heapq.heapify(self._retries)
        return claimed

    def next_due(self) -> float | None:
        """Seconds until the first delivery is due, 0 when one is; None when nothing waits."""
        self._take_incoming()
        self._sweep()
        if self._never_tried:
            return 0.0
        return max(0.0, self._retries[0][0] - self._monotonic()) if self._retries else None

    def retry(self, delivery: Delivery, *, delay: float) -> None:
        """Have *delivery* due again after *delay* seconds."""
        self._waiting[delivery] = number = next(self._numbers)
        heapq.heappush(self._retries, (self._monotonic() + delay, number, delivery))

    def unclaim(self, deliveries: Iterable[Delivery]) -> None:
        """Have *deliveries* due again at once, attempts kept."""
        for delivery in deliveries:
            self.retry(delivery, delay=0.0)

    def finish(self, delivery: Delivery, result: Result) -> None:  # noqa: ARG002 -- other stores keep it
        """Forget *delivery*, and have room for another."""
        del self._unfinished[delivery]
        self._slots.append(None)

    def oldest_age(self) -> float:
        """Seconds since the end of the oldest step that is not finished; 0 when there is none. From any thread."""
        try:
            ended_at = next(iter(self._unfinished)).submitted_at if self._unfinished else self._incoming[0][3]
        except (IndexError, StopIteration, RuntimeError):  # none, or the worker changes them just now
            return 0.0
        return max(0.0, self._monotonic() - ended_at)

    def __len__(self) -> int:
        return len(self._incoming) + len(self._unfinished)  # in `_receive`, rather one too many than none

    def close(self) -> None:
        """Nothing is held."""

    def _take_incoming(self) -> None:
        while self._incoming:
            number, event, pipeline, submitted_at = self._incoming[0]
            delivery = Delivery(webhook_id(event), event, pipeline, submitted_at)
            self._unfinished[delivery] = self._waiting[delivery] = number
            self._never_tried.append(delivery)
            self._incoming.popleft()
