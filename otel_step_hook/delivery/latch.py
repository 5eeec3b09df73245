"""The latch: what one thread waits for and another sets, once; and those of the flushes that wait."""

import _thread
import weakref
from collections import deque
from collections.abc import Callable


class Latch:
    """As `threading.Event`, but `set` never waits for the thread that waits.

    An `Event` is guarded by a lock that its waiting thread holds now and then. Where a signal handler interrupts that
    moment and waits itself, whoever sets the first event would be kept from the work that the handler waits for.
    """

    __slots__ = ("__weakref__", "_closed")

    def __init__(self) -> None:
        self._closed = _thread.allocate_lock()
        self._closed.acquire()

    def is_set(self) -> bool:
        """Whether `set` has been called."""
        return not self._closed.locked()

    def set(self) -> None:
        """Have every `wait` return. For one thread, once."""
        self._closed.release()

    def wait(self, timeout: float) -> None:
        """Return when it is set, or *timeout* seconds later. For one thread at a time."""
        if self._closed.acquire(timeout=timeout):
            self._closed.release()


class Flushes:
    """Latches of the flushes that wait, each to be set when everything below its mark is flushed.

    `add` and `len()` may be called from any thread; `answer` is for one. A flush that waits no more is forgotten.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, weakref.ref[Latch]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, mark: int, flushed: Latch) -> None:
        """Have *flushed* set when everything below *mark* is flushed."""
        self._waiting.append((mark, weakref.ref(flushed)))

    def set_flushed(self, is_flushed: Callable[[int], bool]) -> None:
        """Set the latches of those marks for which *is_flushed* says so."""
        for _ in range(len(self._waiting)):
            mark, waiting = self._waiting.popleft()
            flushed = waiting()
            if flushed is not None and is_flushed(mark):
                flushed.set()
            elif flushed is not None:
                self._waiting.append((mark, waiting))
