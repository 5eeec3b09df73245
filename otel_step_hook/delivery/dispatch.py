"""The loop of one endpoint's worker: owns when it looks for work, and when it ends.

`Dispatch.run` runs on the worker's event loop. Other methods are for the same thread, unless they say otherwise.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any

from otel_step_hook.delivery.attempts import Attempts
from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.delivery_log import DeliveryLog
from otel_step_hook.delivery.drops import DropCounts
from otel_step_hook.delivery.latch import Flushes
from otel_step_hook.delivery.log import RateLimitedLog, where
from otel_step_hook.delivery.metrics import EndpointState, ObservedEndpoint
from otel_step_hook.delivery.model import Endpoint
from otel_step_hook.delivery.retry import RetryPolicy
from otel_step_hook.delivery.sender import Sender
from otel_step_hook.delivery.store import Store
from otel_step_hook.delivery.telemetry import Telemetry

_STOP_MARGIN = 0.1  # share of the shutdown's time that is kept to record discarded deliveries
_LOG_INTERVAL = 1.0  # seconds; while counts wait to be logged, an idle loop does not end, and looks this often
IDLE = 30.0  # seconds without work after which the loop ends; with a durable store, it looks for work this often
_MOVE_TIME = 1.0  # seconds that a process which exits waits for an attempt to end, if what waits survives it

MakeSender = Callable[[Telemetry], Sender]


class Dispatch:
    """Discards expired deliveries, begins attempts, answers flushes, and reports drops, whenever there is work.

    One `Dispatch` serves all event loops of its worker, one after the other. *stop_at* is when every delivery has to be
    finished, in monotonic seconds; *is_abandoned* says that no more events will be submitted. Any thread may set
    them, and use *drops* and *flushes*, and then wakes the loop.
    """

    def __init__(
        self, endpoint: Endpoint, store: Store, policy: RetryPolicy, make_sender: MakeSender, *, concurrency: int
    ) -> None:
        self.log = RateLimitedLog()
        self.drops = DropCounts(endpoint.name)
        self.flushes = Flushes()
        self.stop_at = math.inf
        self.is_abandoned = False
        self._store = store
        self._give_up_after = policy.give_up_after
        self._make_sender = make_sender
        self._telemetry = Telemetry(endpoint, self.log)
        log = DeliveryLog(endpoint, self.log)
        self._attempts = Attempts(
            endpoint, store, policy, self._telemetry, log, concurrency=concurrency, on_end=self._run_soon
        )
        self._runs_soon = False
        self._stopping_since = self._last_moment = math.inf  # monotonic seconds
        self._timer: asyncio.TimerHandle | None = None
        self._fault: BaseException | None = None  # of one of our callbacks, after which the loop ends
        self._observed: ObservedEndpoint | None = ObservedEndpoint(endpoint.name, self._state)

    def stop_observing(self) -> None:
        """Leave this endpoint out of the metrics of this process: in a forked child, it is the parent's."""
        self._observed = None

    def _state(self) -> EndpointState:
        counts = self._store.counts()
        # Without deliveries there are no attempts, and the state of the endpoint is unknown.
        is_open = self._attempts.is_circuit_open and counts.waiting > 0
        return EndpointState(counts, self._store.oldest_age(), is_open)

    async def run(self) -> None:
        """Deliver until there is nothing left to do. Raises the exception of a callback that failed."""
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._timer = self._fault = None
        self._runs_soon = False
        self._attempts.open(self._make_sender(self._telemetry))
        self.log.use_timer(loop.call_later)
        try:
            self.run_once()
            await self._ended
            if self._fault is not None:
                raise self._fault
        finally:
            self.log.use_timer(None)
            await self._attempts.close()
            if self._is_stopping():
                self._store.close()

    def on_fault(self, circumstances: dict[str, Any]) -> None:
        """Log a fault, as asyncio's exception handler. A failed callback ends the loop: the state is unknown."""
        error = circumstances.get("exception")
        if "handle" in circumstances:
            self._fault = error
            if not self._ended.done():
                self._ended.set_result(None)
        else:
            place = where(error) if error is not None else circumstances["message"]
            self.log.log(logging.ERROR, "fault", f"a fault of otel-step-hook: {place}")

    def run_without_loop(self) -> None:
        """Do the work that needs no loop, while none can run: discard expired deliveries, and report all new counts."""
        self.drops.report(self._telemetry, self.log)
        while self._attempts.discard_older(self._give_up_after, None):
            pass
        self.flushes.set_flushed(self._store.is_flushed)
        self.log.log_counts()  # without a loop there is no timer

    def discard_all(self, error: BaseException) -> None:
        """Discard all deliveries: *error* shows that no event loop can be made, since sockets are forbidden."""
        self.log.log(logging.ERROR, "no loop", f"no event loop can be made: {where(error)}; steps are discarded")
        while self._attempts.discard_older(0.0, type(error).__name__):
            pass
        self.run_without_loop()

    def report(self, *, all_counts: bool) -> None:
        """Record and log the counts of other threads, and log *all_counts* of repeated lines."""
        self.drops.report(self._telemetry, self.log)
        if all_counts:
            self.log.log_counts(all_of_them=True)

    def _run_soon(self) -> None:
        """Run once after all attempts that end now: a durable store then writes their results together."""
        if not self._runs_soon:
            self._runs_soon = True
            asyncio.get_running_loop().call_soon(self.run_once)

    def _is_stopping(self) -> bool:
        return self.stop_at < math.inf or self.is_abandoned

    def _is_left_to_others(self) -> bool:
        """Whether no attempt begins any more: what waits is left to other processes, or to the next one."""
        return self._store.is_durable and self._is_stopping()

    def goes_on(self) -> bool:
        """Whether there may be work although no event was put: an earlier process has left it. From any thread."""
        return self._store.is_durable and not self._is_stopping()

    def run_once(self) -> None:
        """Do everything that can be done now. Called after each wake-up and each attempt, and by the timer."""
        if self._ended.done():
            return
        self._runs_soon = False
        now, attempts = monotonic(), self._attempts
        self.drops.report(self._telemetry, self.log)
        if self._is_stopping() or attempts.hopeless_error:
            self._store.next_due()  # makes durable what can be, so that `is_durable` is true of all that waits
        self._discard_expired(now)
        if now < attempts.stop_at and not (
            attempts.is_disabled or attempts.hopeless_error or self._is_left_to_others()
        ):
            attempts.begin(now)
        self.flushes.set_flushed(self._store.is_flushed)
        self._end_or_sleep(now)

    def _discard_expired(self, now: float) -> None:
        """Discard expired deliveries.

        Discards all of them when the endpoint is disabled, and those that would be lost with the process when too
        little time is left for another attempt.
        """
        attempts = self._attempts
        self._set_stop(now)
        if attempts.is_disabled:
            has_discarded = attempts.discard_older(0.0, "endpoint_disabled")
        elif self._is_over(now):
            has_discarded = attempts.discard_lost("shutdown")
        elif attempts.hopeless_error and not self._store.is_durable:
            has_discarded = attempts.discard_lost(attempts.hopeless_error)
        else:
            has_discarded = attempts.discard_older(self._give_up_after, None)
        if has_discarded:
            self._run_soon()
        if now >= attempts.stop_at:
            attempts.cancel()

    def _is_over(self, now: float) -> bool:
        """Whether the process ends before another attempt could begin, while what waits may be in memory alone."""
        is_too_late = now >= self._attempts.stop_at or (self.stop_at < math.inf and self._attempts.is_too_late(now))
        return is_too_late and not self._store.is_durable

    def _set_stop(self, now: float) -> None:
        """Find out until when attempts may go on."""
        attempts = self._attempts
        if self.stop_at == math.inf:
            return
        if attempts.stop_at == math.inf:
            self._stopping_since = now
            attempts.stop_at = self._last_moment = self.stop_at - (self.stop_at - now) * _STOP_MARGIN
        if self._store.is_durable:
            attempts.stop_at = min(self._last_moment, max(self._stopping_since, attempts.idle_since) + _MOVE_TIME)

    def _end_or_sleep(self, now: float) -> None:
        """End the loop when there is nothing to do, else run again when there may be."""
        attempts = self._attempts
        is_left = attempts.hopeless_error or self._is_left_to_others() or self._is_over(now)
        due = None if is_left else self._store.next_due()
        if due is None and not attempts.are_in_flight:
            sleep = self._idle_time_left(now - attempts.idle_since)
            if attempts.hopeless_error and len(self._store):  # the database may be usable again
                sleep = max(sleep, _LOG_INTERVAL)
            if sleep <= 0 or self._is_stopping():
                self._ended.set_result(None)
                return
        else:
            sleep = math.inf if due is None else max(due, attempts.wait(now))
        if self._store.is_durable:
            sleep = min(sleep, IDLE)  # other processes may have left work
        if now < attempts.stop_at:  # after it, the end of each attempt runs it again
            self._schedule(min(now + sleep, attempts.stop_at))

    def _idle_time_left(self, idle: float) -> float:
        """Seconds to sleep after *idle* seconds without work; 0 or less when the loop is to end."""
        left = max(IDLE - idle, _LOG_INTERVAL if self.log.has_counts() else 0.0)
        return IDLE if left <= 0 and self._store.is_durable else left

    def _schedule(self, when: float) -> None:
        if self._timer is not None:
            if when >= self._timer.when():
                return  # it runs earlier, and then schedules again
            self._timer.cancel()
        self._timer = None if when == math.inf else asyncio.get_running_loop().call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.run_once()
