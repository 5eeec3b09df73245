"""OpenAI Agents, instrumented by openinference or by traceloop: both set OK on a span that an exception leaves."""

from opentelemetry.trace import StatusCode

from otel_step_hook.steps.event import Outcome
from otel_step_hook.steps.outcome import is_failure
from otel_step_hook.steps.profile import Profile, attribute_is, both, first_attribute, name_matches
from otel_step_hook.steps.spans import StartedSpan


def _outcome(span: StartedSpan, exception: BaseException | None) -> Outcome | None:
    """Return failed for status OK with a failure in flight."""
    return Outcome.FAILED if span.status.status_code is StatusCode.OK and is_failure(exception) else None


PROFILES = (
    Profile(
        name="openai-agents",
        scopes=("openinference.instrumentation.openai_agents",),
        required_attributes=("openinference.span.kind",),
        is_step=both(name_matches("turn"), attribute_is("openinference.span.kind", "CHAIN")),
        outcome=_outcome,
    ),
    Profile(
        name="openai-agents",  # the spans of traceloop and of opentelemetry-instrumentation-openai-agents-v2
        scopes=("opentelemetry.instrumentation.openai_agents",),
        required_attributes=("gen_ai.operation.name",),
        is_step=attribute_is("gen_ai.operation.name", "execute_tool"),
        step_id=first_attribute("gen_ai.tool.call.id"),
        outcome=_outcome,
    ),
)
