"""One turn of the worker's thread: owns everything that lives and dies with one event loop."""

import asyncio
import contextlib
import contextvars
import itertools
import logging
import math
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from opentelemetry import context as otel_context

from otel_step_hook.delivery.dispatch import Dispatcher, Sender, Switch
from otel_step_hook.delivery.log import Trouble, where
from otel_step_hook.delivery.loop import EventLoop
from otel_step_hook.delivery.memory import MemoryStore
from otel_step_hook.delivery.telemetry import Telemetry
from otel_step_hook.settings import StepHookSettings

# Keep the process's HTTP instrumentations from adding spans of their own and replacing our
# `traceparent`. Private in OpenTelemetry's API, and the only way.
_NAMES = ("_SUPPRESS_HTTP_INSTRUMENTATION_KEY", "_SUPPRESS_INSTRUMENTATION_KEY")
_SUPPRESS = tuple(filter(None, (getattr(otel_context, name, None) for name in _NAMES)))
_RINGS = 4096  # bytes read from the bell at once, and all the same
_RING_AGAIN = 0.02  # seconds after which a bell that nobody has heard is rung again
_CLEAR_TIME = 0.5  # seconds that tasks which are no longer wanted get to end

_DROPPED = {
    "queue_full": "STEP_COMPLETE_MAX_QUEUE_SIZE events are waiting; the newest are dropped",
    "shutdown": "the step ended after shutdown()",
    "unreadable": "the span could not be read",
}


class Tally:
    """Counts from any thread, signal handler or finaliser, without a lock and in no more memory; read by one thread."""

    __slots__ = ("_count", "_detail", "_reads", "_taken", "has_new")

    def __init__(self) -> None:
        self._count = itertools.count()  # its next() is atomic, and the only way to read it
        self._reads = 0
        self._taken = 0
        self._detail = ""
        self.has_new = False

    def add(self, error: Exception | None = None) -> None:
        """Count one; of the first since `take` it is kept where *error* was raised."""
        if error is not None and not self._detail:
            self._detail = where(error)
        next(self._count)
        self.has_new = True

    def take(self) -> tuple[int, str]:
        """How many have come since the last time, and the place of the first of them."""
        self.has_new = False  # first: what comes in from now on sets it again
        detail, self._detail = self._detail, ""
        in_all = next(self._count) - self._reads
        self._reads += 1
        new, self._taken = in_all - self._taken, in_all
        return new, detail


@dataclass(slots=True)
class Inbox:
    """What other threads put in for the loop. Nothing in it takes a lock that a signal handler could need again."""

    store: MemoryStore
    drops: dict[str, Tally] = field(default_factory=lambda: {reason: Tally() for reason in _DROPPED})
    faults: Tally = field(default_factory=Tally)  # that lost nothing
    flushes: SimpleQueue[threading.Event] = field(default_factory=SimpleQueue)
    switch: Switch = field(default_factory=Switch)

    def has_work(self) -> bool:
        """Whether there is anything that no loop has taken."""
        has_news = self.faults.has_new or any(drops.has_new for drops in self.drops.values())
        return bool(has_news or self.store.waiting or self.flushes.qsize())


class Bell:
    """Wakes a loop from any thread, signal handler or finaliser; after the loop's end it wakes nobody.

    A socket, not ``call_soon_threadsafe()``: while the loop is busy or stuck, that one would keep an
    entry, and with it some hundred bytes, for each of the steps that end meanwhile.
    """

    _rung_at = -math.inf  # monotonic seconds; not any more, once the loop has heard it

    def __init__(self) -> None:
        self._rope, self.heard = self._ends = socket.socketpair()
        self._rope.setblocking(False)  # noqa: FBT003 -- the standard library's signature
        self.heard.setblocking(False)  # noqa: FBT003 -- see above

    def ring(self) -> None:
        """Wake the loop, if nobody has since it woke last. Never blocks."""
        now = time.monotonic()
        # Ctrl-C may come between the next two lines, once: so it is rung again after a while in any case.
        if now - self._rung_at > _RING_AGAIN:
            self._rung_at = now
            with contextlib.suppress(BlockingIOError):  # so many have rung that it will wake anyway
                self._rope.send(b"\0")

    def hear(self) -> None:
        """Take note that it has rung. Whoever has put something in before this need not ring again."""
        # In this order: what is put in between the two rings again. And both before the look at what is
        # there: after it, a wake-up could be lost.
        self.heard.recv(_RINGS)
        self._rung_at = -math.inf

    def __del__(self) -> None:
        # Not before: whoever still rings must not find that the number has become somebody else's socket.
        for end in getattr(self, "_ends", ()):  # none if there was no descriptor left
            end.close()


