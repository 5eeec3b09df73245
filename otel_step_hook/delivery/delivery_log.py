"""The log lines about deliveries, and their levels."""

import logging
from collections.abc import Callable
from functools import cached_property, partial
from http import HTTPStatus
from typing import NamedTuple, Self

from opentelemetry.trace import SpanContext, format_span_id, format_trace_id

from otel_step_hook.delivery.answers import Secrets, advice, sentence_of
from otel_step_hook.delivery.failures import meaning
from otel_step_hook.delivery.log import PREFIX, Fields, Line, RateLimitedLog, log, log_safely, printable, where
from otel_step_hook.delivery.model import Delivery, Endpoint, shown_origin
from otel_step_hook.delivery.retry import AttemptResult, is_expected

_REASONS = {  # why a delivery is discarded, where the error type does not say it to everybody
    "shutdown": "the process ended before it was delivered",
    "expired": "no attempt could be made before STEP_COMPLETE_GIVE_UP_AFTER had passed",
    "endpoint_disabled": "the receiver has asked for no further webhooks",
    "timeout": "no answer in time",
}


class _Step(NamedTuple):
    """What lines say of a delivery. Not the delivery, whose pipeline must not outlive its hook in a line that waits."""

    step_id: str
    outcome: str
    context: SpanContext
    webhook_id: str
    attempts: int

    @classmethod
    def of(cls, delivery: Delivery) -> Self:
        event = delivery.event
        return cls(event.step_id, event.outcome, event.context, delivery.id, delivery.attempts)


