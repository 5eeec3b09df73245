"""Which spans are steps: a table, one row per framework and instrumentation, and the rows for everybody else.

Measured on the spans of real runs, which ``tests/corpus`` keeps, and read in the sources of those
that are not there. A framework that has loops, nodes or tasks is recognised at that level, and its
tools only where it has nothing better, so that one piece of work is one webhook.
"""

from otel_step_hook.steps.dialects import (
    CHECKPOINT,
    TRACELOOP_LANGGRAPH,
    TRACELOOP_TASK,
    crewai_listeners_word,
    crewai_word,
    in_metadata,
    is_autogen_turn,
    is_langgraph_node,
    is_traceloop_node,
    langgraph_nesting,
    prefect_word,
    strands_word,
    traceloop_nesting,
)
from otel_step_hook.steps.event import STEP_ID_KEYS, Outcome
from otel_step_hook.steps.frameworks import letta
from otel_step_hook.steps.profile import (
    NOT_TERMINAL,
    Profile,
    both,
    either,
    event_named,
    first,
    has,
    joined,
    named,
    present,
    says,
    word_in,
)
from otel_step_hook.steps.runtime import dbos_step, dbos_word, temporal_word

_SUCCESS, _FAILED, _CANCELLED = Outcome
_TOOL_CALL = says("gen_ai.operation.name", "execute_tool")
_TOOL_CALL_ID = first("gen_ai.tool.call.id")
_HAYSTACK = r"haystack\.(agent\.step|component\.run)"
_AUTOGEN_PROCESS = named("autogen process .*")
_CREWAI_STEP = either(has("task_id"), has("flow.node.name"))

GENERIC = Profile(
    name="generic",
    marks=STEP_ID_KEYS,
    is_step=lambda _, attributes: "step_id" in attributes or "step.id" in attributes,
    step_id=first(*STEP_ID_KEYS),
)

