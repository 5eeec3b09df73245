"""Google ADK, by its own spans or those of openinference: a step is a workflow node, or a tool call outside of one."""

from otel_step_hook.steps.event import Outcome
from otel_step_hook.steps.outcome import outcome_of
from otel_step_hook.steps.profile import (
    NOT_TERMINAL,
    FrameworkProfile,
    Profile,
    Verdict,
    attribute_is,
    both,
    either,
    first_attribute,
    inside,
    name_matches,
)
from otel_step_hook.steps.spans import StartedSpan

_SCOPES = ("gcp.vertex.agent", "openinference.instrumentation.google_adk")
_NODE = attribute_is("gen_ai.operation.name", "invoke_node")
_TOOL_CALL = attribute_is("gen_ai.operation.name", "execute_tool")
_GENERAL_RULES = Profile(name="general")  # leaves each outcome to them


def _outcome(span: StartedSpan, exception: BaseException | None) -> Verdict | None:
    """Return not terminal for a long-running tool that has returned: its result comes later, in a message."""
    is_long_running = span.attributes.get("gen_ai.tool.type") == "LongRunningFunctionTool"
    is_pending = is_long_running and outcome_of(span, exception, _GENERAL_RULES) is Outcome.SUCCESS
    return NOT_TERMINAL if is_pending else None


PROFILES = (
    FrameworkProfile(
        name="google-adk",
        scopes=_SCOPES,
        required_attributes=("gen_ai.operation.name",),
        sampled_names="(invoke_node|invoke_agent|execute_tool|call_llm|generate_content).*",
        # A span for merged calls stands for several tool calls.
        is_step=either(_NODE, both(_TOOL_CALL, name_matches(r"(?!execute_tool \(merged\)).*"))),
        # By the name, too: beyond its limit, the SDK drops attributes.
        is_part=both(_TOOL_CALL, inside(either(_NODE, name_matches("invoke_node .*")), *_SCOPES)),
        step_id=first_attribute("gen_ai.tool.call.id"),
        outcome=_outcome,
    ),
)
