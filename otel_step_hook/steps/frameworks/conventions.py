"""The profiles that need no code, for frameworks whose names and attributes of spans are enough.

Those without scopes are for the spans of all scopes that no other profile names, such as those for OpenTelemetry's
semantic conventions for generative AI and for CI/CD.
"""

from otel_step_hook.steps.event import STEP_ID_KEYS, Outcome
from otel_step_hook.steps.profile import (
    NOT_TERMINAL,
    FrameworkProfile,
    Profile,
    attribute_is,
    both,
    but_not,
    either,
    first_attribute,
    has_attribute,
    inside,
    name_matches,
    not_below,
    not_terminal_if,
    outcome_from,
    outcome_if_event,
)
from otel_step_hook.steps.spans import StartedSpan

_SUCCESS, _FAILED, _CANCELLED = Outcome
_TOOL_CALL = attribute_is("gen_ai.operation.name", "execute_tool")
_TOOL_CALL_ID = first_attribute("gen_ai.tool.call.id")
_HAYSTACK = r"haystack\.(agent\.step|component\.run)"
_EXECUTOR = has_attribute("executor.id")
_DECORATED_TASK = attribute_is("traceloop.span.kind", "task")
_DECORATED_TOOL = attribute_is("traceloop.span.kind", "tool")
_OPENINFERENCE_TOOL = attribute_is("openinference.span.kind", "TOOL")
_MCP_CALL = attribute_is("mcp.method.name", "tools/call")
_LONG_RUNNING = attribute_is("gen_ai.tool.type", "LongRunningFunctionTool")

GENERIC = FrameworkProfile(
    name="generic",
    required_attributes=STEP_ID_KEYS,
    is_step=lambda span: "step_id" in span.attributes or "step.id" in span.attributes,
    step_id=first_attribute(*STEP_ID_KEYS),
)

