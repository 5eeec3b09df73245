"""The worker thread of one endpoint in one process: owns its start, its event loops, wake-ups and waits."""

import functools
import logging
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

from otel_step_hook.delivery import library_logs, native
from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.dispatch import Dispatch
from otel_step_hook.delivery.latch import Latch
from otel_step_hook.delivery.log import where
from otel_step_hook.delivery.loop import EventLoop, WakeUp, run_in, uninstrumented
from otel_step_hook.delivery.store import Store

_PAUSE_AFTER_FAULT = 1.0  # seconds; a loop that cannot run must not spin
_POLL_INTERVAL = 0.5  # seconds after which a waiting thread checks that there is a worker thread to wait for
_RESTART_AFTER = 0.02  # seconds after which a thread that was started and does not run is started again
_UWSGI_MASTER = (
    "a step ended in uWSGI's master process, where no thread may run before it forks its workers: "
    "it is delivered only if this process becomes a worker; load the application in each worker, with lazy-apps"
)


class Runner:
    """Runs event loops of *dispatch* in a daemon thread while there is work, in one thread at a time.

    `wake`, `is_busy` and `has_work` may be called from any thread, from a signal handler and by the garbage collector
    at any moment. *before_start* is called before each start of the thread.
    """

    def __init__(self, store: Store, dispatch: Dispatch, before_start: Callable[[], None]) -> None:
        self.store = store
        self.dispatch = dispatch
        self.is_draining = False  # a shutdown waits for the loop to end and log all counts
        # State of the `Worker` that belongs to this process.
        self.late_at = -math.inf  # monotonic time when the counts of steps that ended after the shutdown were last due
        self.is_overdue = False  # it has been logged that the shutdown took longer than its limit
        self._before_start = before_start
        self._context = uninstrumented()  # for everything that the loops run
        library_logs.install()
        self._pid = os.getpid()
        self._is_inherited = False
        # Held by the thread that runs the loops. Threads that wait do not take it: KeyboardInterrupt can leave a lock
        # held, even by a `with` statement (python/cpython#148874).
        self._running = native.allocate_lock()
        self._ident = 0  # of the thread that holds `_running`
        self._wake_up: WakeUp | None = None  # while a loop runs
        self._starting_at = -math.inf  # monotonic time when a thread was started that does not run yet
        self._stopped: deque[Latch] = deque()  # to be set when the thread has ended

    def leave_to_parent(self) -> None:
        """In a forked child, stop using this object: it is the parent's."""
        self._is_inherited = True
        self.dispatch.stop_observing()

    def is_own_thread(self) -> bool:
        """Whether the calling thread is the worker thread."""
        return self._ident == native.get_ident()

    def is_busy(self) -> bool:
        """Whether a loop runs, or there is work for one."""
        return self._running.locked() or self.has_work()

    def has_work(self) -> bool:
        """Whether there is work for a loop."""
        dispatch = self.dispatch
        has_counts = self.is_draining and dispatch.log.has_counts()
        has_new = len(self.store) or dispatch.flushes or dispatch.drops.has_new()
        return bool(has_new or has_counts or dispatch.goes_on())

    def wake(self) -> bool:
        """Wake the loop, or start the thread when none runs. False when no thread can be started."""
        if not self._running.locked():
            return self._start_thread()
        # The thread looks for work after this line: when it is woken, when its loop begins, or after it unlocks.
        wake_up = self._wake_up
        if wake_up is not None:
            wake_up.send()
        return True

    def wait(self, latch: Latch, is_done: Callable[[], bool], deadline: float) -> bool:
        """Wait until *is_done*, but not beyond the monotonic time *deadline*; return whether it is.

        *is_done* is checked whenever *latch* is set. Does not wait when there can be no worker thread.
        """
        while not is_done():
            is_awake, left = self.wake(), deadline - monotonic()
            if left <= 0 or not is_awake or self._belongs_to_parent():
                break
            latch.wait(min(left, _POLL_INTERVAL))
        return is_done()

    def wait_for_end(self, deadline: float) -> None:
        """Wait until no work is left and the thread has ended, or until the monotonic time *deadline*."""
        # One latch for each call: a signal handler may call this while its own thread waits here.
        stopped = Latch()
        self._stopped.append(stopped)
        if not self.wait(stopped, lambda: not self.is_busy(), deadline) and monotonic() < deadline:
            self._run()  # no thread can be started: use this one

    def report_here(self, *, all_counts: bool) -> bool:
        """Record new counts on the calling thread, and log new lines, or *all_counts* of repeated lines, too.

        False when another thread runs the loops, which does all of that.
        """
        is_free = self._running.acquire(blocking=False)
        # When the interpreter finalizes, no other thread runs, even if one that has been stopped holds the lock.
        if not is_free and not sys.is_finalizing():
            return False
        try:
            self.dispatch.report(all_counts=all_counts)
        finally:
            if is_free:
                self._running.release()
        return True

    def _belongs_to_parent(self) -> bool:
        """Whether this process is a forked child of the one that made the object. The fork may come during any call."""
        return self._is_inherited or self._pid != os.getpid()

    def _start_thread(self) -> bool:
        now = monotonic()
        if now - self._starting_at <= _RESTART_AFTER:
            return True
        if _is_uwsgi_master():
            self.dispatch.log.log(logging.ERROR, "uwsgi", _UWSGI_MASTER)
            return False
        self._starting_at, is_started = now, False
        try:
            self._before_start()
            # Not threading.Thread here: its start() waits until the new thread runs. That takes long in an application
            # that computes, and for ever if the new thread runs out of memory (python/cpython#140746).
            # Where threads are greenlets, it would start one on the new thread.
            native.start_thread(self._run if native.is_patched() else self._start)
            is_started = True
        except RuntimeError:  # the interpreter exits, or there are too many threads
            return False
        finally:
            if not is_started:
                self._starting_at = -math.inf
        return True

    def _start(self) -> None:
        try:
            threading.Thread(target=self._run, name="otel-step-hook", daemon=True).start()
        except RuntimeError:  # there was room for one thread only, this one
            self._run()

    def _run(self) -> None:
        """Run loops while there is work, unless another thread runs them."""
        may_go_on = not self._belongs_to_parent()  # a signal handler may have forked in the middle of `_start_thread`
        while may_go_on:
            # First: an event that is put after this line starts a thread, or finds the lock held, and then the thread
            # that holds it does the work.
            self._starting_at = -math.inf
            if not self._running.acquire(blocking=False):
                return
            try:
                self._ident = native.get_ident()
                with library_logs.muted():
                    may_go_on = self._run_loop()
            finally:
                self._ident, self._wake_up = 0, None
                self._running.release()
                self._set_stopped()
            may_go_on = may_go_on and self.has_work()

    def _set_stopped(self) -> None:
        while True:
            try:
                self._stopped.popleft().set()
            except IndexError:  # not checked before: the next thread may be here at the same time
                return

    def _run_loop(self) -> bool:
        """Run one loop to its end. False when no other may follow: it has failed, and the time to stop has come."""
        dispatch, loop = self.dispatch, None
        try:
            loop = EventLoop()
            run_in(loop, self._context, functools.partial(self._run_dispatch, WakeUp()), dispatch.on_fault)
        # The top of the thread: it survives any error, and logs it. Exporters and log handlers raise SystemExit, too.
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- see above
            if loop is not None or isinstance(error, OSError):
                return self._pause(error)
            dispatch.discard_all(error)
        if self.is_draining or dispatch.is_abandoned:
            # First: a shutdown that begins after this line sets it again.
            self.is_draining = False
            dispatch.report(all_counts=True)
        return True

    async def _run_dispatch(self, wake_up: WakeUp) -> None:
        wake_up.call(self.dispatch.run_once)
        # Not earlier: now a wake-up may call `run_once`, which needs the attributes that `dispatch.run` sets first.
        self._wake_up = wake_up
        await self.dispatch.run()

    def _pause(self, error: BaseException) -> bool:
        """Log *error* and wait: a loop that cannot run must not spin. False when the time to stop has come."""
        self.dispatch.log.log(logging.ERROR, "fault", f"a fault of otel-step-hook: {where(error)}")
        self.dispatch.run_without_loop()
        left = self.dispatch.stop_at - monotonic()
        time.sleep(max(0.0, min(left, _PAUSE_AFTER_FAULT)))
        return left > 0


def _is_uwsgi_master() -> bool:
    """Whether uWSGI is going to fork its workers from this process, which has loaded the application.

    uWSGI forks without Python's knowledge (unbit/uwsgi#1995). A thread that waits for the interpreter's lock at that
    moment does not exist in the workers, and they can hang for ever when they release the lock.
    """
    uwsgi = sys.modules.get("uwsgi")
    # Mules and spoolers have the worker id 0, too, but are forks of the master. Without a master its id is 0.
    return uwsgi is not None and uwsgi.worker_id() == 0 and uwsgi.masterpid() in {0, os.getpid()}
