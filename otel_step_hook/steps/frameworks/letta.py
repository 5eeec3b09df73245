"""Letta: a step ends when its ``StepManager`` has committed the step's last state, as for Letta's own webhook.

Its ``agent_step`` spans are not used: they end before the commit, and never end if a step has failed.
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
_STEP_START = "StepManager.log_step_async"  # has the ids of the agent and of the run
_SAMPLED = r"StepManager\.(update_step_(success|error|cancelled)|log_step)_async"
# The exceptions that end a step from outside. Letta saves their traceback as that of an unknown error.
_CANCELLATIONS = CANCELLATIONS | {"GeneratorExit"}


def _is_step(span: SpanView) -> bool:
    """Whether the span saves the last state of a step."""
    is_known = isinstance(span.name, str) and span.name in _OUTCOMES
    return is_known and as_text(span.attributes.get("parameter.step_id")).startswith("step-")


def _outcome(span: StartedSpan, _: BaseException | None) -> Outcome | Verdict:
    """Return the outcome that has been saved; not terminal if saving has failed.

    Letta saves a cancelled step as failed, with an error of type ``Unknown`` whose traceback ends in the
    cancellation: such a step is reported as cancelled.
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
    """Return the id of a step that begins, and the ids of its agent and its run."""
    step_id = as_text(span.attributes.get("parameter.step_id"))
    if span.name != _STEP_START or not step_id:
        return None
    known = {key: as_text(span.attributes.get(f"parameter.{key}")) for key in ("agent_id", "run_id")}
    return step_id, {key: value for key, value in known.items() if value not in {"", "None"}}  # Letta writes None so


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
