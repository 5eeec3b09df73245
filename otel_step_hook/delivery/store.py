"""The `Store` protocol: where the deliveries of one endpoint wait. `memory.MemoryStore` implements it."""

from collections.abc import Iterable
from enum import Enum, auto
from typing import Protocol

from otel_step_hook.delivery.model import Counts, Delivery, Pipeline, Result
from otel_step_hook.steps.event import StepEvent


class Stored(Enum):
    """What `Store.put` did with an event."""

    DURABLE = auto()  # stored: it survives the process
    IN_MEMORY = auto()  # stored: it is lost with the process
    FULL = auto()  # dropped: there is no room


class Store(Protocol):
    """Keeps the deliveries of one endpoint: their order, due times and attempts, by clocks of its own.

    `put`, `mark` and `len()` may be called from any thread, from a signal handler and by the garbage collector at any
    moment: they take no lock that the calling thread could hold. `oldest_age` and `counts` may be called from any
    thread, the other methods from the worker thread. A claimed delivery is leased to the caller until `retry`,
    `unclaim` or `finish`.
    """

    @property
    def is_durable(self) -> bool:
        """Whether what waits survives the process: then it need not be finished before the process ends."""

    def open(self) -> None:
        """Make ready what `put` needs. May be called on any thread. Does not raise."""

    def use(self, pipeline: Pipeline) -> None:
        """Let the spans of deliveries of earlier processes go to *pipeline*."""

    def put(self, event: StepEvent, pipeline: Pipeline) -> Stored:
        """Take *event*, whose step has just ended, unless there is no room."""

    def mark(self) -> int:
        """Return a number above that of every event that was put before."""

    def is_flushed(self, mark: int) -> bool:
        """Whether every event below *mark* is finished, or durable."""

    def claim(self, limit: int) -> list[Delivery]:
        """Lease up to *limit* deliveries that are due, oldest first.

        While deliveries are late, half of them are the newest that were never tried.
        """

    def claim_older(self, age: float) -> list[Delivery]:
        """Lease deliveries, due or not, whose steps ended at least *age* seconds ago: all, or some of many."""

    def claim_lost(self) -> list[Delivery]:
        """Lease all deliveries, due or not, that are lost with the process: those that the store does not keep."""

    def keeps(self, delivery: Delivery) -> bool:
        """Whether the leased *delivery*, if it is not finished, survives the process."""

    def next_due(self) -> float | None:
        """Return the seconds until the first delivery is due: 0 when one is due, None when no delivery waits."""

    def retry(self, delivery: Delivery, *, delay: float) -> None:
        """Make *delivery* due again after *delay* seconds."""

    def unclaim(self, deliveries: Iterable[Delivery]) -> None:
        """Make *deliveries* due again at once, with their attempts: the loop has ended, or the process exits."""

    def finish(self, delivery: Delivery, result: Result) -> None:
        """Forget *delivery*, which has ended with *result*, or keep it as discarded, with its `error_type`."""

    def oldest_age(self) -> float:
        """Return the age in seconds of the oldest event that is not finished; 0 when there is none."""

    def counts(self) -> Counts:
        """Return how many deliveries are not finished, how many of them are in memory alone, and how many are kept."""

    def __len__(self) -> int:
        """Return how many events the worker thread has to finish, or to make durable."""

    def close(self) -> None:
        """Make durable what waits, and release all resources, which a later call would take again."""
