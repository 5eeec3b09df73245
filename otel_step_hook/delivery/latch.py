"""The latch: what one thread waits for and another sets, once."""

import _thread


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
