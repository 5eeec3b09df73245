"""The store: where the deliveries of one endpoint wait. `memory.MemoryStore` is one."""

from collections.abc import Iterable
from enum import Enum, auto
from typing import Protocol

from otel_step_hook.delivery.model import Delivery, Pipeline, Result
from otel_step_hook.steps.event import StepEvent


class Stored(Enum):
    """What became of an event that was put."""

    DURABLE = auto()  # it survives the process
    IN_MEMORY = auto()
    FULL = auto()  # it is dropped


class Store(Protocol):
    """Owns what waits: order, due times, attempts, capacity, and what a flush waits for. Its clocks are its own.

    `put`, `mark` and `len()` may be called from any thread, from a signal handler and by the garbage collector at any
    moment: they take no lock that their own thread could hold. The rest is for the worker's thread. A delivery that is
    claimed is leased to the caller until `retry`, `unclaim` or `finish`.
    """

    def put(self, event: StepEvent, pipeline: Pipeline) -> Stored:
        """Take *event*, which has just ended, unless there is no room."""

    def mark(self) -> int:
        """A number above that of every event that was put before."""

    def is_flushed(self, mark: int) -> bool:
        """Whether every event below *mark* is finished, or durable."""

    def claim(self, limit: int) -> list[Delivery]:
        """Lease up to *limit* deliveries that are due, oldest first; when late, half of them the newest never tried."""

    def claim_older(self, age: float) -> list[Delivery]:
        """Lease all deliveries, due or not, whose steps ended at least *age* seconds ago."""

    def next_due(self) -> float | None:
        """Seconds until the first delivery is due, 0 when one is; None when nothing waits."""

    def retry(self, delivery: Delivery, *, delay: float) -> None:
        """Have *delivery* due again after *delay* seconds."""

    def unclaim(self, deliveries: Iterable[Delivery]) -> None:
        """Have *deliveries* due again at once, attempts kept: the loop died, or the process exits."""

    def finish(self, delivery: Delivery, result: Result) -> None:
        """Forget *delivery*, which has come to its *result*."""

    def oldest_age(self) -> float:
        """Seconds since the end of the oldest step that is not finished; 0 when there is none."""

    def __len__(self) -> int:
        """How many events have come in and are not finished."""

    def close(self) -> None:
        """Release what is held. Nothing else is called after this."""
