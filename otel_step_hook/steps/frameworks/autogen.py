"""AutoGen: a step is a message that an agent of its runtime works on, or a tool call outside of such a step."""

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


def _is_work(span: SpanView) -> bool:
    """Whether the message asks an agent to work. Among the messages of a team, only the request to speak does."""
    kind = span.attributes.get("recipient_agent_class")
    if kind == "ChatAgentContainer":
        is_request = span.attributes.get("message") == "{}"  # other messages have content
        # A reset or a pause is empty, too, but a remote procedure call.
        return is_request and '"is_rpc": false' in as_text(span.attributes.get("message_context"))
    return kind not in _MANAGERS


PROFILES = (
    FrameworkProfile(
        name="autogen",
        scopes=_SCOPES,
        required_attributes=("messaging.operation", "gen_ai.operation.name"),
        sampled_names="autogen process .*|invoke_agent .*",
        is_step=either(both(_PROCESS, _is_work), _TOOL_CALL),
        is_part=both(_TOOL_CALL, inside(_PROCESS, *_SCOPES)),
        step_id=first_attribute("gen_ai.tool.call.id"),
    ),
)
