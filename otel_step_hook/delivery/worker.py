"""The worker: what one endpoint is given to deliver, in each process; and what happens at fork and at exit."""

import atexit
import logging
import os
import sys
import weakref
from collections.abc import Callable, Iterable

from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.dispatch import Dispatch, MakeSender
from otel_step_hook.delivery.latch import Latch
from otel_step_hook.delivery.log import log_safely
from otel_step_hook.delivery.memory import MemoryStore
from otel_step_hook.delivery.metrics import Instruments
from otel_step_hook.delivery.model import Endpoint, Pipeline
from otel_step_hook.delivery.retry import RetryPolicy
from otel_step_hook.delivery.runner import Runner
from otel_step_hook.delivery.store import Store, Stored
from otel_step_hook.steps.event import StepEvent

_LATE_REPORT_INTERVAL = 1.0  # seconds; once shut down, a thread is started at most this often to report late steps
_MAX_FLUSHES = 100  # calls of flush() that wait at a time; further ones return at once


class Worker:
    """Delivers what is submitted to one endpoint, on an event loop in a daemon thread that starts on first use.

    The thread ends after 30 seconds without work, and starts again. `submit`, `drop`, `add_fault` and `abandon` may be
    called from any thread, from a signal handler and by the garbage collector at any moment: they take no lock that
    their own thread could hold already.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        policy: RetryPolicy,
        make_sender: MakeSender,
        *,
        max_queue_size: int,
        concurrency: int,
        shutdown_timeout: float,
        make_store: Callable[[int], Store] = MemoryStore,
    ) -> None:
        # Now, not in the thread: what takes locks of its own, once, is not left locked in a child that is forked at
        # that moment.
        Instruments.of_this_process()
        self.endpoint = endpoint
        self.is_closed = False  # whether what is submitted now is dropped; in children that are forked, too
        self.shutdown_timeout = shutdown_timeout

        def make() -> Runner:
            store = make_store(max_queue_size)
            dispatch = Dispatch(endpoint, store, policy, make_sender, concurrency=concurrency)
            return Runner(store, dispatch, self._arm_for_multiprocessing)

        self._make = make
        # By process id: a fork that nobody has seen, such as uWSGI's, is seen by the next call.
        self._runners = {os.getpid(): self._make()}
        _workers.add(self)

    def _runner(self) -> Runner:
        pid = os.getpid()
        here = self._runners.get(pid)
        if here is None:
            inherited = [one for other, one in tuple(self._runners.items()) if other != pid]
            here = self._runners.setdefault(pid, self._successor_of(inherited))
        return here

    def _successor_of(self, inherited: Iterable[Runner]) -> Runner:
        """In a forked child: an empty queue, no thread, no connections. What the parent queued is the parent's."""
        new = self._make()
        for one in inherited:
            new.dispatch.stop_at = one.dispatch.stop_at
            one.leave_to_parent()
            _inherited.append(one)
        return new

    def after_fork(self) -> None:
        """Take nothing over from the parent, whose process id may be the child's again."""
        self._runners = {os.getpid(): self._successor_of(tuple(self._runners.values()))}

    def submit(self, event: StepEvent, pipeline: Pipeline) -> None:
        """Take *event* for delivery, or drop it, counted and logged, when shut down or full."""
        here = self._runner()
        if self.is_closed:
            self.drop("shutdown")
        elif here.store.put(event, pipeline) is Stored.FULL:
            self.drop("queue_full")
        else:
            here.wake()

    def drop(self, reason: str, error: Exception | None = None) -> None:
        """Have the worker's thread count and log that a step is lost, perhaps because of *error*."""
        here = self._runner()
        here.dispatch.drops.drop(reason, error)
        self._wake_to_report(here)

    def add_fault(self, error: Exception) -> None:
        """Have the worker's thread log *error*, which lost nothing."""
        here = self._runner()
        here.dispatch.drops.add_fault(error)
        self._wake_to_report(here)

    def _wake_to_report(self, here: Runner) -> None:
        now = monotonic()
        if not self.is_closed:
            here.wake()
        elif now - here.late_at >= _LATE_REPORT_INTERVAL:
            here.late_at = now
            here.wake()

    def abandon(self) -> None:
        """Have the thread end once everything is delivered or discarded; an exit before that waits for it.

        For the end of those who submit: nothing comes in any more.
        """
        here = self._runner()
        here.dispatch.is_abandoned = True
        if here.is_busy():
            _workers.add(self)  # again: what is collected together with its hook has lost its weak references
            if not here.wake():
                _unstarted.append(self)

    def is_abandoned(self) -> bool:
        """Whether `abandon` was called in this process."""
        return self._runner().dispatch.is_abandoned

    # Waiting

    def flush(self, timeout: float) -> bool:
        """Wait up to *timeout* seconds until everything submitted before is delivered or discarded."""
        return not flush_all([self], timeout)

    def shutdown(self, timeout: float) -> None:
        """Take nothing more, deliver for up to *timeout* seconds, discard the rest visibly."""
        shut_down_all([self], timeout)

    def begin_flush(self) -> Latch | None:
        """What will be set once everything submitted before is delivered or discarded; None when nobody could set it.

        That is so on the worker's own thread, and while a hundred others wait for a loop that is stuck.
        """
        here, flushed = self._runner(), Latch()
        if not len(here.store):
            flushed.set()
        elif here.is_own_thread() or len(here.dispatch.flushes) >= _MAX_FLUSHES:
            return None
        else:
            here.dispatch.flushes.add(here.store.mark(), flushed)
            here.wake()
        return flushed

    def end_flush(self, flushed: Latch, deadline: float) -> bool:
        """Wait for what `begin_flush` has returned, until *deadline* (monotonic seconds)."""
        here = self._runner()
        # Where a loop has died meanwhile nobody sets it.
        return here.wait(flushed, lambda: flushed.is_set() or not len(here.store), deadline)

    def begin_shutdown(self, deadline: float) -> None:
        """Take nothing more, and deliver until *deadline* (monotonic seconds).

        Calls share the limit of the first until nothing is left: a process whose exit handlers all shut down waits
        once.
        """
        here = self._runner()
        if not self.is_closed or not len(here.store):
            here.dispatch.stop_at = deadline
        self.is_closed = True
        here.is_draining = True
        if here.is_busy():
            here.wake()

    def end_shutdown(self, timeout: float) -> None:
        """Wait until nothing is left and the connections are closed, or until the limit; *timeout* is for the log."""
        here = self._runner()
        if not here.is_busy() or here.is_own_thread():
            return
        here.wait_for_end(here.dispatch.stop_at)
        left = len(here.store)
        if left and here.is_busy() and not here.is_overdue:
            here.is_overdue = True
            text = "shutdown took its %g s; %d steps for endpoint %s are neither delivered nor discarded"
            log_safely(logging.ERROR, text, timeout, left, self.endpoint.name)

    def _arm_for_multiprocessing(self, here: Runner) -> None:
        """In a child that multiprocessing made, arrange for a drain: its exit skips atexit before Python 3.13."""
        # By getattr: a signal may have come in the middle of their import.
        parent_process = getattr(sys.modules.get("multiprocessing.process"), "parent_process", None)
        finalize = getattr(sys.modules.get("multiprocessing.util"), "Finalize", None)
        if here.is_armed or parent_process is None or finalize is None or parent_process() is None:
            return
        here.is_armed = True
        finalize(None, _shut_down, args=(weakref.ref(self), self.shutdown_timeout), exitpriority=100)


