"""From the store to the receiver: owns the attempts in flight, the circuit, and whether the endpoint is disabled.

`Dispatch.run` is the loop of the worker's thread; nothing but what says so may be called from another.
"""

import asyncio
import contextlib
import functools
import logging
import math
from collections.abc import Callable
from typing import Any

from otel_step_hook.delivery.circuit import Circuit
from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.delivery_log import DeliveryLog
from otel_step_hook.delivery.drops import DropCounts
from otel_step_hook.delivery.latch import Flushes
from otel_step_hook.delivery.log import RateLimitedLog, where
from otel_step_hook.delivery.metrics import EndpointState, ObservedEndpoint
from otel_step_hook.delivery.model import Delivery, Endpoint
from otel_step_hook.delivery.request import body
from otel_step_hook.delivery.retry import AttemptResult, Finish, RetryIn, RetryPolicy, decide
from otel_step_hook.delivery.sender import Sender
from otel_step_hook.delivery.store import Store
from otel_step_hook.delivery.telemetry import Telemetry

_STOP_MARGIN = 0.1  # share of the time to stop that is kept for recording what could not be delivered
_CLOSE_TIME = 0.5  # seconds that closing all connections may take
_POLL_INTERVAL = 1.0  # seconds; while no attempt may begin, what has expired is found this often
_RELEASE_AFTER = 1.0  # seconds without work after which the pipelines of earlier steps are not held any more
IDLE = 30.0  # seconds without work after which the loop ends

MakeSender = Callable[[Telemetry], Sender]


