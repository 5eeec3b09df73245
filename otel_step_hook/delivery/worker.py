"""The worker: owns the thread, and what happens to it at fork and at exit."""

import _thread
import logging
import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from queue import SimpleQueue

from otel_step_hook.delivery.dispatch import Sender
from otel_step_hook.delivery.log import Trouble, say, where
from otel_step_hook.delivery.memory import MemoryStore, Submission
from otel_step_hook.delivery.telemetry import Instruments
from otel_step_hook.delivery.transport import connector
from otel_step_hook.delivery.turn import Bell, Inbox, Turn
from otel_step_hook.settings import StepHookSettings

_PAUSE_AFTER_FAULT = 1.0  # seconds; a loop that cannot run must not spin
_LOOK_AGAIN = 0.5  # seconds after which whoever waits makes sure that there is somebody to wait for
_LATE = 1.0  # seconds; once shut down, a thread is started at most this often to tell of late steps
_FLUSHES = 100  # calls of flush() that a loop which is stuck has not heard of; further ones return at once


class _Generation:
    """What belongs to one process: a forked child has its own."""

    def __init__(self, max_queue_size: int) -> None:
        self.inbox = Inbox(MemoryStore(max_queue_size))
        self.trouble = Trouble()
        self.running = threading.Lock()  # held by whoever runs the loop; tried, never waited for
        self.runner = 0  # the id of its thread
        self.turn: Turn | None = None
        self.bell: Bell | None = None
        self.late_at = -math.inf  # monotonic time when a late step woke the loop
        self.is_armed = False