def flush_all(workers: Iterable[Worker], timeout: float) -> list[Worker]:
    """Wait up to *timeout* seconds until everything submitted before is delivered or discarded; return who is late."""
    deadline = monotonic() + timeout
    begun = [(worker, worker.begin_flush()) for worker in workers]
    return [worker for worker, flushed in begun if flushed is None or not worker.end_flush(flushed, deadline)]


def shut_down_all(workers: Iterable[Worker], timeout: float) -> None:
    """Take nothing more, deliver for up to *timeout* seconds, discard the rest visibly. Idempotent, from any thread."""
    asked, deadline = list(workers), monotonic() + timeout
    for worker in asked:
        worker.begin_shutdown(deadline)
    for worker in asked:
        worker.end_shutdown(timeout)


def _shut_down(worker: "weakref.ref[Worker]", timeout: float) -> None:
    alive = worker()
    if alive is not None:
        alive.shutdown(timeout)


def _shut_down_abandoned() -> None:
    # A tuple: others may be collected meanwhile.
    abandoned = [worker for worker in tuple(_workers) if worker.is_abandoned()]
    shut_down_all(abandoned, max((worker.shutdown_timeout for worker in abandoned), default=0.0))


_workers: "weakref.WeakSet[Worker]" = weakref.WeakSet()
# Abandoned with deliveries that no thread could be started for, and which nothing else keeps to the exit.
_unstarted: "list[Worker]" = []
# Once: an entry for each that was ever abandoned would be kept as long as the process.
atexit.register(_shut_down_abandoned)
# In a forked child, what belongs to its parents, to its own exit: collected, their connections and tasks would complain
# that nobody has closed them, which is the parents' to do.
_inherited: list[Runner] = []


def _after_fork_in_child() -> None:
    for worker in tuple(_workers):
        worker.after_fork()


# One hook for all workers: hooks can never be unregistered.
if hasattr(os, "register_at_fork"):  # pragma: no branch -- Windows has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
