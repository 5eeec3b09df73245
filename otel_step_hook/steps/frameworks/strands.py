"""Strands: a step is a cycle of an agent's event loop.

The span of a cancelled cycle never ends (strands-agents/harness-sdk#3609), so the step ends with the agent's span.
"""

from otel_step_hook.steps.event import Outcome
from otel_step_hook.steps.profile import FrameworkProfile, as_text, first_attribute, has_attribute, name_matches
from otel_step_hook.steps.spans import StartedSpan


def _outcome(span: StartedSpan, _: BaseException | None) -> Outcome | None:
    """Return the outcome by the exception that has stopped the agent; success if its consumer closed the generator."""
    stopped_by = as_text(span.attributes.get("strands.cancellation.type"))
    if not stopped_by:
        return None
    return Outcome.SUCCESS if stopped_by == "GeneratorExit" else Outcome.CANCELLED


PROFILES = (
    FrameworkProfile(
        name="strands",
        scopes=("strands.telemetry.tracer",),
        required_attributes=("event_loop.cycle_id",),
        sampled_names="execute_event_loop_cycle|invoke_agent .*",
        is_step=has_attribute("event_loop.cycle_id"),
        step_id=first_attribute("event_loop.cycle_id"),
        ends_children=name_matches("invoke_agent .*"),
        outcome=_outcome,
    ),
)