class DeliveryLog:
    """Logs the progress of deliveries to *endpoint*, which is shown by name and host: its URL may hold a secret."""

    def __init__(self, endpoint: Endpoint, limited: RateLimitedLog) -> None:
        self._endpoint = endpoint
        self._name = endpoint.name
        self._receiver = f"the receiver {shown_origin(endpoint.url)}"
        # Without an answer nobody here knows which of the two has failed.
        by_proxy = f" or the proxy {shown_origin(endpoint.proxy)}" if endpoint.proxy else ""
        self._unanswering = f"{self._receiver}{by_proxy}"
        self._shared: Fields = {f"{PREFIX}endpoint": endpoint.name}
        self._log = limited

    @cached_property
    def _secrets(self) -> Secrets:
        return Secrets(self._endpoint)

    def failed(self, delivery: Delivery, result: AttemptResult, timeout: float, to: str = "") -> None:
        """Log that an attempt to deliver *to* a system, by default the receiver, failed; it had *timeout* seconds."""
        step = _Step.of(delivery)
        text = partial(self._failed_text, step, result, timeout, to)
        self._limited(delivery, ("attempt", result.error_type), text, step, result.status_code)

    def delivered(self, delivery: Delivery) -> None:
        """Log that the receiver has accepted a delivery."""
        if log.isEnabledFor(logging.INFO):
            step = _Step.of(delivery)
            self._info(f"delivered step {printable(step.step_id)}", step, delivery.status_code)

    def handed_over(self, delivery: Delivery, to: str) -> None:
        """Log that another system, named *to*, has accepted a delivery."""
        if log.isEnabledFor(logging.INFO):
            step = _Step.of(delivery)
            self._info(f"handed step {printable(step.step_id)} over to {to or self._receiver}", step, None)

    def discarded(self, delivery: Delivery, error_type: str) -> None:
        """Log that a delivery is discarded because of *error_type*."""
        step = _Step.of(delivery)
        status = int(error_type) if error_type.isdigit() else None
        text = partial(self._discarded_text, step, error_type)
        self._limited(delivery, ("discarded", error_type, self._name), text, step, status)

    def fault(self, error: BaseException) -> None:
        """Log *error*, which this package has raised by mistake."""
        self._log.log(logging.ERROR, "fault", f"a fault of otel-step-hook: {where(error)}")

    def down(self, error_type: str) -> None:
        """Log that the endpoint is down: its circuit has opened."""
        text = f"endpoint {self._name} is down ({self._reason(error_type)}): one attempt at a time until one succeeds"
        self._log.log(_level(error_type), "circuit", Line(lambda: text, lambda: self._shared, self._shared))

    def up(self) -> None:
        """Log that the endpoint is up again."""
        log_safely(logging.INFO, "endpoint %s is up again", self._name, fields=self._shared)

    def disabled(self) -> None:
        """Log that the receiver has asked for no further webhooks."""
        log_safely(
            logging.ERROR,
            "%s answered 'webhook-delivery: disable': no webhook is sent to endpoint %s any more, every "
            "step is discarded; settle it with the receiver, then restart this process",
            self._receiver,
            self._name,
            fields=self._shared,
        )

    def _info(self, text: str, step: _Step, status: int | None) -> None:
        text = f"{text} ({step.outcome}, {self._ids(step)}, attempt {step.attempts})"
        log_safely(logging.INFO, "%s", text, fields=self._fields(step, status))

    def _limited(
        self, delivery: Delivery, kind: tuple[object, ...], text: Callable[[], str], step: _Step, status: int | None
    ) -> None:
        line = Line(text, partial(self._fields, step, status), self._shared)
        self._log.log(_level(delivery.error_type), kind, line)

    def _failed_text(self, step: _Step, result: AttemptResult, timeout: float, to: str) -> str:
        has_answered = result.status_code is not None or result.has_answered
        text = f"{to or (self._receiver if has_answered else self._unanswering)} {what_failed(result, timeout)}"
        if result.status_code is not None:
            said = sentence_of(result.excerpt, self._secrets)
            text = f"{text} {_phrase(result.status_code)}".rstrip() + (f': "{said}"' if said else "")
        hint = advice(result, self._endpoint, self._secrets)
        text += f"; {hint}" if hint else ""
        return f"{text} (step {printable(step.step_id)}, {self._ids(step)}, attempt {step.attempts})"

    def _discarded_text(self, step: _Step, error_type: str) -> str:
        text = f"discarded step {printable(step.step_id)}: {self._reason(error_type)} ({step.outcome}"
        return f"{text}, {self._ids(step)}, attempts made: {step.attempts})"

    def _reason(self, error_type: str) -> str:
        """Return why an attempt or a delivery has failed; *error_type* itself where there are no words for it."""
        if error_type.isdigit():
            return f"{self._receiver} answered {error_type} {_phrase(int(error_type))}".rstrip()
        known = meaning(error_type)
        return f"{self._unanswering} {known}" if known else _REASONS.get(error_type, error_type)

    def _ids(self, step: _Step) -> str:
        return f"endpoint {self._name}, webhook {step.webhook_id}"

    def _fields(self, step: _Step, status: int | None) -> Fields:
        """Return the fields of a line about *step*: trace and span are those of the step itself, in hexadecimal."""
        fields: dict[str, str | int] = {
            f"{PREFIX}step_id": step.step_id.encode("utf-8", "replace").decode(),
            f"{PREFIX}webhook_id": step.webhook_id,
            f"{PREFIX}endpoint": self._name,
            f"{PREFIX}attempt": step.attempts,
            "trace_id": format_trace_id(step.context.trace_id),
            "span_id": format_span_id(step.context.span_id),
        }
        return fields if status is None else {**fields, f"{PREFIX}status": status}


def what_failed(result: AttemptResult, timeout: float) -> str:
    """Return how an attempt failed that had *timeout* seconds, for a sentence that begins with the receiver."""
    if result.error_type == "timeout":
        return f"did not answer within {timeout:.3g} s"
    if result.status_code or result.directive:
        return f"answered {result.status_code or result.error_type}"
    if result.has_answered:
        return f"answered, but not with a status of HTTP/1.1: {result.error_type}"
    return meaning(str(result.error_type), result.detail) or f"could not be reached: {result.error_type}"


def _phrase(status: int) -> str:
    """Return the standard phrase of *status*, and not that of the answer; empty for one without."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _level(error_type: str) -> int:
    """Return WARNING for a timeout or a status, which are expected now and then, and ERROR for any other failure."""
    return logging.WARNING if is_expected(error_type) else logging.ERROR
