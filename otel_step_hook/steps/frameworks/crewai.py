"""CrewAI: a step is a task, or a method of a flow; in its own spans, and in those of two instrumentations."""

from opentelemetry.trace import StatusCode

from otel_step_hook.steps.event import Outcome
from otel_step_hook.steps.profile import (
    NOT_TERMINAL,
    FrameworkProfile,
    Profile,
    Verdict,
    as_text,
    attribute_is,
    both,
    either,
    first_attribute,
    has_attribute,
    inside,
    name_matches,
)
from otel_step_hook.steps.spans import StartedSpan

_STEP = either(has_attribute("task_id"), has_attribute("flow.node.name"))
_TASK = attribute_is("traceloop.span.kind", "task")
_AGENT = attribute_is("traceloop.span.kind", "agent")
_TRACELOOP = "opentelemetry.instrumentation.crewai.instrumentation"


def _outcome(span: StartedSpan, _: BaseException | None) -> Outcome | Verdict | None:
    """Return cancelled for a span that CrewAI's closing session has ended: CrewAI does not report cancellations."""
    if span.attributes.get("crewai.event_name") == "method_execution_paused":
        return NOT_TERMINAL
    return Outcome.CANCELLED if as_text(span.status.description).startswith("Span orphaned") else None


def _listeners_outcome(span: StartedSpan, _: BaseException | None) -> Verdict | None:
    """Return not terminal for an error without a reason: the listener ends open spans so when it is removed."""
    has_no_reason = not span.status.description and not span.events
    return NOT_TERMINAL if has_no_reason and span.status.status_code is StatusCode.ERROR else None


PROFILES: tuple[Profile, ...] = (
    Profile(
        name="crewai",
        scopes=("crewai",),
        required_attributes=("gen_ai.operation.name",),
        sampled_names="execute task|call method",
        is_step=attribute_is("gen_ai.operation.name", "execute_task", "execute_method"),
        step_id=first_attribute("event_id", "crewai.task.id"),  # the second is the same for all runs of a task
        outcome=_outcome,
    ),
    Profile(
        name="crewai",
        scopes=("openinference.instrumentation.crewai",),
        required_attributes=("task_id", "flow.node.name"),
        sampled_names=r".*\._execute_core|.*\.execute",
        is_step=_STEP,
    ),
    Profile(
        name="crewai",
        scopes=("openinference.instrumentation.crewai._event_listener",),
        required_attributes=("task_id", "flow.node.name"),
        sampled_names=r".*\._execute_core|.*\.execute",
        is_step=_STEP,
        outcome=_listeners_outcome,
    ),
    FrameworkProfile(
        name="crewai",
        scopes=(_TRACELOOP,),
        required_attributes=("traceloop.span.kind",),
        is_step=either(_TASK, _AGENT),  # the agent of a task that runs on its own thread: the task has no span
        is_part=both(_AGENT, inside(either(either(_TASK, _AGENT), name_matches(r".*\.(task|agent)")))),
    ),
)
