"""Letta's steps, which its ``StepManager`` ends: after the commit, as its own webhook does.

Not its ``agent_step`` spans: they end before the commit, and not at all where a step has failed.
"""

from collections.abc import Mapping

from opentelemetry.trace import StatusCode

from otel_step_hook.steps.event import Outcome
from otel_step_hook.steps.outcome import CANCELLATIONS, last_part
from otel_step_hook.steps.profile import NOT_TERMINAL, FrameworkProfile, Named, Verdict, first, plain
from otel_step_hook.steps.spans import StartedSpan

_OUTCOMES = {
    "StepManager.update_step_success_async": Outcome.SUCCESS,
    "StepManager.update_step_error_async": Outcome.FAILED,
    "StepManager.update_step_cancelled_async": Outcome.CANCELLED,
}
_BEGINNING = "StepManager.log_step_async"  # knows whose step it is
_SAMPLED = r"StepManager\.(update_step_(success|error|cancelled)|log_step)_async"
# The types of what ends a step from outside. Letta writes the traceback of such a step as that of an unknown error.
_STOPS = CANCELLATIONS | {"GeneratorExit"}


def _is_step(span: Named) -> bool:
    """Whether a step's last state is being saved."""
    is_known = isinstance(span.name, str) and span.name in _OUTCOMES
    return is_known and plain(span.attributes.get("parameter.step_id")).startswith("step-")


def _outcome(span: StartedSpan, _: BaseException | None) -> Outcome | Verdict:
    """What has been saved; not terminal where saving it has failed.

    Letta saves a step that was cancelled as failed, with an error of type ``Unknown`` whose traceback
    ends in the cancellation: that is reported as cancelled.
    """
    if span.status.status_code is not StatusCode.OK:
        return NOT_TERMINAL
    outcome = _OUTCOMES.get(plain(span.name), NOT_TERMINAL)
    if outcome is Outcome.FAILED and plain(span.attributes.get("parameter.error_type")) == "Unknown":
        last_line = plain(span.attributes.get("parameter.error_traceback")).rstrip().rpartition("\n")[2]
        if last_part(last_line.partition(":")[0].strip()) in _STOPS:
            return Outcome.CANCELLED
    return outcome


def _details(span: StartedSpan) -> tuple[str, Mapping[str, str]] | None:
    """The id of a step that begins, and whose it is."""
    step_id = plain(span.attributes.get("parameter.step_id"))
    if span.name != _BEGINNING or not step_id:
        return None
    known = {key: plain(span.attributes.get(f"parameter.{key}")) for key in ("agent_id", "run_id")}
    return step_id, {key: value for key, value in known.items() if value not in {"", "None"}}  # Letta's word for none


PROFILES = (
    FrameworkProfile(
        name="letta",
        scopes=("letta.otel.tracing",),
        required_attributes=("parameter.step_id",),
        sampled_names=_SAMPLED,
        is_step=_is_step,
        step_id=first("parameter.step_id"),
        outcome=_outcome,
        report_once=True,
        details=_details,
        exclusive=True,
    ),
)
