"""From the store to the receiver: owns every delivery between its first attempt and its last word.

Runs on the worker's event loop; nothing here is thread-safe.
"""

import asyncio
import contextlib
import logging
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from otel_step_hook.delivery.log import Trouble, log, printable, say, where
from otel_step_hook.delivery.memory import MemoryStore
from otel_step_hook.delivery.request import Headers, Headings, body
from otel_step_hook.delivery.retry import AttemptResult, RetryPolicy
from otel_step_hook.delivery.telemetry import Delivery, Telemetry
from otel_step_hook.settings import StepHookSettings

_STOP_MARGIN = 0.1  # share of the time to stop that is kept for telling of what could not be delivered
_CLOSE_TIME = 0.5  # seconds that closing all connections may take


class Flush(Protocol):
    """Set when everything that it waits for has had its last word; `threading.Event`, and asyncio's."""

    def set(self) -> None:
        """Wake whoever waits."""


class Sender(Protocol):
    """Makes one attempt at a time. The HTTP one is `transport.Lane`."""

    async def post(self, content: bytes, headers: Headers, timeout: float) -> AttemptResult:
        """Make one attempt within *timeout* seconds; failures of the world are results."""

    async def aclose(self) -> None:
        """Close what is open."""


@dataclass(slots=True)
class Switch:
    """Whether the receiver has switched deliveries off; whoever comes after a fault of the loop must know, too."""

    is_off: bool = False


