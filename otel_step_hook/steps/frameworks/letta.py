"""Letta's steps, which its ``StepManager`` ends: after the commit, as its own webhook does.

Not its ``agent_step`` spans: they end before the commit, and not at all where a step has failed.
"""

from collections.abc import Mapping

from opentelemetry.trace import StatusCode

from otel_step_hook.steps.event import Outcome
from otel_step_hook.steps.outcome import CANCELLATIONS, bare_name
from otel_step_hook.steps.profile import NOT_TERMINAL, FrameworkProfile, SpanView, Verdict, as_text, first_attribute
from otel_step_hook.steps.spans import StartedSpan

_OUTCOMES = {
    "StepManager.update_step_success_async": Outcome.SUCCESS,
    "StepManager.update_step_error_async": Outcome.FAILED,
    "StepManager.update_step_cancelled_async": Outcome.CANCELLED,
}
_STEP_START = "StepManager.log_step_async"  # knows whose step it is
_SAMPLED = r"StepManager\.(update_step_(success|error|cancelled)|log_step)_async"
# The types of what ends a step from outside. Letta writes the traceback of such a step as that of an unknown error.
_CANCELLATIONS = CANCELLATIONS | {"GeneratorExit"}


def _is_step(span: SpanView) -> bool:
    """Whether a step's last state is being saved."""
    is_known = isinstance(span.name, str) and span.name in _OUTCOMES
    return is_known and as_text(span.attributes.get("parameter.step_id")).startswith("step-")


def _outcome(span: StartedSpan, _: BaseException | None) -> Outcome | Verdict:
    """What has been saved; not terminal where saving it has failed.

    Letta saves a step that was cancelled as failed, with an error of type ``Unknown`` whose traceback
    ends in the cancellation: that is reported as cancelled.
    """
    if span.status.status_code is not StatusCode.OK:
        return NOT_TERMINAL
    outcome = _OUTCOMES.get(as_text(span.name), NOT_TERMINAL)
    if outcome is Outcome.FAILED and as_text(span.attributes.get("parameter.error_type")) == "Unknown":
        last_line = as_text(span.attributes.get("parameter.error_traceback")).rstrip().rpartition("\n")[2]
        if bare_name(last_line.partition(":")[0].strip()) in _CANCELLATIONS:
            return Outcome.CANCELLED
    return outcome


def _details(span: StartedSpan) -> tuple[str, Mapping[str, str]] | None:
    """The id of a step that begins, and whose it is."""
    step_id = as_text(span.attributes.get("parameter.step_id"))
    if span.name != _STEP_START or not step_id:
        return None
    known = {key: as_text(span.attributes.get(f"parameter.{key}")) for key in ("agent_id", "run_id")}
    return step_id, {key: value for key, value in known.items() if value not in {"", "None"}}  # Letta's word for none


PROFILES = (
    FrameworkProfile(
        name="letta",
        scopes=("letta.otel.tracing",),
        required_attributes=("parameter.step_id",),
        sampled_names=_SAMPLED,
        is_step=_is_step,
        step_id=first_attribute("parameter.step_id"),
        outcome=_outcome,
        report_once=True,
        details=_details,
        exclusive=True,
    ),
)
