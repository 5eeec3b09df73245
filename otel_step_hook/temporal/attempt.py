"""One attempt of the activity: owns what Temporal and the trace learn of its result."""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.delivery_log import DeliveryLog, what_failed
from otel_step_hook.delivery.log import RateLimitedLog
from otel_step_hook.delivery.model import Delivery, Endpoint
from otel_step_hook.delivery.request import body
from otel_step_hook.delivery.retry import AttemptResult, Finish, RetryIn, RetryPolicy, decide, is_expected
from otel_step_hook.delivery.sender import HttpSender, Transport
from otel_step_hook.delivery.telemetry import Telemetry
from otel_step_hook.temporal.arguments import WebhookResult

_RESULT_TIME = 1.0  # seconds of an attempt's timeout that are kept to send its result to Temporal
_MAX_UNKNOWN = 16  # names of endpoints that this worker does not know; an application has a few
_SHORTEST = 0.05  # seconds of a request, however little time is left


class ReceiverAttempts:
    """Makes attempts to deliver to *endpoint*, over connections that *connect* makes. For the event loop that runs."""

    def __init__(self, endpoint: Endpoint, policy: RetryPolicy, connect: Callable[[], Transport]) -> None:
        self._endpoint = endpoint
        self._policy = policy
        self._limited = RateLimitedLog()
        self._limited.use_timer(asyncio.get_running_loop().call_later)
        self._log = DeliveryLog(endpoint, self._limited)
        self._telemetry = Telemetry(endpoint, self._limited)
        self._sender = HttpSender(endpoint, self._telemetry, connect)
        self._is_disabled = False

    async def attempt(self, delivery: Delivery, info: activity.Info) -> WebhookResult:
        """Make the attempt of *info*, record what follows from it, and return or raise that."""
        began = monotonic()
        if not delivery.body:  # a workflow has asked for it; else the application has looked at the outcome
            if delivery.event.outcome not in self._endpoint.outcomes:
                return WebhookResult("skipped")
            delivery.body = body(delivery.event, self._endpoint.payload)
        delivery.attempts = info.attempt
        if self._is_disabled:
            self._finish(delivery, Finish("discarded", "endpoint_disabled"))
            raise refusal(
                f"the receiver of endpoint {self._endpoint.name} has answered 'webhook-delivery: disable': settle it "
                "with the receiver, then restart this worker",
                "endpoint_disabled",
            )
        waited = (info.started_time - info.scheduled_time).total_seconds()  # by the clock of the server
        limit = _seconds(info.schedule_to_close_timeout)
        timeout = _timeout(min(_seconds(info.start_to_close_timeout), limit - waited))
        result = await self._sender.send(delivery, timeout=timeout)
        elapsed = waited + monotonic() - began
        decision = decide(delivery, result, replace(self._policy, give_up_after=limit), elapsed=elapsed, left=math.inf)
        return self._settle(delivery, result, timeout, decision)

    def _settle(
        self, delivery: Delivery, result: AttemptResult, timeout: float, decision: Finish | RetryIn
    ) -> WebhookResult:
        if result.directive == "disable" and not self._is_disabled:
            self._is_disabled = True
            self._log.disabled()
        delivery.status_code = result.status_code
        if result.error_type is not None:
            delivery.error_type = result.error_type
            self._log.failed(delivery, result, timeout)
        if isinstance(decision, RetryIn):
            raise _failure(self._what_failed(result, timeout), result, decision.delay)
        self._finish(delivery, decision)
        if decision.error_type is not None:
            raise refusal(self._what_failed(result, timeout), decision.error_type)
        return WebhookResult("delivered", result.status_code, delivery.attempts)

    def _finish(self, delivery: Delivery, finish: Finish) -> None:
        """Record how *delivery* has ended: its span is written here, and not in the application."""
        if finish.error_type is None:
            self._log.delivered(delivery)
        else:
            self._log.discarded(delivery, finish.error_type)
        self._telemetry.end_delivery(delivery, finish)

    def _what_failed(self, result: AttemptResult, timeout: float) -> str:
        return f"the receiver of endpoint {self._endpoint.name} {what_failed(result, timeout)}"

    async def aclose(self) -> None:
        """Close all connections, and log what was only counted."""
        self._limited.log_counts(all_of_them=True)
        self._limited.use_timer(None)
        await self._sender.aclose()


class AttemptError(ApplicationError):
    """The failure of an attempt, as Temporal's web page shows it: a sentence, without a stack trace of this package."""

    # What Temporal's SDK reads, and contextlib sets. Python itself keeps the traceback elsewhere.
    __traceback__ = property(lambda _: None, lambda _, __: None)


class UnknownEndpoints:
    """Discards deliveries to endpoints that this worker does not know. For the event loop that runs."""

    def __init__(self) -> None:
        self._limited = RateLimitedLog()
        self._limited.use_timer(asyncio.get_running_loop().call_later)
        self._telemetry: OrderedDict[str, Telemetry] = OrderedDict()

    def discard(self, delivery: Delivery, name: str) -> None:
        """Record that *delivery* is discarded because the endpoint *name* is not known."""
        endpoint = Endpoint(name, "")
        telemetry = self._telemetry.setdefault(name, Telemetry(endpoint, self._limited))
        if len(self._telemetry) > _MAX_UNKNOWN:
            self._telemetry.popitem(last=False)
        DeliveryLog(endpoint, self._limited).discarded(delivery, "unknown_endpoint")
        telemetry.end_delivery(delivery, Finish("discarded", "unknown_endpoint"))

    async def aclose(self) -> None:
        """Log what was only counted."""
        self._limited.log_counts(all_of_them=True)
        self._limited.use_timer(None)


def refusal(text: str, error_type: str) -> AttemptError:
    """Return an error that ends the activity: it is not tried again."""
    return AttemptError(text, type=error_type, non_retryable=True, category=_category(error_type))


def _failure(text: str, result: AttemptResult, delay: float) -> AttemptError:
    """Return an error after which Temporal tries again in *delay* seconds."""
    error_type = str(result.error_type)
    return AttemptError(
        f"{text}; next attempt in {delay:.3g} s",
        type=error_type,
        next_retry_delay=timedelta(seconds=delay),
        category=_category(error_type),
    )


def _category(error_type: str) -> ApplicationErrorCategory:
    """Return BENIGN for an everyday failure, which then is no error in the worker's log, metrics and spans."""
    return ApplicationErrorCategory.BENIGN if is_expected(error_type) else ApplicationErrorCategory.UNSPECIFIED


def _timeout(whole: float) -> float:
    """Return the seconds for the request: it ends a moment before Temporal ends the attempt without a result."""
    return max(whole - _RESULT_TIME, whole / 2, _SHORTEST)


def _seconds(limit: timedelta | None) -> float:
    return math.inf if limit is None else limit.total_seconds()