class Dispatcher:
    """Takes events from the store, makes the attempts, waits between them, and says the last word."""

    def __init__(
        self,
        settings: StepHookSettings,
        store: MemoryStore,
        connect: Callable[[], Sender],
        telemetry: Telemetry,
        trouble: Trouble,
        *,
        switch: Switch,
    ) -> None:
        self._settings = settings
        self._store = store
        self._telemetry = telemetry
        self._trouble = trouble
        self._headings = Headings.from_settings(settings)
        self._policy = RetryPolicy(
            initial_backoff=settings.initial_backoff,
            max_backoff=settings.max_backoff,
            backoff_multiplier=settings.backoff_multiplier,
            give_up_after=settings.give_up_after,
        )
        # The lane used last is used next: sparse steps share one warm connection.
        self._idle: list[Sender] = []
        self._lanes: list[Sender] = []
        self._unmade = settings.concurrency
        self._connect = connect
        self._ready: deque[Delivery] = deque()
        self._waiting: dict[Delivery, asyncio.TimerHandle] = {}
        self._tasks: dict[asyncio.Task[None], Delivery] = {}
        self._accepted = 0
        self._unfinished: OrderedDict[Delivery, int] = OrderedDict()  # with the number of its acceptance, oldest first
        # What to set after which number: weakly, since whoever has waited long enough holds it no more.
        self._flushes: deque[tuple[int, weakref.ref[Flush]]] = deque()
        self._stop_at: float | None = None  # monotonic seconds
        self._is_out_of_time = False
        self._switch = switch
        self.stopped = asyncio.Event()

    def take_all(self) -> None:
        """Take every event from the store, and start on as many as there are lanes."""
        while self._store.unclaimed:
            self._accept(self._store.unclaimed.popleft())
        taken = 0
        while (submission := self._store.take()) is not None:
            deadline = submission.at + self._settings.give_up_after
            self._accept(Delivery(submission.event, submission.pipeline, b"", deadline))
            taken += 1
        if taken:
            self._telemetry.queue_size_changed(taken)
        self._start_lanes()

    def _accept(self, delivery: Delivery) -> None:
        self._accepted += 1
        self._unfinished[delivery] = self._accepted
        try:
            delivery.body = body(delivery.event, self._settings.payload)
        except Exception as error:  # noqa: BLE001 -- an event of which nothing can be told must not stop the others
            self._fault(delivery, error)
        else:
            self._ready.append(delivery)

    def _start_lanes(self) -> None:
        if self._is_out_of_time:
            self._discard_queued("shutdown")
        while self._ready and (self._idle or self._unmade):
            delivery = self._ready.popleft()
            try:
                lane = self._free_lane()
            except Exception as error:  # noqa: BLE001 -- a sender that cannot be made must not stop the others
                self._fault(delivery, error)
                continue
            task = asyncio.get_running_loop().create_task(self._work(lane, delivery))
            self._tasks[task] = delivery
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        delivery = self._tasks.pop(task)
        if task.cancelled():  # perhaps before its first step: `_work` never ran
            self._finish(delivery, "shutdown")

    def _free_lane(self) -> Sender:
        if self._idle:
            return self._idle.pop()
        lane = self._connect()
        self._lanes.append(lane)
        self._unmade -= 1
        return lane

    async def _work(self, lane: Sender, first: Delivery) -> None:
        delivery: Delivery | None = first
        while delivery is not None:
            try:
                await self._deliver(lane, delivery)
            except asyncio.CancelledError:  # only `_stop_now` cancels
                self._finish(delivery, "shutdown")
                raise
            except Exception as error:  # noqa: BLE001 -- the worker survives anything, and says so
                self._fault(delivery, error)
            delivery = self._ready.popleft() if self._ready else None
        self._idle.append(lane)

    def _fault(self, delivery: Delivery, error: Exception) -> None:
        self._trouble.tell(logging.ERROR, "fault", f"a fault of otel-step-hook: {where(error)}")
        self._finish(delivery, type(error).__name__)

    async def _deliver(self, lane: Sender, delivery: Delivery) -> None:
        """Make attempts until one has an answer, and decide what follows from it."""
        is_stale = True
        while is_stale:
            if self._switch.is_off:
                self._finish(delivery, "endpoint_disabled")
                return
            left = delivery.deadline - time.monotonic()
            if left <= 0:
                self._finish(delivery, delivery.error_type)
                return
            delivery.attempts += 1
            limit = min(self._settings.timeout, left)
            result = await self._attempt(lane, delivery, limit)
            # The receiver had closed the kept connection before it read a byte: nobody is to blame,
            # and the same lane, whose next connection is new, sends it again at once.
            is_stale = result.is_stale
        self._decide(delivery, result, limit)

    async def _attempt(self, lane: Sender, delivery: Delivery, timeout: float) -> AttemptResult:
        span = self._telemetry.start_attempt(delivery)
        result = None
        try:
            headers = self._headings.of_attempt(
                delivery.id,
                delivery.body,
                timestamp=int(time.time()),
                trace=self._telemetry.trace_headers(span),
            )
            result = await lane.post(delivery.body, headers, timeout)
        except Exception as error:
            result = AttemptResult(error_type=type(error).__name__)
            raise
        finally:
            self._telemetry.end_attempt(span, result)
        return result

    def _decide(self, delivery: Delivery, result: AttemptResult, limit: float) -> None:
        if result.directive == "disable":
            self._disable()
        if result.is_success:
            self._finish(delivery, None)
            return
        reason = delivery.error_type = result.error_type or "unknown"
        delivery.is_expected = result.is_expected
        self._tell_failure(delivery, result, limit)
        now = time.monotonic()
        elapsed = now - (delivery.deadline - self._settings.give_up_after)
        delay = (
            None
            if result.is_final
            else self._policy.next_delay(delivery.attempts, elapsed=elapsed, retry_after=result.retry_after)
        )
        if delay is None:
            self._finish(delivery, reason)
        elif self._stop_at is not None and now + delay >= self._stop_at:
            self._finish(delivery, "shutdown")
        else:
            self._waiting[delivery] = asyncio.get_running_loop().call_later(delay, self._again, delivery)

    def _again(self, delivery: Delivery) -> None:
        del self._waiting[delivery]
        self._ready.append(delivery)
        self._start_lanes()

    def _disable(self) -> None:
        if self._switch.is_off:
            return
        self._switch.is_off = True
        say(
            logging.ERROR,
            "the receiver answered 'webhook-delivery: disable': no webhook is sent any more, every step is discarded; "
            "settle it with the receiver, then restart this process",
        )
        self._discard_queued("endpoint_disabled")

    def _tell_failure(self, delivery: Delivery, result: AttemptResult, limit: float) -> None:
        level = logging.WARNING if result.is_expected else logging.ERROR
        told = f"answered {result.status_code}" if result.status_code else f"could not be reached: {result.error_type}"
        if result.error_type == "timeout":
            told = f"did not answer within {limit:.3g} s"
        step = printable(delivery.event.step_id)
        self._trouble.tell(
            level,
            ("attempt", result.error_type),
            f"the receiver {told} (step {step}, webhook {delivery.id}, attempt {delivery.attempts})",
        )

    def _finish(self, delivery: Delivery, error_type: str | None) -> None:
        """The last word on *delivery*: delivered, or discarded because of *error_type*."""
        if self._unfinished.pop(delivery, None) is None:  # it has had its last word
            return
        if error_type is None:
            self._tell_delivered(delivery)
        else:
            self._tell_discarded(delivery, error_type)
        self._telemetry.end_delivery(delivery, error_type)
        self._telemetry.queue_size_changed(-1)
        # Not before its spans have ended: a flush that returns promises that they can be exported.
        self._store.release()
        oldest = next(iter(self._unfinished.values()), self._accepted + 1)
        while self._flushes and self._flushes[0][0] < oldest:
            if (done := self._flushes.popleft()[1]()) is not None:
                done.set()
        if self._stop_at is not None:
            self.stop_if_idle()

    def _tell_delivered(self, delivery: Delivery) -> None:
        if log.isEnabledFor(logging.INFO):
            event = delivery.event
            text = "delivered step %s (%s, webhook %s, attempt %d)"
            say(logging.INFO, text, printable(event.step_id), event.outcome, delivery.id, delivery.attempts)

    def _tell_discarded(self, delivery: Delivery, error_type: str) -> None:
        # A receiver that is slow or refuses is expected now and then; anything else is an error (spec.md).
        level = logging.WARNING if delivery.is_expected else logging.ERROR
        step = printable(delivery.event.step_id)
        self._trouble.tell(
            level,
            ("discarded", error_type),
            f"discarded step {step}: {error_type} ({delivery.event.outcome}, webhook {delivery.id}, "
            f"attempts made: {delivery.attempts})",
        )

    def when_done(self, done: Flush) -> None:
        """Set *done* when everything taken so far has had its last word, unless nobody holds it any more."""
        if self._unfinished:
            waiting = [(number, flush) for number, flush in self._flushes if flush() is not None]
            self._flushes = deque([*waiting, (self._accepted, weakref.ref(done))])
        else:
            done.set()

    def stop_by(self, deadline: float) -> None:
        """Deliver what can be delivered by *deadline* (monotonic seconds), discard the rest, then be stopped."""
        if self._stop_at is None:
            now = time.monotonic()
            self._stop_at = deadline - (deadline - now) * _STOP_MARGIN
            loop = asyncio.get_running_loop()
            loop.call_later(max(0.0, self._stop_at - now), self._stop_now)
            for delivery, timer in tuple(self._waiting.items()):
                # loop.time() is the monotonic clock, so that both sides can be compared
                if timer.when() >= self._stop_at:
                    self._forget_timer(delivery)
                    self._finish(delivery, "shutdown")
        self.stop_if_idle()

    def _forget_timer(self, delivery: Delivery) -> None:
        self._waiting.pop(delivery).cancel()

    def _stop_now(self) -> None:
        self._is_out_of_time = True
        self._discard_queued("shutdown")
        for task in tuple(self._tasks):
            task.cancel()

    def _discard_queued(self, reason: str) -> None:
        """Discard everything that is not in flight."""
        for delivery in tuple(self._waiting):
            self._forget_timer(delivery)
            self._finish(delivery, reason)
        while self._ready:
            self._finish(self._ready.popleft(), reason)

    def stop_if_idle(self) -> None:
        """Be stopped when there is nothing to do."""
        if not self._unfinished:
            self.stopped.set()

    def unclaim(self) -> None:
        """Give back whatever has had no last word: the loop ends before its time, and the next one goes on with it."""
        for delivery in tuple(self._waiting):
            self._forget_timer(delivery)
        self._ready.clear()
        self._store.unclaimed.extend(self._unfinished)
        self._unfinished.clear()  # so that what is still in flight has no last word from here

    async def aclose(self) -> None:
        """Close the connections."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIME):
                await asyncio.gather(*self._tasks, return_exceptions=True)
                await asyncio.gather(*(lane.aclose() for lane in self._lanes), return_exceptions=True)
