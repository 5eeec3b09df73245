"""Letta's steps, which its ``StepManager`` ends: after the commit, as its own webhook does.

Not its ``agent_step`` spans: they end before the commit, and not at all where a step has failed.
"""

from collections.abc import Mapping

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from otel_step_hook.steps.event import Outcome
from otel_step_hook.steps.outcome import CANCELLATIONS, last_part
from otel_step_hook.steps.profile import NOT_TERMINAL, Attributes, Verdict, plain

_OUTCOMES = {
    "StepManager.update_step_success_async": Outcome.SUCCESS,
    "StepManager.update_step_error_async": Outcome.FAILED,
    "StepManager.update_step_cancelled_async": Outcome.CANCELLED,
}
_BEGINNING = "StepManager.log_step_async"  # knows whose step it is
STARTS = r"StepManager\.(update_step_(success|error|cancelled)|log_step)_async"
# The types of what ends a step from outside. Letta writes the traceback of such a step as that of an unknown error.
_STOPS = CANCELLATIONS | {"GeneratorExit"}


def is_step(name: str, attributes: Attributes) -> bool:
    """Whether a step's last state is being saved."""
    return (
        isinstance(name, str) and name in _OUTCOMES and plain(attributes.get("parameter.step_id")).startswith("step-")
    )


def word(span: ReadableSpan, attributes: Attributes, _: BaseException | None) -> Outcome | Verdict:
    """What has been saved; not terminal where saving it has failed.

    Letta saves a step that was cancelled as failed, with an error of type ``Unknown`` whose traceback
    ends in the cancellation: that is told as cancelled.
    """
    if span.status.status_code is not StatusCode.OK:
        return NOT_TERMINAL
    outcome = _OUTCOMES.get(plain(span.name), NOT_TERMINAL)
    if outcome is Outcome.FAILED and plain(attributes.get("parameter.error_type")) == "Unknown":
        last_line = plain(attributes.get("parameter.error_traceback")).rstrip().rpartition("\n")[2]
        if last_part(last_line.partition(":")[0].strip()) in _STOPS:
            return Outcome.CANCELLED
    return outcome


def tells(name: str, attributes: Attributes) -> tuple[str, Mapping[str, str]] | None:
    """The id of a step that begins, and whose it is."""
    step_id = plain(attributes.get("parameter.step_id"))
    if name != _BEGINNING or not step_id:
        return None
    known = {key: plain(attributes.get(f"parameter.{key}")) for key in ("agent_id", "run_id")}
    return step_id, {key: value for key, value in known.items() if value not in {"", "None"}}  # Letta's word for none
