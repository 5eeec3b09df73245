"""The store in memory: owns the bounded queue between the application's threads and the worker."""

from collections import deque
from dataclasses import dataclass
from itertools import repeat
from queue import Empty, SimpleQueue

from otel_step_hook.delivery.telemetry import Delivery, Pipeline
from otel_step_hook.steps.event import StepEvent


@dataclass(frozen=True, slots=True)
class Submission:
    """An event on its way to the worker; *at* is the monotonic time of its submission, in seconds."""

    event: StepEvent
    pipeline: Pipeline
    at: float


class MemoryStore:
    """A queue that holds at most *max_size* events, those being delivered included.

    `put` may be called from any thread, from a signal handler and by the garbage collector at any
    moment: it takes no lock that its own thread could hold already. (``queue.Queue`` and
    ``threading.Event`` deadlock there; ``SimpleQueue`` and ``deque`` do not.)
    """

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._slots: deque[None] = deque(repeat(None, max_size))  # one for each event that may still come in
        self._queue: SimpleQueue[Submission] = SimpleQueue()
        self.unclaimed: deque[Delivery] = deque()  # of a loop that has ended before they had; due at once

    def put(self, submission: Submission) -> bool:
        """Take *submission*, or return False when the store is full."""
        try:
            self._slots.pop()
        except IndexError:
            return False
        self._queue.put(submission)
        return True

    def take(self) -> Submission | None:
        """The oldest event that nobody has taken, or None."""
        try:
            return self._queue.get_nowait()
        except Empty:
            return None

    def release(self) -> None:
        """Give back the place of one event that has had its last word."""
        self._slots.append(None)

    @property
    def pending(self) -> int:
        """How many events have come in and have not had their last word."""
        return self._max_size - len(self._slots)

    @property
    def waiting(self) -> int:
        """How many events are in nobody's hands."""
        return self._queue.qsize() + len(self.unclaimed)
