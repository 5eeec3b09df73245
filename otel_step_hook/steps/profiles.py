"""Which spans are steps: a table, one row per framework and instrumentation, and the rows for everybody else.

Measured on the spans of real runs, which ``tests/corpus`` keeps, and read in the sources of those
that are not there. A framework that has loops, nodes or tasks is recognised at that level, and its
tools only where it has nothing better, so that one piece of work is one webhook.
"""

import json
import re
from contextlib import suppress

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from otel_step_hook.steps import letta
from otel_step_hook.steps.engines import dbos_step, dbos_word, temporal_word
from otel_step_hook.steps.event import STEP_ID_KEYS, Outcome
from otel_step_hook.steps.rules import (
    NOT_TERMINAL,
    Attributes,
    Profile,
    Verdict,
    both,
    either,
    event_named,
    first,
    has,
    joined,
    named,
    plain,
    present,
    says,
    word_in,
)

_SUCCESS, _FAILED, _CANCELLED = Outcome
_TOOL_CALL = says("gen_ai.operation.name", "execute_tool")
_TOOL_CALL_ID = first("gen_ai.tool.call.id")
_NODE = re.compile(r'"langgraph_node": ("(?:[^"\\]|\\.)*")')  # in JSON that the SDK may have cut short
_CHECKPOINT = re.compile(r'"langgraph_checkpoint_ns": ("(?:[^"\\]|\\.)*")')
_HAYSTACK = r"haystack\.(agent\.step|component\.run)"
_TRACELOOP_LANGGRAPH = "traceloop.association.properties.langgraph_"


def _in_metadata(pattern: re.Pattern[str], attributes: Attributes) -> object:
    found = pattern.search(plain(attributes.get("metadata")))
    with suppress(ValueError):  # an escape that JSON does not know
        return json.loads(found[1], strict=False) if found else None
    return None


def _is_langgraphs_own(node: object) -> bool:
    return plain(node).startswith("__")  # such as __start__, where a conditional edge leads from there


def _is_node(name: str, attributes: Attributes) -> bool:
    """Not a conditional edge, a model or a piece of a chain: they say, too, in which node they are."""
    return "metadata" in attributes and _in_metadata(_NODE, attributes) == name and not _is_langgraphs_own(name)


def _is_traceloop_node(_: str, attributes: Attributes) -> bool:
    node = attributes.get(f"{_TRACELOOP_LANGGRAPH}node")
    is_node = node is not None and attributes.get("traceloop.entity.name") == node and _TASK("", attributes)
    return is_node and not _is_langgraphs_own(node)


def _prefect_word(span: ReadableSpan, _: Attributes, __: BaseException | None) -> Outcome | Verdict | None:
    """By Prefect's last state; CRASHED says nothing: a task that is cancelled crashes."""
    for event in reversed(span.events):
        state = plain((event.attributes or {}).get("prefect.state.type"))
        if state:
            return _PREFECT.get(state)
    return None


def _strands_word(_: ReadableSpan, attributes: Attributes, __: BaseException | None) -> Outcome | None:
    """The type of what has stopped an agent; when it is a generator's end, whoever asked has heard enough."""
    stopped_by = plain(attributes.get("strands.cancellation.type"))
    if not stopped_by:
        return None
    return _SUCCESS if stopped_by == "GeneratorExit" else _CANCELLED


def _crewai_word(span: ReadableSpan, attributes: Attributes, _: BaseException | None) -> Outcome | Verdict | None:
    """Cancelled, where its session has to end a span when it closes: CrewAI says nothing of what is cancelled."""
    if attributes.get("crewai.event_name") == "method_execution_paused":
        return NOT_TERMINAL
    return _CANCELLED if plain(span.status.description).startswith("Span orphaned") else None


def _crewai_listeners_word(span: ReadableSpan, _: Attributes, __: BaseException | None) -> Verdict | None:
    """Not terminal, where the listener ends what is still open when it is taken away: an error without a word."""
    is_mute = not span.status.description and not span.events
    return NOT_TERMINAL if is_mute and span.status.status_code is StatusCode.ERROR else None


def _is_autogen_turn(_: str, attributes: Attributes) -> bool:
    """Not what a team says to itself: of its messages only the request to speak is work."""
    kind = attributes.get("recipient_agent_class")
    if kind == "ChatAgentContainer":
        asked = attributes.get("message") == "{}"  # the others carry something
        return asked and '"is_rpc": false' in plain(attributes.get("message_context"))  # and it is no reset or pause
    return kind not in _AUTOGEN_MANAGERS


_AUTOGEN_MANAGERS = (
    "RoundRobinGroupChatManager",
    "SelectorGroupChatManager",
    "SwarmGroupChatManager",
    "GraphFlowManager",
    "MagenticOneOrchestrator",
)
_AUTOGEN_PROCESS = named("autogen process .*")
_CREWAI_STEP = either(has("task_id"), has("flow.node.name"))
_TASK = says("traceloop.span.kind", "task")
_PREFECT: dict[str, Outcome | Verdict] = {
    "COMPLETED": _SUCCESS,
    "FAILED": _FAILED,
    "CANCELLED": _CANCELLED,
    "PAUSED": NOT_TERMINAL,
    "SCHEDULED": NOT_TERMINAL,  # suspended
}

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
        is_step=_is_node,
        has_namesakes=True,  # an agent with a name of its own, added as the node of that name
        step_id=lambda attributes: _in_metadata(_CHECKPOINT, attributes),
    ),
    Profile(
        name="langgraph",
        scopes=("opentelemetry.instrumentation.langchain",),
        marks=(f"{_TRACELOOP_LANGGRAPH}node",),
        is_step=_is_traceloop_node,
        has_namesakes=True,
        step_id=first(f"{_TRACELOOP_LANGGRAPH}checkpoint_ns", "gen_ai.task.id"),
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
        word=_prefect_word,
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
        word=_strands_word,
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
        word=_crewai_word,
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
        word=_crewai_listeners_word,
    ),
    Profile(
        name="crewai",
        scopes=("opentelemetry.instrumentation.crewai.instrumentation",),
        marks=("traceloop.span.kind",),
        is_step=_TASK,
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
        is_step=both(_AUTOGEN_PROCESS, _is_autogen_turn),
        is_tool=_TOOL_CALL,
        encloses=_AUTOGEN_PROCESS,
        starts="autogen process .*|invoke_agent .*",
        step_id=_TOOL_CALL_ID,
    ),
    Profile(
        name="traceloop",
        scopes=("traceloop.tracer",),
        marks=("traceloop.span.kind",),
        is_step=_TASK,
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
