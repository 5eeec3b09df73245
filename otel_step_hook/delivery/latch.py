"""`Latch`, which one thread waits for and another sets, and `Flushes`, the latches of the flushes that wait."""

import weakref
from collections import deque
from collections.abc import Callable

from otel_step_hook.delivery import native


class Latch:
    """Like `threading.Event`, but `set` never blocks on a lock that the waiting thread holds.

    The thread that waits for an `Event` holds its lock for short moments. A signal handler may interrupt such a moment
    and wait for another event. The worker thread would then block when it sets the first event, and never do the work
    that the handler waits for.
    """

    __slots__ = ("__weakref__", "_closed")

    def __init__(self) -> None:
        self._closed = native.allocate_lock()
        self._closed.acquire()

    def is_set(self) -> bool:
        """Whether `set` has been called."""
        return not self._closed.locked()

    def set(self) -> None:
        """Let every `wait` return. To be called once."""
        self._closed.release()

    def wait(self, timeout: float) -> None:
        """Wait until the latch is set, at most *timeout* seconds. For one thread at a time."""
        if native.acquire(self._closed, timeout):
            self._closed.release()


class Flushes:
    """The latches of the flushes that wait; each is set when every event below its mark is flushed.

    `add` and `len()` may be called from any thread, `set_flushed` from one. The latch of a flush that has returned
    is forgotten.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, weakref.ref[Latch]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, mark: int, flushed: Latch) -> None:
        """Add *flushed*, to be set when every event below *mark* is flushed."""
        self._waiting.append((mark, weakref.ref(flushed)))

    def set_flushed(self, is_flushed: Callable[[int], bool]) -> None:
        """Set the latches whose marks *is_flushed* confirms."""
        for _ in range(len(self._waiting)):
            mark, waiting = self._waiting.popleft()
            flushed = waiting()
            if flushed is not None and is_flushed(mark):
                flushed.set()
            elif flushed is not None:
                self._waiting.append((mark, waiting))
