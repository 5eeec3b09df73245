"""AutoGen: a step is what an agent of its runtime processes, or a tool call that no such step is around."""

from otel_step_hook.steps.profile import (
    FrameworkProfile,
    SpanView,
    as_text,
    attribute_is,
    both,
    either,
    first_attribute,
    inside,
    name_matches,
)

_SCOPES = ("autogen SingleThreadedAgentRuntime", "autogen Worker Runtime", "autogen-core")
_PROCESS = name_matches("autogen process .*")
_TOOL_CALL = attribute_is("gen_ai.operation.name", "execute_tool")
_MANAGERS = (
    "RoundRobinGroupChatManager",
    "SelectorGroupChatManager",
    "SwarmGroupChatManager",
    "GraphFlowManager",
    "MagenticOneOrchestrator",
)


def _is_turn(span: SpanView) -> bool:
    """Not what a team says to itself: of its messages only the request to speak is work."""
    kind = span.attributes.get("recipient_agent_class")
    if kind == "ChatAgentContainer":
        asked = span.attributes.get("message") == "{}"  # the others carry something
        return asked and '"is_rpc": false' in as_text(span.attributes.get("message_context"))  # it is no reset or pause
    return kind not in _MANAGERS


PROFILES = (
    FrameworkProfile(
        name="autogen",
        scopes=_SCOPES,
        required_attributes=("messaging.operation", "gen_ai.operation.name"),
        sampled_names="autogen process .*|invoke_agent .*",
        is_step=either(both(_PROCESS, _is_turn), _TOOL_CALL),
        is_part=both(_TOOL_CALL, inside(_PROCESS, *_SCOPES)),
        step_id=first_attribute("gen_ai.tool.call.id"),
    ),
)
