"""Empties an outbox from outside of the application: delivers what waits, until nothing is due within the time."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from opentelemetry.sdk.resources import Resource

from otel_step_hook.cli.exporting import Exporting
from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.inspection import Inspection
from otel_step_hook.delivery.model import Delivery, Endpoint, Pipeline, Result
from otel_step_hook.delivery.outbox import OutboxStore
from otel_step_hook.delivery.outbox_file import OutboxOptions
from otel_step_hook.delivery.takeover import count_abandoned
from otel_step_hook.delivery.worker import shut_down_all
from otel_step_hook.settings import StepHookSettings
from otel_step_hook.workers import new_workers

_POLL_INTERVAL = 0.1  # seconds between two looks at the rows; a person sees the bar move


@dataclass(slots=True)
class Drained:
    """What was done: how many deliveries have ended with each result, how many are *left*, and when one is due next.

    *due_at* is in unix seconds; of a delivery that another process has leased, it is when the lease ends.
    """

    results: Counter[Result] = field(default_factory=Counter)
    left: int = 0
    due_at: float | None = None


class CountingStore(OutboxStore):
    """An outbox that counts what its worker does, for another thread to read."""

    def __init__(self, options: OutboxOptions, max_queue_size: int) -> None:
        super().__init__(options, max_queue_size)
        self.results: Counter[Result] = Counter()
        self._has_claimed = False  # the first claim takes over what dead processes have left
        self._claimed = 0  # deliveries that are leased, or may be

    @property
    def is_busy(self) -> bool:
        """Whether the rows are about to change: deliveries are in flight, or their results are not written yet."""
        return not self._has_claimed or self._claimed > 0 or self._has_changes()

    def claim(self, limit: int) -> list[Delivery]:
        """Lease up to *limit* deliveries that are due."""
        self._claimed += limit  # first: the other thread must not see leased rows of an idle store
        claimed = super().claim(limit)
        self._claimed += len(claimed) - limit
        self._has_claimed = True
        return claimed

    def claim_older(self, age: float) -> list[Delivery]:
        """Lease deliveries whose steps ended at least *age* seconds ago."""
        claimed = super().claim_older(age)
        self._claimed += len(claimed)
        return claimed

    def retry(self, delivery: Delivery, *, delay: float) -> None:
        """Make *delivery* due again after *delay* seconds."""
        super().retry(delivery, delay=delay)
        self._claimed -= 1

    def finish(self, delivery: Delivery, result: Result) -> None:
        """Delete *delivery*, or keep it as discarded, and count its *result*."""
        super().finish(delivery, result)
        self.results[result] += 1
        self._claimed -= 1


def drain(
    path: Path,
    settings: StepHookSettings,
    endpoints: Sequence[Endpoint],
    exporting: Exporting,
    *,
    timeout: float,
    on_progress: Callable[[Drained], object],
    stopped: Sequence[None] = (),
) -> Drained:
    """Deliver what waits for *endpoints* in the outbox *path* of *settings*, for *timeout* seconds and some at the end.

    Returns earlier when nothing is due within that time, or when *stopped* is no longer empty.

    Spans and metrics go to *exporting*, which is shut down, each span with the resource of its row. *on_progress* is
    called about ten times a second. Raises `OutboxError` for a file that cannot be used; it is made when only journals
    are there.
    """
    deadline = monotonic() + timeout
    stores: list[CountingStore] = []

    def make_outbox(options: OutboxOptions, max_queue_size: int) -> CountingStore:
        stores.append(CountingStore(options, max_queue_size))
        return stores[-1]

    def look() -> Drained:
        return _look(rows, endpoints, stores)

    try:
        with Inspection(path, may_create=bool(_in_journals(path, endpoints))) as rows:
            workers = new_workers(endpoints, settings, make_outbox)
            try:
                for worker in workers:
                    worker.start(Pipeline(exporting.processor, Resource.create()))
                _wait(look, stores, deadline, on_progress, stopped)
            finally:
                shut_down_all(workers, settings.shutdown_timeout)
            drained = look()
    finally:
        exporting.shutdown()
    drained.left += _in_journals(path, endpoints)
    return drained


def _wait(
    look: Callable[[], Drained],
    stores: Sequence[CountingStore],
    deadline: float,
    on_progress: Callable[[Drained], object],
    stopped: Sequence[None],
) -> None:
    """Wait until nothing is in flight and due before *deadline* (monotonic seconds), or *stopped* is not empty."""
    is_done = False
    while not (is_done or stopped) and (left := deadline - monotonic()) > 0:
        is_idle = not any(store.is_busy for store in stores)
        on_progress(drained := look())
        time.sleep(min(_POLL_INTERVAL, left))
        # Idle before and after: else the rows that were read could have been those of a delivery in flight.
        is_idle = is_idle and not any(store.is_busy for store in stores)
        is_done = is_idle and not (drained.due_at is not None and drained.due_at <= time.time() + left)


def _in_journals(path: Path, endpoints: Iterable[Endpoint]) -> int:
    return sum(count_abandoned(path, endpoint.name) for endpoint in endpoints)


def _look(inspection: Inspection, endpoints: Iterable[Endpoint], stores: Iterable[CountingStore]) -> Drained:
    waiting = [inspection.waiting(endpoint.name) for endpoint in endpoints]
    return Drained(
        sum((store.results for store in stores), Counter[Result]()),
        sum(count for count, _ in waiting),
        min((due_at for _, due_at in waiting if due_at is not None), default=None),
    )
