"""The store in memory: owns the bounded queue between the application's threads and the worker thread."""

import heapq
import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterable
from itertools import repeat

from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.model import Counts, Delivery, Pipeline, Result
from otel_step_hook.delivery.request import webhook_id
from otel_step_hook.delivery.store import Stored
from otel_step_hook.steps.event import StepEvent

_Put = tuple[int, StepEvent, Pipeline, float]
_LATE_AFTER = 1.0  # seconds; the store is late when its oldest delivery has waited longer
_MIN_SWEEP = 64  # outdated entries of the heap that are not worth sweeping


class MemoryStore:
    """A `Store` of at most *max_size* events, those in flight included; beyond it, new events are dropped.

    `put` costs the application a few appends; the rest is computed on the worker thread. It appends to a `deque`:
    the locks of `queue.Queue` and `threading.Event` would deadlock when a signal handler or the garbage collector
    interrupts a thread that holds them (getsentry/sentry-python#803 is such a case).
    """

    is_durable = False

    def __init__(self, max_size: int, *, monotonic: Callable[[], float] = monotonic) -> None:
        self._monotonic = monotonic
        self._free_slots: deque[None] = deque(repeat(None, max_size))  # one for each event that there is room for
        self._numbers = itertools.count()  # its next() is atomic
        self._incoming: deque[_Put] = deque()
        # What follows is for the worker thread. Every delivery that is not finished, with its number, oldest first.
        self._unfinished: OrderedDict[Delivery, int] = OrderedDict()
        # The deliveries that are not leased, each with the number of its current entry in one of the queues below.
        # `claim_older` takes deliveries and leaves their entries, which are outdated then and skipped.
        self._waiting: dict[Delivery, int] = {}
        self._never_tried: deque[Delivery] = deque()  # oldest first
        self._retries: list[tuple[float, int, Delivery]] = []  # a heap, by due time
        self._takes_newest = False

    def open(self) -> None:
        """Do nothing: there is nothing to make ready."""

    def use(self, pipeline: Pipeline) -> None:
        """Do nothing: no delivery is of an earlier process."""

    def put(self, event: StepEvent, pipeline: Pipeline, at: float | None = None) -> Stored:
        """Take *event*, or return FULL when the store has no room for it.

        Another store has taken it *at* this time (monotonic seconds); by default, it is submitted now.
        """
        try:
            self._free_slots.pop()
        except IndexError:
            return Stored.FULL
        self._incoming.append((next(self._numbers), event, pipeline, self._monotonic() if at is None else at))
        return Stored.IN_MEMORY

    def mark(self) -> int:
        """Return a number above that of every event that was put before."""
        return next(self._numbers)

    def is_flushed(self, mark: int) -> bool:
        """Whether every event below *mark* is finished."""
        self._take_incoming()
        # No event that was put before the mark stands behind a later one, so the number of the first event decides.
        return next(iter(self._unfinished.values()), mark) >= mark

    def claim(self, limit: int) -> list[Delivery]:
        """Lease up to *limit* deliveries that are due, oldest first.

        While the store is late, every second one is the newest that was never tried: an endpoint that was down gets
        current events while it catches up.
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
        """Remove outdated entries from the front of both queues."""
        while self._never_tried and self._never_tried[0] not in self._waiting:
            self._never_tried.popleft()
        while self._retries and not self._is_current(self._retries[0]):
            heapq.heappop(self._retries)

    def _is_current(self, entry: tuple[float, int, Delivery]) -> bool:
        return self._waiting.get(entry[2]) == entry[1]

    def claim_older(self, age: float) -> list[Delivery]:
        """Lease all deliveries, due or not, whose steps ended at least *age* seconds ago."""
        self._take_incoming()
        latest = self._monotonic() - age
        return self._claim(itertools.takewhile(lambda delivery: delivery.submitted_at <= latest, self._unfinished))

    def claim_lost(self, kept: Container[str] = ()) -> list[Delivery]:
        """Lease all deliveries, due or not; another store keeps those whose ids are *kept*."""
        self._take_incoming()
        return self._claim(delivery for delivery in self._unfinished if delivery.id not in kept)

    def keeps(self, delivery: Delivery) -> bool:  # noqa: ARG002 -- other stores look at it
        """Return false: no delivery survives the process."""
        return False

    def _claim(self, deliveries: Iterable[Delivery]) -> list[Delivery]:
        """Lease those of *deliveries* that wait."""
        claimed = [delivery for delivery in deliveries if self._waiting.pop(delivery, None) is not None]
        self._sweep()
        if len(self._retries) > _MIN_SWEEP + 2 * len(self._waiting):
            self._retries = list(filter(self._is_current, self._retries))
            heapq.heapify(self._retries)
        return claimed

    def next_due(self) -> float | None:
        """Return the seconds until the first delivery is due: 0 when one is due, None when no delivery waits."""
        self._take_incoming()
        self._sweep()
        if self._never_tried:
            return 0.0
        return max(0.0, self._retries[0][0] - self._monotonic()) if self._retries else None

    def retry(self, delivery: Delivery, *, delay: float) -> None:
        """Make *delivery* due again after *delay* seconds."""
        self._waiting[delivery] = number = next(self._numbers)
        heapq.heappush(self._retries, (self._monotonic() + delay, number, delivery))

    def unclaim(self, deliveries: Iterable[Delivery]) -> None:
        """Make *deliveries* due again at once; their attempts still count."""
        for delivery in deliveries:
            self.retry(delivery, delay=0.0)

    def waiting(self) -> dict[Delivery, float]:
        """Return all deliveries that are not leased, oldest first, and when each is due (monotonic seconds).

        They stay as they are.
        """
        self._take_incoming()
        due = {entry[2]: entry[0] for entry in self._retries if self._is_current(entry)}
        return {one: due.get(one, one.submitted_at) for one in self._unfinished if one in self._waiting}

    def remove(self, deliveries: Iterable[Delivery]) -> None:
        """Forget *deliveries*, all that were `waiting`: another store has them now."""
        for delivery in deliveries:
            del self._waiting[delivery]
            self.finish(delivery, "handed_over")
        self._sweep()

    def finish(self, delivery: Delivery, result: Result) -> None:  # noqa: ARG002 -- other stores record it
        """Forget *delivery*, and make room for another event."""
        del self._unfinished[delivery]
        self._free_slots.append(None)

    def oldest_age(self) -> float:
        """Return the age in seconds of the oldest event that is not finished; 0 when there is none. From any thread."""
        try:
            ended_at = next(iter(self._unfinished)).submitted_at if self._unfinished else self._incoming[0][3]
        except (IndexError, StopIteration, RuntimeError):  # there is none, or the worker thread changes them now
            return 0.0
        return max(0.0, self._monotonic() - ended_at)

    def counts(self) -> Counts:
        """Return how many deliveries are not finished; all of them are in memory alone."""
        return Counts(len(self), len(self))

    def __len__(self) -> int:
        return len(self._incoming) + len(self._unfinished)  # `_take_incoming` rather counts one twice than not at all

    def close(self) -> None:
        """Do nothing: no resource is held."""

    def _take_incoming(self) -> None:
        while self._incoming:
            number, event, pipeline, submitted_at = self._incoming[0]
            delivery = Delivery(webhook_id(event), event, pipeline, submitted_at)
            self._unfinished[delivery] = self._waiting[delivery] = number
            self._never_tried.append(delivery)
            self._incoming.popleft()
