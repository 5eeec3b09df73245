"""DBOS: a step of a workflow. Its id is the workflow's id and the step's number, which only the running code knows."""

from otel_step_hook.steps.event import Outcome, step_id_text
from otel_step_hook.steps.profile import FrameworkProfile, attribute_is, either
from otel_step_hook.steps.runtime import dbos_step
from otel_step_hook.steps.spans import StartedSpan

_WORKFLOW_IDS = ("operationUUID", "dbos.operation.workflow_id")  # of older and of newer releases


def step_id(span: StartedSpan) -> object:
    """Return ``workflow id/number``; None if one of the two is missing."""
    number = step_id_text(span.facts.get("step_number"))
    workflow = next(filter(None, (step_id_text(span.attributes.get(key)) for key in _WORKFLOW_IDS)), "")
    return f"{workflow}/{number}" if workflow and number else None


def outcome(_: StartedSpan, exception: BaseException | None) -> Outcome | None:
    """Return cancelled if ``cancel_workflow`` has interrupted the step, for which DBOS has its own exception."""
    return Outcome.CANCELLED if type(exception).__name__ == "DBOSWorkflowCancelledError" else None


PROFILES = (
    FrameworkProfile(
        name="dbos",
        scopes=("dbos-tracer",),
        required_attributes=("operationType", "dbos.operation.type"),
        is_step=either(attribute_is("operationType", "step"), attribute_is("dbos.operation.type", "step")),
        step_id=step_id,
        at_start=dbos_step,
        outcome=outcome,
    ),
)
