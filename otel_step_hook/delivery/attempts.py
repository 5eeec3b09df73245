"""The attempts of one endpoint: owns those in flight, the circuit, and whether the receiver has disabled it."""

import asyncio
import contextlib
import functools
import math
from collections.abc import Callable

from otel_step_hook.delivery.circuit import Circuit
from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.delivery_log import DeliveryLog
from otel_step_hook.delivery.model import Delivery, Endpoint
from otel_step_hook.delivery.request import body
from otel_step_hook.delivery.retry import AttemptResult, Finish, RetryIn, RetryPolicy, decide
from otel_step_hook.delivery.sender import Sender
from otel_step_hook.delivery.store import Store
from otel_step_hook.delivery.telemetry import Telemetry

_CLOSE_TIME = 0.5  # seconds that closing all connections may take
_POLL_INTERVAL = 1.0  # seconds; while no attempt may begin, expired deliveries are found this often


class Attempts:
    """Makes attempts, up to *concurrency* at a time, and gives each delivery back to the store: finished, or to retry.

    For the worker's event loop alone. *on_end* is called after each attempt. No attempt is made, and none goes on,
    after `stop_at`, in monotonic seconds.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        store: Store,
        policy: RetryPolicy,
        telemetry: Telemetry,
        log: DeliveryLog,
        *,
        concurrency: int,
        on_end: Callable[[], None],
    ) -> None:
        self.stop_at = math.inf
        self.idle_since = 0.0  # monotonic seconds: when the last attempt ended, or this loop began
        self.is_disabled = False
        self.hopeless_error = ""  # why no attempt of this process can succeed
        self._endpoint = endpoint
        self._store = store
        self._policy = policy
        self._telemetry = telemetry
        self._log = log
        self._concurrency = concurrency
        self._on_end = on_end
        self._circuit = Circuit(policy)
        self._in_flight: dict[Delivery, asyncio.Task[None]] = {}

    @property
    def is_circuit_open(self) -> bool:
        """Whether the endpoint is down. For any thread."""
        return self._circuit.is_open

    @property
    def are_in_flight(self) -> bool:
        """Whether any attempt is in flight."""
        return bool(self._in_flight)

    def open(self, sender: Sender) -> None:
        """Make attempts with *sender* until `close`, on the running event loop."""
        self._sender = sender
        self.idle_since = monotonic()

    async def close(self) -> None:
        """Give deliveries in flight back to the store, cancel their attempts, and close the connections."""
        tasks = list(self._in_flight.values())
        self._store.unclaim(self._in_flight)
        self._in_flight.clear()  # first: an attempt that ends now has no result, since its delivery is given back
        for task in tasks:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIME):
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._sender.aclose()

    def begin(self, now: float) -> None:
        """Begin as many attempts as the concurrency and the circuit allow at the monotonic time *now*."""
        allowed = self._circuit.attempts_allowed(len(self._in_flight), concurrency=self._concurrency, now=now)
        for delivery in self._store.claim(allowed):
            task = asyncio.get_running_loop().create_task(self._attempt(delivery))
            self._in_flight[delivery] = task
            task.add_done_callback(functools.partial(self._attempt_ended, delivery))

    def cancel(self) -> None:
        """Cancel all attempts in flight: their deliveries are discarded, unless the store keeps them."""
        for task in self._in_flight.values():
            if not task.cancelling():
                task.cancel()

    def discard_older(self, age: float, reason: str | None) -> bool:
        """Discard deliveries whose step ended at least *age* seconds ago: by *reason*, or by their last failure.

        Returns whether there were any; then there may be more.
        """
        return self._discard(self._store.claim_older(age), reason)

    def discard_lost(self, reason: str) -> bool:
        """Discard deliveries that would be lost with the process, by *reason*. Returns whether there were any."""
        return self._discard(self._store.claim_lost(), reason)

    def _discard(self, deliveries: list[Delivery], reason: str | None) -> bool:
        for delivery in deliveries:
            self._finish(delivery, Finish("discarded", reason or delivery.error_type))
        return bool(deliveries)

    def wait(self, now: float) -> float:
        """Seconds until the next attempt may begin, as far as the concurrency and the circuit show it."""
        if self._circuit.attempts_allowed(len(self._in_flight), concurrency=self._concurrency, now=now):
            return 0.0
        # While attempts are in flight, the end of one calls `on_end`.
        return _POLL_INTERVAL if self._in_flight else min(self._circuit.wait(now), _POLL_INTERVAL)

    def is_too_late(self, now: float) -> bool:
        """Whether no attempt is in flight, and none of the waiting deliveries may be tried again before `stop_at`."""
        due = self._store.next_due() if not self._in_flight else None
        return due is not None and now + max(due, self._circuit.wait(now)) >= self.stop_at

    async def _attempt(self, delivery: Delivery) -> None:
        """Make an attempt and apply its result. After a cancellation `_attempt_ended` does it."""
        left = self._policy.give_up_after - (monotonic() - delivery.submitted_at)
        if left <= 0:  # a durable store may have kept it for long
            self._end(delivery, Finish("discarded", delivery.error_type))
            return
        try:
            delivery.body = delivery.body or body(delivery.event, self._endpoint.payload)
            delivery.attempts += 1
            timeout = min(self._endpoint.timeout, left)
            result = await self._sender.send(delivery, timeout=timeout)
            decision = self._decide(delivery, result, timeout)
        except Exception as error:  # noqa: BLE001 -- a delivery that cannot be made must not stop the others
            decision = self._fault_of_attempt(error)
        self._end(delivery, decision)

    def _end(self, delivery: Delivery, decision: Finish | RetryIn) -> None:
        self._apply(delivery, decision)
        # Now, and not when the task has ended, which takes another turn of the loop: each turn gives the interpreter's
        # lock away, and a thread of the application that computes keeps it for 5 ms.
        self._on_end()

    def _attempt_ended(self, delivery: Delivery, task: asyncio.Task[None]) -> None:
        """Apply what `_attempt` could not."""
        if task.cancelled():  # perhaps before its first line
            self._apply(delivery, RetryIn(0.0) if self._store.keeps(delivery) else Finish("discarded", "shutdown"))
        elif (error := task.exception()) is not None:  # a BaseException: `_attempt` handles every `Exception`
            self._apply(delivery, self._fault_of_attempt(error))
        else:
            return
        self._on_end()

    def _fault_of_attempt(self, error: BaseException) -> Finish:
        self._log.fault(error)
        return Finish("discarded", type(error).__name__)

    def _decide(self, delivery: Delivery, result: AttemptResult, timeout: float) -> Finish | RetryIn:
        now, keeps = monotonic(), self._store.keeps(delivery)
        if result.is_hopeless:
            self.hopeless_error = str(result.error_type)
            return RetryIn(0.0) if keeps else Finish("discarded", result.error_type)
        self._record(result, timeout, now)
        delivery.status_code = result.status_code
        if result.error_type is not None:
            delivery.error_type = result.error_type
            self._log.failed(delivery, result, timeout, self._sender.to)
        elapsed = now - delivery.submitted_at
        left = math.inf if keeps else self.stop_at - now
        return decide(delivery, result, self._policy, elapsed=elapsed, left=left)

    def _record(self, result: AttemptResult, timeout: float, now: float) -> None:
        """Count *result* for the circuit; disable the endpoint if the receiver asks for it."""
        was_open = self._circuit.is_open
        # The last attempt of a delivery may have little time left: its timeout does not show that the endpoint is down.
        is_cut_short = result.error_type == "timeout" and timeout < self._endpoint.timeout / 2
        if was_open or not is_cut_short:
            self._circuit.record(result, now=now)
        if self._circuit.is_open and not was_open:
            self._log.down(str(result.error_type))
        elif was_open and not self._circuit.is_open:
            self._log.up()
        if result.directive == "disable" and not self.is_disabled:
            self.is_disabled = True
            self._log.disabled()

    def _apply(self, delivery: Delivery, decision: Finish | RetryIn) -> None:
        if self._in_flight.pop(delivery, None) is None:
            return  # `close` has given it back: the next loop delivers it
        self.idle_since = monotonic()
        if isinstance(decision, RetryIn):
            self._store.retry(delivery, delay=decision.delay)
        else:
            self._finish(delivery, decision)

    def _finish(self, delivery: Delivery, finish: Finish) -> None:
        if finish.result == "handed_over":
            self._log.handed_over(delivery, self._sender.to)
        elif finish.error_type is None:
            self._log.delivered(delivery)
        else:
            self._log.discarded(delivery, finish.error_type)
        self._telemetry.end_delivery(delivery, finish)
        delivery.error_type = finish.error_type or delivery.error_type
        # After its spans have ended: a flush that returns promises that they can be exported.
        self._store.finish(delivery, finish.result)