class Turn:
    """One event loop, from its first event to the moment when nothing is left to do. Made and run by one thread.

    *connect* makes the senders; *stop_by* says by which monotonic time to stop, infinity if not at all.
    """

    def __init__(
        self,
        settings: StepHookSettings,
        connect: Callable[[], Sender],
        inbox: Inbox,
        trouble: Trouble,
        stop_by: Callable[[], float],
    ) -> None:
        self._inbox = inbox
        self._stop_by = stop_by
        self._trouble = trouble
        self._telemetry = Telemetry(settings.webhook or "", trouble)
        self._dispatcher = Dispatcher(settings, inbox.store, connect, self._telemetry, trouble, switch=inbox.switch)
        self._fault: BaseException | None = None
        self._loop = EventLoop()
        self._loop.set_exception_handler(self._on_fault)

    def run(self, bell: Bell) -> None:
        """Run the loop until it has been told to stop and nothing is left; look at the inbox when *bell* rings.

        Raises what the loop could not go on after. Then what it had taken is due at once in the next turn, and
        whoever waits for a flush waits in vain.
        """
        with contextlib.ExitStack() as ending:  # every part of it is done, whatever the others raise
            ending.callback(self._loop.close)
            ending.callback(lambda: self._loop.run_until_complete(self._clear()))
            ending.callback(self._dispatcher.unclaim)
            # First of all, lest what still comes in is taken by a loop that does nothing with it any more.
            ending.callback(self._loop.remove_reader, bell.heard)
            context = contextvars.Context()
            context.run(_suppress_instrumentation)
            self._loop.run_until_complete(self._loop.create_task(self._main(bell), context=context))

    async def _main(self, bell: Bell) -> None:
        self._trouble.use(self._loop.call_later)
        self._loop.add_reader(bell.heard, self._hear, bell)
        try:
            self._look()
            await self._dispatcher.stopped.wait()
        finally:
            self._loop.remove_reader(bell.heard)  # what comes in from now on is the next turn's
            self._trouble.use(None)
        if self._fault is not None:
            raise self._fault

    def _hear(self, bell: Bell) -> None:
        bell.hear()
        self._look()

    def _look(self) -> None:
        # The flushes are taken first and begin last: each waits for what was submitted before it.
        flushes = [self._inbox.flushes.get() for _ in range(self._inbox.flushes.qsize())]
        self._dispatcher.take_all()
        self._tell_news()
        for done in flushes:
            self._dispatcher.when_done(done)
        if (deadline := self._stop_by()) < math.inf:
            self._dispatcher.stop_by(deadline)

    def _tell_news(self) -> None:
        # Counted together: an application that ends steps faster than they are told one by one would
        # leave no time for anything else.
        for reason, drops in self._inbox.drops.items():
            count, detail = drops.take()
            if count:
                self._telemetry.dropped(reason, count)
                told = f"dropped a step ({reason}): {detail or _DROPPED[reason]}"
                self._trouble.tell(logging.ERROR, ("dropped", reason), told, count)
        count, detail = self._inbox.faults.take()
        if count:
            self._tell_fault(detail, count)

    def _tell_fault(self, told: str, times: int = 1) -> None:
        self._trouble.tell(logging.ERROR, "fault", f"a fault of otel-step-hook: {told}", times)

    def _on_fault(self, _: asyncio.AbstractEventLoop, circumstances: dict[str, Any]) -> None:
        """Take what asyncio would log. After a fault in a callback of ours nothing is sure: end, and start anew."""
        error = circumstances.get("exception")
        if "handle" in circumstances:
            self._fault = error
            self._dispatcher.stopped.set()
        else:
            self._tell_fault(where(error) if error is not None else circumstances["message"])

    async def _clear(self) -> None:
        """End the tasks that are left: those that a fault has left, and a look-up that hangs."""
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLEAR_TIME)
        await self._dispatcher.aclose()


def _suppress_instrumentation() -> None:
    for key in _SUPPRESS:
        otel_context.attach(otel_context.set_value(key, value=True))
