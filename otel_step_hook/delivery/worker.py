"""The worker: owns the thread of one endpoint, how it is woken, and what happens to it at fork and at exit."""

import _thread
import contextlib
import contextvars
import logging
import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from queue import SimpleQueue

from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.dispatch import Dispatch, MakeSender
from otel_step_hook.delivery.log import log_safely, where
from otel_step_hook.delivery.loop import EventLoop, run_in, uninstrumented
from otel_step_hook.delivery.memory import MemoryStore
from otel_step_hook.delivery.metrics import Instruments
from otel_step_hook.delivery.model import Endpoint, Pipeline
from otel_step_hook.delivery.retry import RetryPolicy
from otel_step_hook.delivery.store import Store, Stored
from otel_step_hook.steps.event import StepEvent

_PAUSE_AFTER_FAULT = 1.0  # seconds; a loop that cannot run must not spin
_LOOK_AGAIN = 0.5  # seconds after which those who wait make sure that there is a thread to wait for
_LATE = 1.0  # seconds; once shut down, a thread is started at most this often to report late steps
_WAKE_AGAIN = 0.02  # seconds after which a wake-up that the loop has not heard is repeated
_FLUSHES = 100  # calls of flush() that wait at a time; further ones return at once


@dataclass(slots=True, eq=False)
class _InProcess:
    """What belongs to one process: a forked child has its own."""

    store: Store
    dispatch: Dispatch
    context: contextvars.Context = field(default_factory=uninstrumented)  # of all that its loops run
    running: threading.Lock = field(default_factory=threading.Lock)  # held by the runner; tried, never waited for
    runner: int = 0  # the id of its thread
    loop: EventLoop | None = None
    woken_at: float = -math.inf  # monotonic time of a wake-up that the loop has not heard yet
    late_at: float = -math.inf  # monotonic time when a late step woke the loop
    stopped: SimpleQueue[threading.Event] = field(default_factory=SimpleQueue)  # to be set when the thread has ended
    is_draining: bool = False  # a shutdown waits for the end of a loop, which logs all counts
    is_armed: bool = False  # for the exit of a child of multiprocessing
    is_overdue: bool = False  # it has been logged that the shutdown took longer than its limit


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
        self._shutdown_timeout = shutdown_timeout

        def make() -> _InProcess:
            store = make_store(max_queue_size)
            return _InProcess(store, Dispatch(endpoint, store, policy, make_sender, concurrency=concurrency))

        self._make = make
        # By process id: a fork that nobody has seen, such as uWSGI's, is seen by the next call.
        self._processes = {os.getpid(): self._make()}
        _workers.add(self)

    def _here(self) -> _InProcess:
        pid = os.getpid()
        return self._processes.get(pid) or self._processes.setdefault(pid, self._successor())

    def _successor(self) -> _InProcess:
        """In a forked child: an empty queue, no thread, no connections. What the parent queued is the parent's."""
        new = self._make()
        for inherited in tuple(self._processes.values()):
            new.dispatch.stop_at = inherited.dispatch.stop_at
            inherited.dispatch.stop_observing()
            _inherited.append(inherited)
        return new

    def after_fork(self) -> None:
        """Take nothing over from the parent, whose process id may be the child's again."""
        self._processes = {os.getpid(): self._successor()}

    def submit(self, event: StepEvent, pipeline: Pipeline) -> None:
        """Take *event* for delivery, or drop it, counted and logged, when shut down or full."""
        here = self._here()
        if here.dispatch.stop_at < math.inf:
            self.drop("shutdown")
        elif here.store.put(event, pipeline) is Stored.FULL:
            self.drop("queue_full")
        else:
            self._wake(here)

    def drop(self, reason: str, error: Exception | None = None) -> None:
        """Have the worker's thread count and log that a step is lost, perhaps because of *error*."""
        here = self._here()
        here.dispatch.losses.drop(reason, error)
        self._wake_to_report(here)

    def add_fault(self, error: Exception) -> None:
        """Have the worker's thread log *error*, which lost nothing."""
        here = self._here()
        here.dispatch.losses.add_fault(error)
        self._wake_to_report(here)

    def _wake_to_report(self, here: _InProcess) -> None:
        now = monotonic()
        if not self.is_closed():
            self._wake(here)
        elif now - here.late_at >= _LATE:
            here.late_at = now
            self._wake(here)

    def is_closed(self) -> bool:
        """Whether what is submitted now is dropped."""
        return self._here().dispatch.stop_at < math.inf

    def abandon(self) -> bool:
        """Have the thread end once everything is delivered or discarded; return whether there is one.

        For the end of those who submit: nothing comes in any more.
        """
        here = self._here()
        here.dispatch.is_abandoned = True
        return here.running.locked() and self._wake(here)

    # Waiting

    def flush(self, timeout: float) -> bool:
        """Wait up to *timeout* seconds until everything submitted before is delivered or discarded."""
        return not flush_all([self], timeout)

    def shutdown(self, timeout: float) -> None:
        """Take nothing more, deliver for up to *timeout* seconds, discard the rest visibly."""
        shut_down_all([self], timeout)

    def begin_flush(self) -> threading.Event | None:
        """What will be set once everything submitted before is delivered or discarded; None when nobody could set it.

        That is so on the worker's own thread, and while a hundred others wait for a loop that is stuck.
        """
        here, flushed = self._here(), threading.Event()
        if not len(here.store):
            flushed.set()
        elif here.runner == threading.get_ident() or len(here.dispatch.flushes) >= _FLUSHES:
            return None
        else:
            # Weakly: one that is not waited for any more is forgotten.
            here.dispatch.flushes.append((here.store.mark(), weakref.ref(flushed)))
            self._wake(here)
        return flushed

    def end_flush(self, flushed: threading.Event, deadline: float) -> bool:
        """Wait for what `begin_flush` has returned, until *deadline* (monotonic seconds)."""
        here = self._here()
        # Where a loop has died meanwhile nobody sets it.
        return self._await(here, flushed, lambda: flushed.is_set() or not len(here.store), deadline)

    def begin_shutdown(self, deadline: float) -> None:
        """Take nothing more, and deliver until *deadline* (monotonic seconds).

        Calls share the limit of the first until nothing is left: a process whose exit handlers all shut down waits
        once.
        """
        here = self._here()
        if not self.is_closed() or not len(here.store):
            here.dispatch.stop_at = deadline
        here.is_draining = True
        if self._is_busy(here):
            self._wake(here)

    def end_shutdown(self, timeout: float) -> None:
        """Wait until nothing is left and the connections are closed, or until the limit; *timeout* is for the log."""
        here = self._here()
        if not self._is_busy(here) or here.runner == threading.get_ident():
            return
        # One event for each caller: a signal handler may call in the middle of its own thread's wait.
        stopped, deadline = threading.Event(), here.dispatch.stop_at
        here.stopped.put(stopped)
        if not self._await(here, stopped, lambda: not self._is_busy(here), deadline):
            self._run_alone(here, deadline)
        left = len(here.store)
        if left and self._is_busy(here) and not here.is_overdue:
            here.is_overdue = True
            text = "shutdown took its %g s; %d steps are neither delivered nor discarded"
            log_safely(logging.ERROR, text, timeout, left)

    def _is_busy(self, here: _InProcess) -> bool:
        return here.running.locked() or self._has_work(here)

    def _has_work(self, here: _InProcess) -> bool:
        """Whether there is anything to do for a loop."""
        dispatch = here.dispatch
        has_counts = here.is_draining and dispatch.log.has_counts()
        return bool(len(here.store) or dispatch.flushes or dispatch.losses.has_new() or has_counts)

    def _await(self, here: _InProcess, event: threading.Event, is_done: Callable[[], bool], deadline: float) -> bool:
        """Wait until *is_done* or the monotonic time *deadline*, if anybody can do it; *event* says when to look."""
        while not is_done():
            is_awake, left = self._wake(here), deadline - monotonic()
            if left <= 0 or not is_awake:
                break
            event.wait(min(left, _LOOK_AGAIN))
        return is_done()

    def _run_alone(self, here: _InProcess, deadline: float) -> None:
        """Do the work on this thread, if there is time left: no other can be started."""
        if monotonic() < deadline and here.running.acquire(blocking=False):
            self._run(here)

    # The thread

    def _wake(self, here: _InProcess) -> bool:
        """Have the loop look; start one when there is none. False when none can be started."""
        if here.running.acquire(blocking=False):
            return self._start_thread(here)
        # The runner looks after this: when it hears of it, when it begins, or after it has given the lock back.
        loop, now = here.loop, monotonic()
        # Ctrl-C may come between the next two lines, once: so after a while it is repeated.
        if loop is not None and now - here.woken_at > _WAKE_AGAIN:
            here.woken_at = now
            with contextlib.suppress(RuntimeError):  # closed
                loop.call_soon_threadsafe(_hear, here, context=here.context)
        return True

    def _start_thread(self, here: _InProcess) -> bool:
        self._arm_for_multiprocessing(here)
        try:
            # Not threading.Thread at once: its start() waits until the thread runs, and that may be a
            # while in an application that computes.
            _thread.start_new_thread(self._start, (here,))
        except RuntimeError:  # the interpreter exits, or there are too many
            here.running.release()
            return False
        return True

    def _arm_for_multiprocessing(self, here: _InProcess) -> None:
        """In a child that multiprocessing made, arrange for a drain: its exit skips atexit before Python 3.13."""
        # By getattr: a signal may have come in the middle of their import.
        parent_process = getattr(sys.modules.get("multiprocessing.process"), "parent_process", None)
        finalize = getattr(sys.modules.get("multiprocessing.util"), "Finalize", None)
        if here.is_armed or parent_process is None or finalize is None or parent_process() is None:
            return
        here.is_armed = True
        finalize(None, _shut_down, args=(weakref.ref(self), self._shutdown_timeout), exitpriority=100)

    def _start(self, here: _InProcess) -> None:
        if here is not self._here():
            return  # forked after acquire(), by a signal handler: this is the parent's work
        try:
            threading.Thread(target=self._run, args=(here,), name="otel-step-hook", daemon=True).start()
        except RuntimeError:  # there was room for one thread, this one
            self._run(here)

    def _run(self, here: _InProcess) -> None:
        """Run loops while there is work. The caller holds ``running``."""
        while True:
            here.runner = threading.get_ident()
            try:
                is_hopeless = not self._run_loop(here)
            finally:
                here.runner, here.loop = 0, None
                here.running.release()
                while not here.stopped.empty():
                    here.stopped.get().set()
            # What was put in since the last look has either started a thread or found the lock held; in that case the
            # work is ours.
            if is_hopeless or not self._has_work(here) or not here.running.acquire(blocking=False):
                return

    def _run_loop(self, here: _InProcess) -> bool:
        """Run one loop to its end. False where no other may follow: it failed, and the time to stop has come."""
        dispatch = here.dispatch
        try:
            here.woken_at = -math.inf
            here.loop = loop = EventLoop()
            run_in(loop, here.context, dispatch.run, dispatch.on_fault)
        # The top of the thread: it survives anything, and says so. Exporters and log handlers are known to exit.
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- see above
            if here.loop is None and not isinstance(error, OSError):
                dispatch.discard_all(error)
                return True
            return self._pause(here, error)
        if here.is_draining or dispatch.is_abandoned:
            dispatch.log.log_counts(all_of_them=True)
            here.is_draining = False
        return True

    def _pause(self, here: _InProcess, error: BaseException) -> bool:
        """Log *error* and wait: a loop that cannot run must not spin. False when the time to stop has come."""
        here.dispatch.log.log(logging.ERROR, "fault", f"a fault of otel-step-hook: {where(error)}")
        left = here.dispatch.stop_at - monotonic()
        time.sleep(max(0.0, min(left, _PAUSE_AFTER_FAULT)))
        return left > 0


def _hear(here: _InProcess) -> None:
    # In this order: what is put in after the first line wakes again.
    here.woken_at = -math.inf
    here.dispatch.look()


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


_workers: "weakref.WeakSet[Worker]" = weakref.WeakSet()
# In a forked child, what belongs to its parents, to its own exit: collected, their connections and tasks would complain
# that nobody has closed them, which is the parents' to do.
_inherited: list[_InProcess] = []


def _after_fork_in_child() -> None:
    for worker in tuple(_workers):
        worker.after_fork()


# One hook for all workers: hooks can never be unregistered.
if hasattr(os, "register_at_fork"):  # pragma: no branch -- Windows has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
