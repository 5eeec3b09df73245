"""The log lines about deliveries, and their levels."""

import logging

from otel_step_hook.delivery.log import RateLimitedLog, log, log_safely, printable, where
from otel_step_hook.delivery.model import Delivery, Endpoint
from otel_step_hook.delivery.retry import AttemptResult, is_expected


class DeliveryLog:
    """Logs the progress of deliveries to *endpoint*, which is shown by name: its URL may hold a secret."""

    def __init__(self, endpoint: Endpoint, limited: RateLimitedLog) -> None:
        self._name = endpoint.name
        self._log = limited

    def failed(self, delivery: Delivery, result: AttemptResult, timeout: float, to: str = "the receiver") -> None:
        """Log that an attempt to deliver *to* a system failed; it had *timeout* seconds."""
        text = f"{to} {what_failed(result, timeout)} (step {printable(delivery.event.step_id)}, {self._ids(delivery)}"
        kind = ("attempt", result.error_type)
        self._log.log(_level(delivery.error_type), kind, f"{text}, attempt {delivery.attempts})")

    def delivered(self, delivery: Delivery) -> None:
        """Log that the receiver has accepted a delivery."""
        if log.isEnabledFor(logging.INFO):
            text = f"delivered step {printable(delivery.event.step_id)} ({delivery.event.outcome}"
            log_safely(logging.INFO, "%s, %s, attempt %d)", text, self._ids(delivery), delivery.attempts)

    def handed_over(self, delivery: Delivery, to: str) -> None:
        """Log that another system, named *to*, has accepted a delivery."""
        if log.isEnabledFor(logging.INFO):
            text = f"handed step {printable(delivery.event.step_id)} over to {to} ({delivery.event.outcome}"
            log_safely(logging.INFO, "%s, %s, attempt %d)", text, self._ids(delivery), delivery.attempts)

    def discarded(self, delivery: Delivery, error_type: str) -> None:
        """Log that a delivery is discarded because of *error_type*."""
        text = f"discarded step {printable(delivery.event.step_id)}: {error_type} ({delivery.event.outcome}"
        text += f", {self._ids(delivery)}, attempts made: {delivery.attempts})"
        self._log.log(_level(delivery.error_type), ("discarded", error_type), text)

    def fault(self, error: BaseException) -> None:
        """Log *error*, which this package has raised by mistake."""
        self._log.log(logging.ERROR, "fault", f"a fault of otel-step-hook: {where(error)}")

    def down(self, error_type: str) -> None:
        """Log that the endpoint is down: its circuit has opened."""
        text = f"endpoint {self._name} is down ({error_type}): one attempt at a time until one succeeds"
        self._log.log(_level(error_type), "circuit", text)

    def up(self) -> None:
        """Log that the endpoint is up again."""
        log_safely(logging.INFO, "endpoint %s is up again", self._name)

    def disabled(self) -> None:
        """Log that the receiver has asked for no further webhooks."""
        log_safely(
            logging.ERROR,
            "the receiver answered 'webhook-delivery: disable': no webhook is sent to endpoint %s any more, every "
            "step is discarded; settle it with the receiver, then restart this process",
            self._name,
        )

    def _ids(self, delivery: Delivery) -> str:
        return f"endpoint {self._name}, webhook {delivery.id}"


def what_failed(result: AttemptResult, timeout: float) -> str:
    """Return how an attempt failed that had *timeout* seconds, for a sentence that begins with the receiver."""
    if result.error_type == "timeout":
        return f"did not answer within {timeout:.3g} s"
    if result.status_code or result.directive:
        return f"answered {result.status_code or result.error_type}"
    if result.has_answered:
        return f"answered, but not with a status of HTTP/1.1: {result.error_type}"
    return f"could not be reached: {result.error_type}"


def _level(error_type: str) -> int:
    """Return WARNING for a timeout or a status, which are expected now and then, and ERROR for any other failure."""
    return logging.WARNING if is_expected(error_type) else logging.ERROR
