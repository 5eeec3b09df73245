"""The thread of one endpoint in one process: owns its start, its loops, and how it is woken and waited for."""

import _thread
import functools
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.dispatch import Dispatch
from otel_step_hook.delivery.latch import Latch
from otel_step_hook.delivery.log import where
from otel_step_hook.delivery.loop import EventLoop, run_in, uninstrumented
from otel_step_hook.delivery.store import Store

_PAUSE_AFTER_FAULT = 1.0  # seconds; a loop that cannot run must not spin
_POLL_INTERVAL = 0.5  # seconds after which those who wait make sure that there is a thread to wait for
_RESTART_AFTER = 0.02  # seconds after which a thread that has not begun is started again


class Runner:
    """Runs loops of *dispatch* in a daemon thread while there is work, one thread at a time.

    `wake`, `is_busy` and `has_work` may be called from any thread, from a signal handler and by the garbage collector
    at any moment. *before_start* is called before each start of the thread.
    """

    def __init__(self, store: Store, dispatch: Dispatch, before_start: Callable[["Runner"], None]) -> None:
        self.store = store
        self.dispatch = dispatch
        self.is_draining = False  # a shutdown waits for the end of a loop, which logs all counts
        # What the worker remembers of this process.
        self.late_at = -math.inf  # monotonic time when a late step woke the loop
        self.is_armed = False  # for the exit of a child of multiprocessing
        self.is_overdue = False  # it has been logged that the shutdown took longer than its limit
        self._before_start = before_start
        self._context = uninstrumented()  # of all that the loops run
        self._pid = os.getpid()
        self._is_inherited = False
        # Held by the thread that runs the loops, and taken by nobody else: one that Ctrl-C reaches could keep it.
        self._running = threading.Lock()
        self._ident = 0  # of the thread that holds it
        self._loop: EventLoop | None = None  # while it runs
        self._starting_at = -math.inf  # monotonic time when a thread was started that has not begun yet
        self._stopped: deque[Latch] = deque()  # to be set when the thread has ended

    def leave_to_parent(self) -> None:
        """In a forked child, keep this as it is: it is the parent's."""
        self._is_inherited = True
        self.dispatch.stop_observing()

    def is_own_thread(self) -> bool:
        """Whether the calling thread runs the loops."""
        return self._ident == threading.get_ident()

    def is_busy(self) -> bool:
        """Whether a loop runs, or has a reason to."""
        return self._running.locked() or self.has_work()

    def has_work(self) -> bool:
        """Whether there is anything to do for a loop."""
        dispatch = self.dispatch
        has_counts = self.is_draining and dispatch.log.has_counts()
        return bool(len(self.store) or dispatch.flushes or dispatch.drops.has_new() or has_counts)

    def wake(self) -> bool:
        """Have the loop look; start the thread when there is none. False when none can be started."""
        if not self._running.locked():
            return self._start_thread()
        # The thread looks after this: when it hears of it, when its loop begins, or when it has given the lock back.
        loop = self._loop
        if loop is not None:
            loop.wake(self.dispatch.run_once, self._context)
        return True

    def wait(self, latch: Latch, is_done: Callable[[], bool], deadline: float) -> bool:
        """Wait until *is_done* or the monotonic time *deadline*, if anybody can do it; *latch* says when to look."""
        while not is_done():
            is_awake, left = self.wake(), deadline - monotonic()
            if left <= 0 or not is_awake or self._is_parents():
                break
            latch.wait(min(left, _POLL_INTERVAL))
        return is_done()

    def wait_for_end(self, deadline: float) -> None:
        """Wait until nothing is left and the thread has ended, or until the monotonic time *deadline*."""
        # One latch for each caller: a signal handler may call in the middle of its own thread's wait.
        stopped = Latch()
        self._stopped.append(stopped)
        if not self.wait(stopped, lambda: not self.is_busy(), deadline) and monotonic() < deadline:
            self._run()  # no thread can be started: on this one

    def _is_parents(self) -> bool:
        """Whether this process is a child that was forked in the middle of a call."""
        return self._is_inherited or self._pid != os.getpid()

    def _start_thread(self) -> bool:
        now = monotonic()
        if now - self._starting_at <= _RESTART_AFTER:
            return True
        self._starting_at, is_started = now, False
        try:
            self._before_start(self)
            # Not threading.Thread at once: its start() waits until the thread runs, and that may be a
            # while in an application that computes.
            _thread.start_new_thread(self._start, ())
            is_started = True
        except RuntimeError:  # the interpreter exits, or there are too many
            return False
        finally:
            if not is_started:
                self._starting_at = -math.inf
        return True

    def _start(self) -> None:
        if self._is_parents():
            return  # forked before the start, by a signal handler
        try:
            threading.Thread(target=self._run, name="otel-step-hook", daemon=True).start()
        except RuntimeError:  # there was room for one thread, this one
            self._run()

    def _run(self) -> None:
        """Run loops while there is work, unless another thread does."""
        may_go_on = True
        while may_go_on:
            # In this order: what is put in after the first line starts a thread, or finds the lock held. In that case
            # the work is done by who holds it.
            self._starting_at = -math.inf
            if not self._running.acquire(blocking=False):
                return
            try:
                self._ident = threading.get_ident()
                may_go_on = self._run_loop()
            finally:
                self._ident, self._loop = 0, None
                self._running.release()
                self._set_stopped()
            may_go_on = may_go_on and self.has_work()

    def _set_stopped(self) -> None:
        while True:
            try:
                self._stopped.popleft().set()
            except IndexError:  # not asked before: the next thread may be here at the same time
                return

    def _run_loop(self) -> bool:
        """Run one loop to its end. False where no other may follow: it failed, and the time to stop has come."""
        dispatch, loop = self.dispatch, None
        try:
            loop = EventLoop()
            run_in(loop, self._context, functools.partial(self._run_dispatch, loop), dispatch.on_fault)
        # The top of the thread: it survives anything, and says so. Exporters and log handlers are known to exit.
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- see above
            if loop is not None or isinstance(error, OSError):
                return self._pause(error)
            dispatch.discard_all(error)
        if self.is_draining or dispatch.is_abandoned:
            # In this order: a shutdown that begins now asks for it again.
            self.is_draining = False
            dispatch.report_all()
        return True

    async def _run_dispatch(self, loop: EventLoop) -> None:
        # Not before: what wakes the loop calls `run_once`, which needs what `run` begins with.
        self._loop = loop
        await self.dispatch.run()

    def _pause(self, error: BaseException) -> bool:
        """Log *error* and wait: a loop that cannot run must not spin. False when the time to stop has come."""
        self.dispatch.log.log(logging.ERROR, "fault", f"a fault of otel-step-hook: {where(error)}")
        self.dispatch.run_without_loop()
        left = self.dispatch.stop_at - monotonic()
        time.sleep(max(0.0, min(left, _PAUSE_AFTER_FAULT)))
        return left > 0
