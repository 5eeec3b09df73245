"""The worker: takes events for one endpoint in each process, and owns the steps at a fork and at exit."""

import atexit
import functools
import logging
import os
import weakref
from collections.abc import Callable, Iterable

from otel_step_hook.delivery.children import arm
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

_LATE_REPORT_INTERVAL = 1.0  # seconds; after a shutdown late steps are reported at most this often
_MAX_FLUSHES = 100  # flushes that may wait at a time; further ones return at once


class Worker:
    """Delivers submitted events to one endpoint, on an event loop in a daemon thread.

    The thread starts when there is work, and ends after 30 seconds without work. `submit`, `drop`, `add_fault` and
    `abandon` may be called from any thread, from a signal handler and by the garbage collector at any moment: they take
    no lock that the calling thread could hold. Only after `shut_down_at_exit` a drop is logged by the calling thread.
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
        # Here, not in the worker thread: this takes locks, which would stay locked in a child that is forked meanwhile.
        Instruments.of_this_process()
        self.endpoint = endpoint
        self.is_closed = False  # whether submitted events are dropped; forked children inherit it
        self.is_at_exit = False  # whether the process ends, and waits for the worker thread no more
        self._late_interval = _LATE_REPORT_INTERVAL
        self.shutdown_timeout = shutdown_timeout

        def make() -> Runner:
            store = make_store(max_queue_size)
            dispatch = Dispatch(endpoint, store, policy, make_sender, concurrency=concurrency)
            return Runner(store, dispatch, functools.partial(arm, _drain))

        self._make = make
        # By process id: by default uWSGI forks without Python's hooks (unbit/uwsgi#1995); the next call notices it.
        self._runners = {os.getpid(): self._make()}
        self._is_durable = self._runner().store.is_durable
        self.starts_early = self._is_durable  # whether `start` is to be called in this process
        _workers[id(self)] = self

    def _runner(self) -> Runner:
        pid = os.getpid()
        runner = self._runners.get(pid)
        if runner is None:
            inherited = [one for other, one in tuple(self._runners.items()) if other != pid]
            runner = self._runners.setdefault(pid, self._successor_of(inherited))
        return runner

    def _successor_of(self, inherited: Iterable[Runner]) -> Runner:
        """Return a new, empty runner for a forked child. The parent delivers the events of the *inherited* ones."""
        new = self._make()
        for one in inherited:
            new.dispatch.stop_at = one.dispatch.stop_at
            one.leave_to_parent()
            _inherited.append(one)
        return new

    def after_fork(self) -> None:
        """In a forked child, replace all runners: a child may get the process id of an earlier ancestor."""
        self._runners = {os.getpid(): self._successor_of(tuple(self._runners.values()))}
        self.starts_early = self._is_durable

    def start(self, pipeline: Pipeline) -> None:
        """Start the thread before the first step ends: an earlier process may have left deliveries in the store.

        To be called when a span starts while `starts_early`; *pipeline* is where the spans of those deliveries go.
        """
        self.starts_early = False
        runner = self._runner()
        if not self.is_closed:
            runner.store.open()
            runner.store.use(pipeline)
            runner.wake()

    def submit(self, event: StepEvent, pipeline: Pipeline) -> None:
        """Take *event* for delivery. If the worker is shut down or full, the event is dropped, counted and logged."""
        runner = self._runner()
        if self.is_closed:
            self.drop("shutdown")
        elif (stored := runner.store.put(event, pipeline)) is Stored.FULL:
            self.drop("outbox_full" if self._is_durable else "queue_full")
        else:
            if stored is Stored.IN_MEMORY and self._is_durable:
                runner.dispatch.drops.add_in_memory()
            runner.wake()

    def drop(self, reason: str, error: Exception | None = None) -> None:
        """Count a step that is dropped for *reason*, perhaps because of *error*; the worker thread logs it."""
        runner = self._runner()
        runner.dispatch.drops.drop(reason, error)
        self._wake_to_report(runner)

    def add_fault(self, error: Exception) -> None:
        """Count *error*, which lost no step; the worker thread logs it."""
        runner = self._runner()
        runner.dispatch.drops.add_fault(error)
        self._wake_to_report(runner)

    def _wake_to_report(self, runner: Runner) -> None:
        now = monotonic()
        is_due = not self.is_closed or now - runner.late_at >= self._late_interval
        if is_due and self.is_closed:
            runner.late_at = now
        # At exit on this thread: from Python 3.12 on no other starts, and before that it dies before it logs. Logging
        # takes the locks of handlers. They are reentrant; other threads release theirs, or are gone, which
        # `log_safely` notices. Nothing of ours blocks: a drop that comes while another one is reported is only counted.
        if self.is_at_exit and runner.report_here(all_counts=is_due):
            return
        if is_due:
            runner.wake()

    def report_rest(self) -> None:
        """Report all counts on the calling thread, and later ones at once: the interpreter deletes the hook.

        To be called while the interpreter finalizes. Does not raise.
        """
        # Not contextlib.suppress: what a function needs may have been deleted before it, contextlib included.
        try:
            self._late_interval = 0.0
            self._runner().report_here(all_counts=True)
        except Exception:  # noqa: BLE001, S110 -- see above; nor is there a log any more
            pass

    def abandon(self) -> None:
        """Let the thread end once everything is delivered or discarded. An exit before that waits for it.

        To be called when no more events can be submitted, because the hook is garbage-collected.
        """
        runner = self._runner()
        runner.dispatch.is_abandoned = True
        if runner.is_busy():
            # Again: an object that is collected together with its hook has lost its weak references.
            _workers[id(self)] = self
            if not runner.wake():
                _unstarted.append(self)

    def is_abandoned(self) -> bool:
        """Whether `abandon` was called in this process."""
        return self._runner().dispatch.is_abandoned

    def flush(self, timeout: float) -> bool:
        """Wait up to *timeout* seconds until everything submitted before is delivered or discarded.

        Returns whether it is.
        """
        return not flush_all([self], timeout)

    def shutdown(self, timeout: float) -> None:
        """Take no more events, deliver for up to *timeout* seconds, then discard and record the rest."""
        shut_down_all([self], timeout)

    def begin_flush(self) -> Latch | None:
        """Return a latch that is set once everything submitted before is delivered or discarded, or None.

        None on the worker thread itself, which cannot wait for its own work, and while a hundred flushes wait for a
        loop that is stuck.
        """
        runner, flushed = self._runner(), Latch()
        if not len(runner.store):
            flushed.set()
        elif runner.is_own_thread() or len(runner.dispatch.flushes) >= _MAX_FLUSHES:
            return None
        else:
            runner.dispatch.flushes.add(runner.store.mark(), flushed)
            runner.wake()
        return flushed

    def end_flush(self, flushed: Latch, deadline: float) -> bool:
        """Wait for the latch of `begin_flush` until *deadline* (monotonic seconds); return whether all is flushed."""
        runner = self._runner()
        # An empty store counts, too: if the loop has failed, nothing sets the latch.
        return runner.wait(flushed, lambda: flushed.is_set() or not len(runner.store), deadline)

    def begin_shutdown(self, deadline: float) -> None:
        """Take no more events, and deliver until *deadline* (monotonic seconds).

        While deliveries are left, further calls keep the deadline of the first: a process waits only once, even if
        several of its exit handlers shut down.
        """
        runner = self._runner()
        if not self.is_closed or not len(runner.store):
            runner.dispatch.stop_at = deadline
        self.is_closed = True
        runner.is_draining = True
        if runner.is_busy():
            runner.wake()

    def end_shutdown(self, timeout: float) -> None:
        """Wait until all is done and closed, or until the deadline of `begin_shutdown`; *timeout* is only logged."""
        runner = self._runner()
        if not runner.is_busy() or runner.is_own_thread():
            return
        runner.wait_for_end(runner.dispatch.stop_at)
        left = runner.store.counts().in_memory
        if left and runner.is_busy() and not runner.is_overdue:
            runner.is_overdue = True
            text = "shutdown took its %g s; %d steps for endpoint %s are neither delivered nor discarded"
            log_safely(logging.ERROR, text, timeout, left, self.endpoint.name)


def flush_all(workers: Iterable[Worker], timeout: float) -> list[Worker]:
    """Wait up to *timeout* seconds as `Worker.flush` does, for all *workers*; return those that are not done."""
    deadline = monotonic() + timeout
    begun = [(worker, worker.begin_flush()) for worker in workers]
    return [worker for worker, flushed in begun if flushed is None or not worker.end_flush(flushed, deadline)]


def shut_down_all(workers: Iterable[Worker], timeout: float) -> None:
    """Shut down all *workers* within *timeout* seconds, as `Worker.shutdown` does. Idempotent; from any thread."""
    asked, deadline = list(workers), monotonic() + timeout
    for worker in asked:
        worker.begin_shutdown(deadline)
    for worker in asked:
        worker.end_shutdown(timeout)


def shut_down_at_exit(workers: Iterable[Worker], timeout: float) -> None:
    """Shut down all *workers* as `shut_down_all` does, when the process ends.

    Steps that end later are reported by the thread that ends them: Python starts no other, or does not wait for it.
    """
    ended = list(workers)
    try:
        shut_down_all(ended, timeout)
    finally:  # a signal handler may raise
        for worker in ended:
            worker.is_at_exit = True


def existing_workers() -> list[Worker]:
    """Return all workers that are not garbage-collected. From any thread, signal handler or finaliser."""
    # `valuerefs` copies in one step, whatever other threads do meanwhile.
    return [worker for reference in _workers.valuerefs() if (worker := reference()) is not None]


def longest_timeout(workers: Iterable[Worker]) -> float:
    """Return the longest shutdown timeout of *workers* in seconds; 0 without any."""
    return max((worker.shutdown_timeout for worker in workers), default=0.0)


def _drain() -> None:
    """Shut down all workers of this process, which ends without `atexit`."""
    workers = existing_workers()
    shut_down_at_exit(workers, longest_timeout(workers))


def _shut_down_abandoned() -> None:
    abandoned = [worker for worker in existing_workers() if worker.is_abandoned()]
    shut_down_all(abandoned, longest_timeout(abandoned))


# By id. Not a WeakSet, whose iteration fails when another thread makes a worker meanwhile.
_workers: "weakref.WeakValueDictionary[int, Worker]" = weakref.WeakValueDictionary()
# Abandoned workers with deliveries for which no thread could be started; nothing else keeps them until the exit.
_unstarted: "list[Worker]" = []
# Once for all: an entry for each abandoned worker would be kept as long as the process.
atexit.register(_shut_down_abandoned)
# In a forked child, the runners of its ancestors, kept until its exit: collected earlier, their connections and tasks
# would warn that they were never closed. Only the ancestors may close them.
_inherited: list[Runner] = []


def _after_fork_in_child() -> None:
    for worker in existing_workers():
        worker.after_fork()


# One hook for all workers: Python cannot unregister a hook.
if hasattr(os, "register_at_fork"):  # pragma: no branch -- Windows has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