class _Limit:
    """One shutdown, shared by all who ask for it until it is over; infinite before the first."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline  # monotonic seconds
        self.is_over = deadline == math.inf
        self.is_told = False  # that it has taken longer
        # One event for each caller: a signal handler may call in the middle of its own thread's wait.
        self._waiting: SimpleQueue[threading.Event] = SimpleQueue()

    def when_over(self) -> threading.Event:
        """An event that is set when everything has had its last word, and the connections are closed."""
        over = threading.Event()
        self._waiting.put(over)
        return over

    def end(self) -> None:
        """It is over; for the thread that runs the loop."""
        self.is_over = True
        while not self._waiting.empty():
            self._waiting.get().set()


class Worker:
    """Delivers what is submitted, on an event loop in a daemon thread that starts on first use.

    `submit`, `drop` and `tell_fault` may be called from any thread, from a signal handler and by the
    garbage collector at any moment: they take no lock that their own thread could hold already.
    *connect* is called once, and returns what makes senders. Raises `ConfigurationError` for settings
    that cannot be used.
    """

    def __init__(
        self,
        settings: StepHookSettings,
        connect: Callable[[StepHookSettings], Callable[[], Sender]] = connector,
    ) -> None:
        # Now, not in the thread: what cannot be used is told at start-up, and what takes locks of its
        # own, once, is not left locked in a child that is forked at that moment.
        self._connect = connect(settings)
        Instruments.of_this_process()
        self._settings = settings
        self._limit = _Limit(math.inf)
        self._own = _Generation(settings.max_queue_size)
        _workers.add(self)

    def submit(self, submission: Submission) -> None:
        """Take *submission* for delivery, or drop it, counted and told, when shut down or full."""
        if self.is_closed():
            self.drop("shutdown")
        elif self._own.inbox.store.put(submission):
            self._wake()
        else:
            self.drop("queue_full")

    def drop(self, reason: str, error: Exception | None = None) -> None:
        """Have the worker's thread count and tell that a step is lost, perhaps because of *error*."""
        self._own.inbox.drops[reason].add(error)
        self._wake_for_news()

    def tell_fault(self, error: Exception) -> None:
        """Have the worker's thread tell of *error*, which lost nothing."""
        self._own.inbox.faults.add(error)
        self._wake_for_news()

    def _wake_for_news(self) -> None:
        own, now = self._own, time.monotonic()
        if not self.is_closed():
            self._wake()
        elif now - own.late_at >= _LATE:
            own.late_at = now
            self._wake()

    def flush(self, timeout: float) -> bool:
        """Wait up to *timeout* seconds until everything submitted before has had its last word."""
        own = self._own
        if not own.inbox.store.pending:
            return True
        if own.runner == threading.get_ident() or own.inbox.flushes.qsize() >= _FLUSHES:
            return False
        done = threading.Event()
        own.inbox.flushes.put(done)
        # Where the loop has died meanwhile nobody sets it.
        return self._await(done, lambda: done.is_set() or not own.inbox.store.pending, time.monotonic() + timeout)

    def shutdown(self, timeout: float) -> None:
        """Take nothing more, deliver for up to *timeout* seconds, discard the rest visibly.

        Idempotent, from any thread. Calls share the limit of the first until everything has had its
        last word: a process whose exit handlers all shut down waits once.
        """
        own, limit = self._own, self._limit
        if limit.is_over:
            limit = self._limit = _Limit(time.monotonic() + timeout)
        # In this order: a turn takes what it finds.
        if not own.inbox.has_work() and own.turn is None and not own.trouble.has_rest():
            limit.is_over = True
            return
        if own.runner == threading.get_ident():
            self._wake()
            return
        if time.monotonic() >= limit.deadline:  # nobody waits any more, however often it is called
            self._wake()
        # Not this limit's: another thread may have put its own in its place at the same moment.
        elif not self._await(limit.when_over(), lambda: self._limit.is_over, limit.deadline):
            self._run_alone(own, limit)
        left = own.inbox.store.pending
        if left and not self._limit.is_over and not limit.is_told:
            limit.is_told = True
            say(logging.ERROR, "shutdown took its %g s; %d steps have no last word", timeout, left)

    def _run_alone(self, own: _Generation, limit: _Limit) -> None:
        """Do the work on this thread, if there is time left: no other can be started."""
        if time.monotonic() < limit.deadline and own.running.acquire(blocking=False):
            self._run(own)

    def _await(self, event: threading.Event, is_done: Callable[[], bool], deadline: float) -> bool:
        """Wait until *is_done* or the monotonic time *deadline*, if anybody can do it; *event* says when to look."""
        while not is_done():
            is_awake, left = self._wake(), deadline - time.monotonic()
            if left <= 0 or not is_awake:
                break
            event.wait(min(left, _LOOK_AGAIN))
        return is_done()

    def _stop_by(self) -> float:
        return self._limit.deadline

    def is_closed(self) -> bool:
        """Whether what is submitted now is dropped."""
        return self._limit.deadline < math.inf

    def _wake(self) -> bool:
        """Have the loop look at its inbox; start one when there is none. False when none can be started."""
        own = self._own
        if not own.running.acquire(blocking=False):
            # Whoever holds it looks at the inbox after this: when the bell rings, or before there is
            # one, or after having given the lock back.
            bell = own.bell
            if bell is not None:
                bell.ring()
            return True
        self._arm_for_multiprocessing(own)
        try:
            # Not threading.Thread at once: its start() waits until the thread runs, and that may be a
            # while in an application that computes.
            _thread.start_new_thread(self._start, (own,))
        except RuntimeError:  # the interpreter exits, or there are too many
            own.running.release()
            return False
        return True

    def _arm_for_multiprocessing(self, own: _Generation) -> None:
        """In a child that multiprocessing made, arrange for a drain: its exit skips atexit before Python 3.13."""
        # By getattr: a signal may have come in the middle of their import.
        parent_process = getattr(sys.modules.get("multiprocessing.process"), "parent_process", None)
        finalize = getattr(sys.modules.get("multiprocessing.util"), "Finalize", None)
        if own.is_armed or parent_process is None or finalize is None or parent_process() is None:
            return
        own.is_armed = True
        finalize(None, _shut_down, args=(weakref.ref(self), self._settings.shutdown_timeout), exitpriority=100)

    def _start(self, own: _Generation) -> None:
        if own is not self._own:
            return  # forked between acquire() and here, by a signal handler: this is the parent's work
        try:
            threading.Thread(target=self._run, args=(own,), name="otel-step-hook", daemon=True).start()
        except RuntimeError:  # there was room for one thread, this one
            self._run(own)

    def _run(self, own: _Generation) -> None:
        """Take turns while there is work. Whoever calls this holds ``running``."""
        while True:
            own.runner = threading.get_ident()
            try:
                is_hopeless = self._take_turn(own)
            finally:
                own.runner = 0
                own.running.release()
            # Whoever put something in since the last look has either started a thread or found the
            # lock held; in that case the work is ours.
            is_done = self._limit.is_over and not own.inbox.has_work()
            if is_hopeless or is_done or not own.running.acquire(blocking=False):
                return

    def _take_turn(self, own: _Generation) -> bool:
        """Whether another turn makes no sense: this one has failed, and the time to stop has come."""
        try:
            bell = Bell()
            own.turn = Turn(self._settings, self._connect, own.inbox, own.trouble, self._stop_by)
            own.bell = bell
            own.turn.run(bell)
            self._end_limit(own)
        # The top of the thread: it survives anything, and says so. Exporters and log handlers are known to exit.
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- see above
            return not self._pause(own, error)
        finally:
            own.turn = own.bell = None
        return False

    def _end_limit(self, own: _Generation) -> None:
        """A shutdown is over when the loop has ended, unless steps have come in meanwhile: they are counted first."""
        limit = self._limit
        is_late = time.monotonic() >= limit.deadline
        if not limit.is_over and (is_late or not own.inbox.has_work()):
            own.trouble.tell_rest(all_of_it=True)
            limit.end()

    def _pause(self, own: _Generation, error: BaseException) -> bool:
        """Tell of *error* and wait: a loop that cannot run must not spin. False when the time to stop has come."""
        own.trouble.tell(logging.ERROR, "fault", f"a fault of otel-step-hook: {where(error)}")
        left = self._limit.deadline - time.monotonic()
        time.sleep(max(0.0, min(left, _PAUSE_AFTER_FAULT)))
        return left > 0

    def after_fork(self) -> None:
        """In a forked child: an empty queue, no thread, no connections. What the parent queued is the parent's."""
        if self._own.turn is not None:
            _inherited.append(self._own.turn)
        self._own = _Generation(self._settings.max_queue_size)
        self._limit = _Limit(self._limit.deadline)


def _shut_down(worker: "weakref.ref[Worker]", timeout: float) -> None:
    alive = worker()
    if alive is not None:
        alive.shutdown(timeout)


_workers: "weakref.WeakSet[Worker]" = weakref.WeakSet()
# In a forked child, the loops of its parents, one for each, to its own exit: collected, their connections and tasks
# would complain that nobody has closed them, which is the parents' to do.
_inherited: list[Turn] = []


def _after_fork_in_child() -> None:
    for worker in tuple(_workers):
        worker.after_fork()


# One hook for all workers: hooks can never be unregistered.
if hasattr(os, "register_at_fork"):  # pragma: no branch -- Windows has no fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