class Dispatch:
    """Claims deliveries, makes attempts, and has each finished or retried. It outlives its loops.

    *stop_at* is when everything has to be finished, in monotonic seconds; *is_abandoned* says that nothing will come
    in any more. Both, *losses* and *flushes* are for any thread, which wakes the loop after it.
    """

    def __init__(
        self, endpoint: Endpoint, store: Store, policy: RetryPolicy, make_sender: MakeSender, *, concurrency: int
    ) -> None:
        self.log = RateLimitedLog()
        self.drops = DropCounts(endpoint.name)
        self.flushes = Flushes()
        self.stop_at = self._last_attempts_at = math.inf
        self.is_abandoned = False
        self._endpoint = endpoint
        self._store = store
        self._policy = policy
        self._make_sender = make_sender
        self._concurrency = concurrency
        self._telemetry = Telemetry(endpoint, self.log)
        self._delivery_log = DeliveryLog(endpoint, self.log)
        self._circuit = Circuit(policy)
        self._is_disabled = False
        self._in_flight: dict[Delivery, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._fault: BaseException | None = None  # of a callback of ours, that has ended the loop
        self._idle_since = 0.0  # monotonic seconds
        self._observable: ObservedEndpoint | None = ObservedEndpoint(endpoint.name, self._observe)

    def stop_observing(self) -> None:
        """In a forked child, have the metrics look at this no more: it is the parent's."""
        self._observable = None

    def _observe(self) -> EndpointState:
        waiting = len(self._store)
        # With nothing to send nothing is tried, and nothing known.
        return EndpointState(waiting, self._store.oldest_age(), self._circuit.is_open and waiting > 0)

    async def run(self) -> None:
        """Deliver until there is nothing left to do, or a callback has failed: then raise what it raised."""
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._timer = self._fault = None
        self._idle_since = monotonic()
        self._sender = self._make_sender(self._telemetry)
        self.log.use_timer(loop.call_later)
        try:
            self.run_once()
            await self._ended
            if self._fault is not None:
                raise self._fault
        finally:
            self.log.use_timer(None)
            await self._close()

    async def _close(self) -> None:
        """Give back what is in flight, end its tasks, and close the connections."""
        tasks = list(self._in_flight.values())
        self._store.unclaim(self._in_flight)
        self._in_flight.clear()  # so that what still ends has no result from here
        for task in tasks:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIME):
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._sender.aclose()

    def on_fault(self, circumstances: dict[str, Any]) -> None:
        """Take what asyncio would log. After a fault in a callback of ours nothing is sure: end this loop."""
        error = circumstances.get("exception")
        if "handle" in circumstances:
            self._fault = error
            if not self._ended.done():
                self._ended.set_result(None)
        else:
            place = where(error) if error is not None else circumstances["message"]
            self.log.log(logging.ERROR, "fault", f"a fault of otel-step-hook: {place}")

    def run_without_loop(self) -> None:
        """See to what needs no loop, while none can run: what has expired, and what other threads have counted."""
        self.drops.report(self._telemetry, self.log)
        self._discard_older(self._policy.give_up_after, None)
        self.flushes.set_flushed(self._store.is_flushed)
        self.log.log_counts()  # there is no timer

    def discard_all(self, error: BaseException) -> None:
        """Discard what waits, since no event loop can be made here because of *error*: sockets are forbidden."""
        self.log.log(logging.ERROR, "no loop", f"no event loop can be made: {where(error)}; steps are discarded")
        self._discard_older(0.0, type(error).__name__)
        self.run_without_loop()

    def report_all(self) -> None:
        """Record and log what other threads have counted, and every count that is still to be logged."""
        self.drops.report(self._telemetry, self.log)
        self.log.log_counts(all_of_them=True)

    def run_once(self) -> None:
        """See to everything that can be done now: after each wake-up, each attempt, and when something is due."""
        if self._ended.done():
            return
        now = monotonic()
        self.drops.report(self._telemetry, self.log)
        self._discard_expired(now)
        if now < self._last_attempts_at and not self._is_disabled:
            self._begin_attempts(now)
        self.flushes.set_flushed(self._store.is_flushed)
        self._end_or_sleep(now)

    def _begin_attempts(self, now: float) -> None:
        room = self._circuit.attempts_allowed(len(self._in_flight), concurrency=self._concurrency, now=now)
        for delivery in self._store.claim(room):
            task = asyncio.get_running_loop().create_task(self._attempt(delivery))
            self._in_flight[delivery] = task
            task.add_done_callback(functools.partial(self._attempt_ended, delivery))

    def _discard_expired(self, now: float) -> None:
        """Discard what has expired, and everything once the endpoint is disabled or the time to stop has come."""
        if self.stop_at < math.inf and self._last_attempts_at == math.inf:
            self._last_attempts_at = self.stop_at - (self.stop_at - now) * _STOP_MARGIN
        if self._is_disabled:
            self._discard_older(0.0, "endpoint_disabled")
        elif now >= self._last_attempts_at or self._is_too_late_to_retry(now):
            self._discard_older(0.0, "shutdown")
        else:
            self._discard_older(self._policy.give_up_after, None)
        if now >= self._last_attempts_at:
            for task in self._in_flight.values():
                if not task.cancelling():
                    task.cancel()

    def _is_too_late_to_retry(self, now: float) -> bool:
        """Whether the process stops before anything that waits may be tried again."""
        due = self._store.next_due() if self.stop_at < math.inf and not self._in_flight else None
        return due is not None and now + max(due, self._circuit.wait(now)) >= self._last_attempts_at

    def _discard_older(self, age: float, reason: str | None) -> None:
        for delivery in self._store.claim_older(age):
            self._finish(delivery, Finish("discarded", reason or delivery.error_type))

    def _end_or_sleep(self, now: float) -> None:
        """End the loop when there is nothing to do, else look again when there may be."""
        due = self._store.next_due()
        if due is None and not self._in_flight:
            left = self._idle_time_left(now - self._idle_since)
            if left <= 0 or self.is_abandoned or self.stop_at < math.inf:
                self._ended.set_result(None)
                return
        elif due is None:
            left = math.inf
        else:
            left = max(due, self._seconds_to_next_attempt(now))
        if now < self._last_attempts_at:  # after it, the end of each attempt has it look again
            self._schedule(min(now + left, self._last_attempts_at))

    def _seconds_to_next_attempt(self, now: float) -> float:
        """Seconds until an attempt may begin, as far as that can be known."""
        if self._circuit.attempts_allowed(len(self._in_flight), concurrency=self._concurrency, now=now):
            return 0.0
        # While attempts are in flight, the end of one has it look again.
        return _POLL_INTERVAL if self._in_flight else min(self._circuit.wait(now), _POLL_INTERVAL)

    def _idle_time_left(self, idle: float) -> float:
        """Seconds to sleep after *idle* seconds without work, 0 or less for ever."""
        if idle < (remembered := min(_RELEASE_AFTER, IDLE)):
            return remembered - idle
        self._telemetry.forget_pipelines()
        return max(IDLE - idle, _POLL_INTERVAL if self.log.has_counts() else 0.0)

    def _schedule(self, when: float) -> None:
        if self._timer is not None:
            if when >= self._timer.when():
                return  # it looks earlier, and then sleeps again
            self._timer.cancel()
        self._timer = None if when == math.inf else asyncio.get_running_loop().call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.run_once()

    async def _attempt(self, delivery: Delivery) -> None:
        """Make an attempt, and have the delivery finished or retried. Cancelled, it is left to `_attempt_ended`."""
        try:
            delivery.body = delivery.body or body(delivery.event, self._endpoint.payload)
            delivery.attempts += 1
            left = self._policy.give_up_after - (monotonic() - delivery.submitted_at)
            timeout = min(self._endpoint.timeout, left)
            result = await self._sender.send(delivery, timeout=timeout)
            decision = self._decide(delivery, result, timeout)
        except Exception as error:  # noqa: BLE001 -- a delivery that cannot be made must not stop the others
            decision = self._fault_of_attempt(error)
        self._apply(delivery, decision)

    def _attempt_ended(self, delivery: Delivery, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # perhaps before its first step
            self._apply(delivery, Finish("discarded", "shutdown"))
        elif (error := task.exception()) is not None:  # none that is an `Exception`
            self._apply(delivery, self._fault_of_attempt(error))
        self.run_once()

    def _fault_of_attempt(self, error: BaseException) -> Finish:
        self._delivery_log.fault(error)
        return Finish("discarded", type(error).__name__)

    def _decide(self, delivery: Delivery, result: AttemptResult, timeout: float) -> Finish | RetryIn:
        now = monotonic()
        self._record_for_circuit(result, timeout, now)
        if result.error_type is not None:
            delivery.error_type = result.error_type
            self._delivery_log.failed(delivery, result, timeout)
        elapsed, left = now - delivery.submitted_at, self._last_attempts_at - now
        return decide(delivery, result, self._policy, elapsed=elapsed, left=left)

    def _apply(self, delivery: Delivery, decision: Finish | RetryIn) -> None:
        if self._in_flight.pop(delivery, None) is None:
            return  # given back already: the next loop goes on with it
        self._idle_since = monotonic()
        if isinstance(decision, RetryIn):
            self._store.retry(delivery, delay=decision.delay)
        else:
            self._finish(delivery, decision)

    def _finish(self, delivery: Delivery, finish: Finish) -> None:
        if finish.error_type is None:
            self._delivery_log.delivered(delivery)
        else:
            self._delivery_log.discarded(delivery, finish.error_type)
        self._telemetry.end_delivery(delivery, finish)
        # Not before its spans have ended: a flush that returns promises that they can be exported.
        self._store.finish(delivery, finish.result)

    def _record_for_circuit(self, result: AttemptResult, timeout: float, now: float) -> None:
        """Count *result* for the circuit; disable the endpoint if the receiver asks for it."""
        was_open = self._circuit.is_open
        # The last attempt of a delivery may have little time left: that it was not enough says nothing.
        is_cut_short = result.error_type == "timeout" and timeout < self._endpoint.timeout / 2
        if was_open or not is_cut_short:
            self._circuit.record(result, now=now)
        if self._circuit.is_open and not was_open:
            self._delivery_log.down(str(result.error_type))
        elif was_open and not self._circuit.is_open:
            self._delivery_log.up()
        if result.directive == "disable" and not self._is_disabled:
            self._is_disabled = True
            self._delivery_log.disabled()