PYDANTIC_AI = Profile(
    name="pydantic-ai",
    scopes=("pydantic-ai",),
    required_attributes=("gen_ai.operation.name",),
    is_step=_TOOL_CALL,
    step_id=_TOOL_CALL_ID,
    outcome=not_terminal_if("pydantic_ai.tool.deferral.name"),
)
SMOLAGENTS = Profile(
    name="smolagents",
    scopes=("openinference.instrumentation.smolagents",),
    required_attributes=("openinference.span.kind",),
    is_step=name_matches(r"Step \d+"),
)
AGENT_FRAMEWORK = FrameworkProfile(
    name="agent-framework",
    scopes=("agent_framework",),
    required_attributes=("executor.id", "gen_ai.operation.name"),
    sampled_names=r"(executor\.process|invoke_agent|execute_tool|chat) .*",
    is_step=either(_EXECUTOR, _TOOL_CALL),
    is_part=both(_TOOL_CALL, inside(either(_EXECUTOR, name_matches(r"executor\.process .*")))),
    step_id=_TOOL_CALL_ID,
)
LLAMA_INDEX = (
    FrameworkProfile(
        name="llama-index",
        scopes=("openinference.instrumentation.llama_index",),
        required_attributes=("openinference.span.kind",),
        # A step may be a plain function. Components of a pipeline have spans such as `SentenceSplitter.__call__`.
        is_step=both(has_attribute("openinference.span.kind"), name_matches(r"(?!.*\.(run|__call__)$).+")),
        is_part=not_below(name_matches(r".*\.run")),
        outcome=outcome_if_event("span.cancelled", _CANCELLED),
    ),
    FrameworkProfile(
        name="llama-index",
        scopes=("llamaindex.opentelemetry.tracer",),
        required_attributes=("llamaindex.step.input_event",),
        is_step=both(has_attribute("llamaindex.step.input_event"), name_matches(r"(?!.*\.run$).+")),
        is_part=not_below(name_matches(r".*\.run")),
        outcome=outcome_if_event("SpanCancelledEvent", _CANCELLED),
    ),
)
AIRFLOW = Profile(
    name="airflow",
    scopes=("airflow.api_fastapi.execution_api.routes.task_instances",),  # not the worker's span of the same task
    required_attributes=("airflow.task_instance.id",),
    sampled_names=r"task_run\..*",
    is_step=both(name_matches(r"task_run\..*"), has_attribute("airflow.task_instance.id")),
    step_id=first_attribute("airflow.task_instance.id"),
    outcome=outcome_from(
        "airflow.task_instance.state",
        {
            "success": _SUCCESS,
            "failed": _FAILED,
            "upstream_failed": _FAILED,
            "skipped": _CANCELLED,
            "removed": _CANCELLED,
            "up_for_retry": NOT_TERMINAL,
            "up_for_reschedule": NOT_TERMINAL,
            "deferred": NOT_TERMINAL,
        },
    ),
)
HAYSTACK = Profile(
    name="haystack",  # without scopes: the application may supply the tracer
    required_attributes=("haystack.agent.step", "haystack.component.name"),
    sampled_names=_HAYSTACK,
    is_step=name_matches(_HAYSTACK),
)
TRACELOOP = FrameworkProfile(
    name="traceloop",
    scopes=("traceloop.tracer",),
    required_attributes=("traceloop.span.kind",),
    sampled_names=r".*\.(task|tool|workflow|agent)",
    is_step=either(_DECORATED_TASK, _DECORATED_TOOL),
    is_part=both(_DECORATED_TOOL, inside(name_matches(r".*\.task"))),
)
UTIL_GENAI = Profile(
    name="util-genai",
    scopes=(
        "opentelemetry.util.genai.handler",
        "opentelemetry.instrumentation.genai.agno",
        "opentelemetry.instrumentation.genai.dspy",
        "opentelemetry.instrumentation.genai.langchain",
        "opentelemetry.instrumentation.genai.llama_index",
        "opentelemetry.instrumentation.genai.openai_agents",
        "opentelemetry.instrumentation.genai.qwen_agent",
        "opentelemetry.instrumentation.genai.smolagents",
    ),
    required_attributes=("gen_ai.operation.name",),
    is_step=_TOOL_CALL,
    step_id=_TOOL_CALL_ID,
)
CICD = Profile(
    name="cicd",
    required_attributes=("cicd.pipeline.task.run.id", "cicd.pipeline.task.run.result"),
    is_step=either(has_attribute("cicd.pipeline.task.run.id"), has_attribute("cicd.pipeline.task.run.result")),
    step_id=first_attribute("cicd.pipeline.task.run.id"),
    outcome=outcome_from(
        "cicd.pipeline.task.run.result",
        {
            "success": _SUCCESS,
            "failure": _FAILED,
            "error": _FAILED,
            "timeout": _FAILED,
            "cancellation": _CANCELLED,
            "skip": _CANCELLED,
        },
    ),
)


def _is_around_mcp_call(span: StartedSpan) -> bool:
    """Whether *span* may do the work of an MCP call inside of it, and show how it ended.

    The client's span of MCP's own SDK, which has no operation name, does not show that a tool has returned an error.
    So the server's span is the step where there is one in the process, unless the client's has ended before. Nor does
    a long-running tool of Google ADK, which is pending when it returns.
    """
    return (
        (_TOOL_CALL(span) and not _LONG_RUNNING(span))
        or _OPENINFERENCE_TOOL(span)
        or _DECORATED_TOOL(span)
        or (_MCP_CALL(span) and span.has_ended)
    )


# One call may have a span of the client, one of the server, and the span of an agent's tool call around both.
MCP = FrameworkProfile(
    name="mcp",
    required_attributes=("mcp.method.name",),
    is_step=_MCP_CALL,
    calls=_is_around_mcp_call,
    step_id=_TOOL_CALL_ID,
)
GEN_AI = Profile(
    name="gen-ai",
    required_attributes=("gen_ai.operation.name",),
    is_step=but_not(_TOOL_CALL, _MCP_CALL),
    step_id=_TOOL_CALL_ID,
)