PROFILES = (
    Profile(
        name="pydantic-ai",
        scopes=("pydantic-ai",),
        marks=("gen_ai.operation.name",),
        is_step=_TOOL_CALL,
        step_id=_TOOL_CALL_ID,
        word=present("pydantic_ai.tool.deferral.name"),
    ),
    Profile(
        name="langgraph",
        scopes=("openinference.instrumentation.langchain",),
        marks=("metadata",),
        is_step=is_langgraph_node,
        nesting=langgraph_nesting,  # an agent with a name of its own, added as the node of that name, is a piece
        step_id=lambda attributes: in_metadata(CHECKPOINT, attributes),
    ),
    Profile(
        name="langgraph",
        scopes=("opentelemetry.instrumentation.langchain",),
        marks=(f"{TRACELOOP_LANGGRAPH}node",),
        is_step=is_traceloop_node,
        nesting=traceloop_nesting,
        step_id=first(f"{TRACELOOP_LANGGRAPH}checkpoint_ns", "gen_ai.task.id"),
    ),
    Profile(
        name="openai-agents",
        scopes=("openinference.instrumentation.openai_agents",),
        marks=("openinference.span.kind",),
        is_step=both(named("turn"), says("openinference.span.kind", "CHAIN")),
        hides_failures=True,
    ),
    Profile(
        name="openai-agents",  # the traces of traceloop and of opentelemetry-instrumentation-openai-agents-v2
        scopes=("opentelemetry.instrumentation.openai_agents",),
        marks=("gen_ai.operation.name",),
        is_step=_TOOL_CALL,
        step_id=_TOOL_CALL_ID,
        hides_failures=True,
    ),
    Profile(
        name="temporal",
        marks=("temporalActivityID",),  # the tracer, and with it the scope, may be the application's own
        is_step=both(has("temporalActivityID"), named("RunActivity:.*")),
        step_id=joined("temporalRunID", "temporalActivityID"),
        word=temporal_word,
    ),
    Profile(
        name="dbos",
        scopes=("dbos-tracer",),
        marks=("operationType", "dbos.operation.type"),
        is_step=either(says("operationType", "step"), says("dbos.operation.type", "step")),
        step_id=lambda attributes: (
            joined("operationUUID", "step_number")(attributes)
            or joined("dbos.operation.workflow_id", "step_number")(attributes)
        ),
        step_number=dbos_step,
        word=dbos_word,
    ),
    Profile(
        name="prefect",
        scopes=("prefect",),
        marks=("prefect.run.type",),
        is_step=says("prefect.run.type", "task"),
        step_id=first("prefect.run.id"),
        word=prefect_word,
    ),
    Profile(
        name="smolagents",
        scopes=("openinference.instrumentation.smolagents",),
        marks=("openinference.span.kind",),
        is_step=named(r"Step \d+"),
    ),
    Profile(
        name="strands",
        scopes=("strands.telemetry.tracer",),
        marks=("event_loop.cycle_id",),
        is_step=has("event_loop.cycle_id"),
        starts="execute_event_loop_cycle|invoke_agent .*",
        step_id=first("event_loop.cycle_id"),
        ends=named("invoke_agent .*"),  # a cycle that is cancelled never ends
        word=strands_word,
    ),
    Profile(
        name="google-adk",
        scopes=("gcp.vertex.agent",),
        marks=("gen_ai.operation.name",),
        is_step=says("gen_ai.operation.name", "invoke_node"),
        is_tool=both(_TOOL_CALL, named(r"(?!execute_tool \(merged\)).*")),  # which stands for several of them
        starts="(invoke_node|invoke_agent|execute_tool|call_llm|generate_content).*",
        step_id=first("gen_ai.tool.call.id", but_not="<not specified>"),
    ),
    Profile(
        name="agent-framework",
        scopes=("agent_framework",),
        marks=("executor.id", "gen_ai.operation.name"),
        is_step=has("executor.id"),
        is_tool=_TOOL_CALL,
        starts=r"(executor\.process|invoke_agent|execute_tool|chat) .*",
        step_id=first("gen_ai.tool.call.id", but_not="unknown"),
    ),
    Profile(
        name="llama-index",
        scopes=("openinference.instrumentation.llama_index",),
        marks=("openinference.span.kind",),
        # A function may be a step; the parts of a pipeline are called.
        is_step=both(has("openinference.span.kind"), named(r"(?!.*\.(run|__call__)$).+")),
        below=named(r".*\.run"),
        word=event_named("span.cancelled", _CANCELLED),
    ),
    Profile(
        name="llama-index",
        scopes=("llamaindex.opentelemetry.tracer",),
        marks=("llamaindex.step.input_event",),
        is_step=both(has("llamaindex.step.input_event"), named(r"(?!.*\.run$).+")),
        below=named(r".*\.run"),
        word=event_named("SpanCancelledEvent", _CANCELLED),
    ),
    Profile(
        name="airflow",
        scopes=("airflow.api_fastapi.execution_api.routes.task_instances",),  # not the worker's span of the same task
        marks=("airflow.task_instance.id",),
        is_step=both(named(r"task_run\..*"), has("airflow.task_instance.id")),
        starts=r"task_run\..*",
        step_id=first("airflow.task_instance.id"),
        word=word_in(
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
    ),
    Profile(
        name="crewai",
        scopes=("crewai",),
        marks=("gen_ai.operation.name",),
        is_step=says("gen_ai.operation.name", "execute_task", "execute_method"),
        starts="execute task|call method",
        step_id=first("event_id", "crewai.task.id"),  # the second is the same for all runs of a task
        word=crewai_word,
    ),
    Profile(
        name="crewai",
        scopes=("openinference.instrumentation.crewai",),
        marks=("task_id", "flow.node.name"),
        is_step=_CREWAI_STEP,
        starts=r".*\._execute_core|.*\.execute",
    ),
    Profile(
        name="crewai",
        scopes=("openinference.instrumentation.crewai._event_listener",),
        marks=("task_id", "flow.node.name"),
        is_step=_CREWAI_STEP,
        starts=r".*\._execute_core|.*\.execute",
        word=crewai_listeners_word,
    ),
    Profile(
        name="crewai",
        scopes=("opentelemetry.instrumentation.crewai.instrumentation",),
        marks=("traceloop.span.kind",),
        is_step=TRACELOOP_TASK,
        is_tool=says("traceloop.span.kind", "agent"),  # of a task in a thread of its own, which has no span
        encloses=says("traceloop.span.kind", "task", "agent"),
    ),
    Profile(
        name="haystack",
        marks=("haystack.agent.step", "haystack.component.name"),  # the tracer may be the application's own
        is_step=named(_HAYSTACK),
        starts=_HAYSTACK,
    ),
    Profile(
        name="autogen",
        scopes=("autogen SingleThreadedAgentRuntime", "autogen Worker Runtime", "autogen-core"),
        marks=("messaging.operation", "gen_ai.operation.name"),
        is_step=both(_AUTOGEN_PROCESS, is_autogen_turn),
        is_tool=_TOOL_CALL,
        encloses=_AUTOGEN_PROCESS,
        starts="autogen process .*|invoke_agent .*",
        step_id=_TOOL_CALL_ID,
    ),
    Profile(
        name="traceloop",
        scopes=("traceloop.tracer",),
        marks=("traceloop.span.kind",),
        is_step=TRACELOOP_TASK,
        is_tool=says("traceloop.span.kind", "tool"),
        encloses=named(r".*\.task"),
        starts=r".*\.(task|tool|workflow|agent)",
    ),
    Profile(
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
        marks=("gen_ai.operation.name",),
        is_step=_TOOL_CALL,
        step_id=_TOOL_CALL_ID,
    ),
    Profile(
        name="letta",
        scopes=("letta.otel.tracing",),
        marks=("parameter.step_id",),
        is_step=letta.is_step,
        starts=letta.STARTS,
        step_id=first("parameter.step_id"),
        word=letta.word,
        is_once=True,
        tells=letta.tells,
        is_strict=True,
    ),
    # For the spans of all scopes that have no row above.
    GENERIC,
    Profile(
        name="cicd",
        marks=("cicd.pipeline.task.run.id", "cicd.pipeline.task.run.result"),
        is_step=either(has("cicd.pipeline.task.run.id"), has("cicd.pipeline.task.run.result")),
        step_id=first("cicd.pipeline.task.run.id"),
        word=word_in(
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
    ),
    Profile(
        name="gen-ai",
        marks=("gen_ai.operation.name",),
        is_step=_TOOL_CALL,
        step_id=_TOOL_CALL_ID,
    ),
)
