"""The rows whose steps are recognised by their own span alone: agents' turns, tool calls and tasks."""

import asyncio
from itertools import product

import pytest
from emitting import (
    CANCELLED,
    ERROR,
    FAILED,
    IS_OK,
    OK,
    RETURNED,
    SUCCESS,
    UNSET,
    Attributes,
    Ending,
    Framework,
    end,
    ended,
    endings,
    generated_id,
    in_flight,
    recorded,
)
from opentelemetry.trace import StatusCode

from otel_step_hook.steps.event import Outcome

_CANCELLED = "asyncio.exceptions.CancelledError"
_TOOL = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "weather"}
_CALL = {**_TOOL, "gen_ai.tool.call.id": "call-1"}


class CallDeferred(Exception):  # noqa: N818 -- pydantic-ai's own name
    """pydantic-ai's exception for a tool call that is answered outside of the run."""


class UserError(Exception):
    """The exception of OpenAI Agents."""


# pydantic-ai


@endings(
    returned=(RETURNED, SUCCESS),
    failed=(recorded("ValueError", ValueError), FAILED),
    timeout=(recorded("TimeoutError", TimeoutError), FAILED),
    cancelled=(recorded(_CANCELLED, asyncio.CancelledError), CANCELLED),
    deferred=(
        Ending(attributes={"pydantic_ai.tool.deferral.name": "CallDeferred"}, in_flight=CallDeferred),
        None,
    ),
    deferred_as_error=(
        recorded("pydantic_ai.exceptions.CallDeferred", attributes={"pydantic_ai.tool.deferral.name": "CallDeferred"}),
        None,
    ),
    approval=(Ending(attributes={"pydantic_ai.tool.deferral.name": "ApprovalRequired"}), None),
)
@pytest.mark.parametrize("name", ["execute_tool weather", "running tool"])
def test_pydantic_ai_reports_its_tool_calls(name: str, ending: Ending, outcome: Outcome | None) -> None:
    """A tool call is a step under the id of the call; a deferred call has not ended."""
    agent = Framework("pydantic-ai")
    agent.emit(name, _CALL, ending=ending)
    assert agent.steps == ended(name, "call-1", outcome)


def test_pydantic_ai_reports_a_tool_call_that_ends_after_its_run() -> None:
    """A cancellation ends the spans of run and model call first, which are no steps; the tool call is one."""
    agent = Framework("pydantic-ai")
    run = agent.start("invoke_agent demo", {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.call.id": "run-1"})
    agent.emit("chat test", {"gen_ai.operation.name": "chat"}, below=run, ending=in_flight(asyncio.CancelledError))
    tool = agent.start("execute_tool weather", _TOOL, below=run)
    end(run, in_flight(asyncio.CancelledError))
    assert agent.steps == []
    end(tool, recorded(_CANCELLED, asyncio.CancelledError))
    assert agent.steps == ended("execute_tool weather", generated_id(tool), CANCELLED)


# OpenAI Agents


@endings(
    returned=(IS_OK, SUCCESS),
    failed=(in_flight(UserError, OK), FAILED),
    cancelled=(in_flight(asyncio.CancelledError, OK), CANCELLED),
    interrupted=(in_flight(KeyboardInterrupt, OK), CANCELLED),
    closed_early=(in_flight(GeneratorExit, OK), SUCCESS),
    error=(Ending(status=ERROR, description="Max turns exceeded: {'max_turns': 1}"), FAILED),
)
def test_openai_agents_reports_its_turns(ending: Ending, outcome: Outcome) -> None:
    """A turn is a step; its status is OK also after a failure, and only the exception in flight shows the outcome."""
    agents = Framework("openinference.instrumentation.openai_agents")
    turn = agents.emit("turn", {"openinference.span.kind": "CHAIN"}, ending=ending)
    assert agents.steps == ended("turn", generated_id(turn), outcome)


def test_openai_agents_reports_nothing_but_turns() -> None:
    """Workflow, agent, model and tools are no steps, not even a tool named `turn`."""
    agents = Framework("openinference.instrumentation.openai_agents")
    root = agents.start("Agent workflow", {"openinference.span.kind": "AGENT"})
    inner = agents.start("Agent workflow", {"openinference.span.kind": "CHAIN"}, below=root)
    agent = agents.start("demo", {"openinference.span.kind": "AGENT"}, below=inner)
    turn = agents.start("turn", {"openinference.span.kind": "CHAIN"}, below=agent)
    tool = agents.start("turn", {"openinference.span.kind": "TOOL"}, later={"tool.name": "turn"}, below=turn)
    agents.emit("response", {"openinference.span.kind": "LLM"}, below=turn, ending=IS_OK)
    for span in (turn, agent, inner, root, tool):
        end(span, in_flight(asyncio.CancelledError, OK))
    assert agents.steps == ended("turn", generated_id(turn), CANCELLED)


@endings(
    returned=(IS_OK, SUCCESS),
    returned_without_status=(RETURNED, SUCCESS),
    failed=(Ending(status=ERROR, description="Error running tool: {'tool_name': 'weather'}"), FAILED),
    failed_in_flight=(in_flight(UserError, OK), FAILED),
    cancelled=(in_flight(asyncio.CancelledError, OK), CANCELLED),
)
def test_openai_agents_without_turns_reports_its_tools(ending: Ending, outcome: Outcome) -> None:
    """With instrumentations that have no turns, tool calls are the steps; agents and responses are none."""
    agents = Framework("opentelemetry.instrumentation.openai_agents")
    agent = agents.start("demo.agent", {"gen_ai.operation.name": "invoke_agent", "traceloop.span.kind": "agent"})
    tool = agents.emit("weather.tool", _TOOL, below=agent, ending=ending)
    agents.emit("openai.response", {"gen_ai.operation.name": "chat"}, below=agent, ending=ending)
    agents.emit("execute_tool weather", _CALL, below=agent, ending=ending)
    end(agent, ending)
    assert agents.steps == [
        *ended("weather.tool", generated_id(tool), outcome),
        *ended("execute_tool weather", "call-1", outcome),
    ]


# smolagents

_RAISED = ("exception", {"exception.type": "AgentError"})


@endings(
    returned=(IS_OK, SUCCESS),
    failed=(Ending(status=ERROR, description="broke", events=(_RAISED, _RAISED), in_flight=ValueError), FAILED),
    interrupted=(in_flight(KeyboardInterrupt, OK), CANCELLED),
    recovered=(Ending(status=OK, events=(_RAISED, ("agent.step_recovery", {"error": "no such tool"}))), SUCCESS),
)
def test_smolagents_reports_its_steps(ending: Ending, outcome: Outcome) -> None:
    """A span named ``Step N`` is a step; the run, the model, the tools and spans of similar names are none."""
    agent = Framework("openinference.instrumentation.smolagents")
    run = agent.start("CodeAgent.run", {"openinference.span.kind": "AGENT"})
    first = agent.start("Step 1", {"openinference.span.kind": "CHAIN"}, below=run)
    agent.emit("OpenAIModel.generate", {"openinference.span.kind": "LLM"}, below=first, ending=ending)
    agent.emit("FinalAnswerTool", {"openinference.span.kind": "TOOL"}, below=first, ending=ending)
    end(first, IS_OK)
    tenth = agent.emit("Step 10", {"openinference.span.kind": "CHAIN"}, below=run, ending=ending)
    for name in ("Step", "Step one", "Step 1 of 2", "My Step 1"):
        agent.emit(name, {"openinference.span.kind": "CHAIN"}, below=run, ending=ending)
    end(run, ending)
    assert agent.steps == [
        *ended("Step 1", generated_id(first), SUCCESS),
        *ended("Step 10", generated_id(tenth), outcome),
    ]


# util-genai, and other spans that follow the semantic conventions for generative AI

_CONVENTIONAL = {
    "returned": (RETURNED, SUCCESS),
    "failed": (Ending(status=ERROR, description="broke", attributes={"error.type": "ValueError"}), FAILED),
    "cancelled": (Ending(status=ERROR, attributes={"error.type": _CANCELLED}), CANCELLED),
    "cancelled by its bare name": (Ending(status=ERROR, attributes={"error.type": "CancelledError"}), CANCELLED),
    "cancelled in flight": (in_flight(asyncio.CancelledError), CANCELLED),
    "failed without a status": (Ending(attributes={"error.type": "tool_error"}), FAILED),
}
_CONVENTIONAL_SCOPES = (
    "opentelemetry.util.genai.handler",
    "opentelemetry.instrumentation.genai.langchain",
    "opentelemetry.instrumentation.genai.llama_index",
    "opentelemetry.instrumentation.genai.openai_agents",
    "opentelemetry.instrumentation.genai.smolagents",
    "the.application",  # the profile gen-ai: the conventions under a scope that is in no row
    "",
)


def test_the_conventions_for_generative_ai_report_tool_calls() -> None:
    """A tool call is a step under any scope; workflow, agent and model are none."""
    expected, found = {}, {}
    for case in product(_CONVENTIONAL_SCOPES, _CONVENTIONAL):
        agent, (ending, outcome) = Framework(case[0]), _CONVENTIONAL[case[1]]
        run = agent.start("invoke_workflow demo", {"gen_ai.operation.name": "invoke_workflow"})
        for operation in ("invoke_agent", "create_agent", "chat", "generate_content", "embeddings", "retrieval"):
            agent.emit(f"{operation} demo", {"gen_ai.operation.name": operation}, below=run, ending=ending)
        agent.emit("execute_tool weather", _CALL, below=run, ending=ending)
        without_id = agent.emit("execute_tool weather", _TOOL, below=run, ending=ending)
        end(run, ending)
        ids = "call-1", generated_id(without_id)
        expected[case] = [step for step_id in ids for step in ended("execute_tool weather", step_id, outcome)]
        found[case] = agent.steps
    assert found == expected


# LangSmith


@pytest.mark.parametrize("status", [ERROR, OK])
@pytest.mark.parametrize(
    ("message", "outcome"),
    [
        ("ValueError('broke')Traceback (most recent call last)", FAILED),
        ("it broke", FAILED),
        ("", FAILED),
        ("CancelledError()Traceback (most recent call last)", CANCELLED),
        ("CancelledError()\n\nNoneType: None", CANCELLED),
        ("CancelledError said the service", FAILED),
        ("KeyboardInterrupt()", CANCELLED),
        ("GraphInterrupt((Interrupt(value='approve?'),))", None),
        ("GeneratorExit()", SUCCESS),
    ],
)
def test_langsmith_reports_tools_by_the_recorded_message(
    message: str, status: StatusCode, outcome: Outcome | None
) -> None:
    """Each exception is recorded as an ``Exception``, under ERROR or OK; its message begins with the real one."""
    recording = (("exception", {"exception.type": "Exception", "exception.message": message}),)
    tracing = Framework("langsmith")
    tracing.emit("act", later={"gen_ai.operation.name": "chain"}, ending=Ending(status=status, events=recording))
    tracing.emit("slow", later=_CALL, ending=Ending(status=status, events=(("new_token", {}), *recording)))
    tracing.emit("ok", later=_CALL, ending=IS_OK)
    assert tracing.steps == [*ended("slow", "call-1", outcome), *ended("ok", "call-1", SUCCESS)]


# Haystack


@endings(
    returned=(RETURNED, SUCCESS),
    failed=(recorded("ValueError", ValueError, description="ValueError: broke"), FAILED),
    cancelled=(in_flight(asyncio.CancelledError), CANCELLED),
)
@pytest.mark.parametrize("scope", ["haystack", "the application's own tracer"])
@pytest.mark.parametrize(
    ("name", "later"),
    [
        ("haystack.agent.step", {"haystack.agent.step": 0}),
        ("haystack.component.run", {"haystack.component.name": "retriever"}),
    ],
)
def test_haystack_reports_steps_and_components(
    scope: str, name: str, later: Attributes, ending: Ending, outcome: Outcome
) -> None:
    """Agents' steps and components are steps under any scope; pipeline, agent and tools are none."""
    haystack = Framework(scope)
    pipeline = haystack.start("haystack.pipeline.run", later={"haystack.pipeline.metadata": "{}"})
    step = haystack.emit(name, later=later, below=pipeline, ending=ending)
    haystack.emit("haystack.agent.run", later={"haystack.agent.max_steps": 3}, below=pipeline, ending=ending)
    haystack.emit("haystack.tool.run", later={"haystack.tool.name": "weather"}, below=pipeline, ending=ending)
    haystack.emit(name, below=pipeline, ending=ending)  # another library's span, without the attributes
    end(pipeline, ending)
    assert haystack.steps == ended(name, generated_id(step), outcome)


def test_haystack_reports_components_that_the_sdk_ends() -> None:
    """An exception that leaves the SDK's own context manager decides the outcome."""
    haystack = Framework("haystack")
    for raising in (ValueError, asyncio.CancelledError):
        haystack.run("haystack.component.run", {"haystack.component.name": "llm"}, raising)
    assert [step.outcome for step in haystack.steps] == [FAILED, CANCELLED]


def test_haystack_reports_no_breakpoint() -> None:
    """At a breakpoint the pipeline has saved a snapshot, from which it continues later."""
    haystack = Framework("haystack")
    broken = recorded("haystack.core.errors.BreakpointException", description="BreakpointException: Breaking at …")
    haystack.emit("haystack.component.run", later={"haystack.component.name": "llm"}, ending=broken)
    assert haystack.steps == []


# CrewAI, by its own spans and by those of two instrumentations

_ORPHANED = "Span orphaned — execution ended before completion event"  # the description that CrewAI sets when it closes


@endings(
    returned=(IS_OK, SUCCESS),
    failed=(Ending(status=ERROR, description="broke", attributes={"error.type": "ValueError"}), FAILED),
    failed_with_event=(recorded("ValueError"), FAILED),
    paused=(Ending(attributes={"crewai.event_name": "method_execution_paused"}), None),
    paused_with_error=(Ending(status=ERROR, attributes={"crewai.event_name": "method_execution_paused"}), None),
    finished=(Ending(status=OK, attributes={"crewai.event_name": "method_execution_finished"}), SUCCESS),
    orphaned=(Ending(status=ERROR, description=_ORPHANED), CANCELLED),
    orphaned_by_a_timeout=(Ending(status=ERROR, description=_ORPHANED, in_flight=TimeoutError), CANCELLED),
)
def test_crewai_reports_tasks_and_methods(ending: Ending, outcome: Outcome | None) -> None:
    """Tasks and methods of flows are steps under the id of their event; crews, agents, models and tools are none."""
    crew = Framework("crewai")
    for operation in ("invoke_workflow", "invoke_agent", "chat", "execute_tool"):
        crew.emit(operation, later={"gen_ai.operation.name": operation, "event_id": "event-0"}, ending=ending)
    task = {"gen_ai.operation.name": "execute_task", "crewai.task.id": "task-1"}
    crew.emit("execute task", later={**task, "event_id": "event-1"}, ending=ending)
    crew.emit("execute task", later=task, ending=ending)
    method = {"gen_ai.operation.name": "execute_method", "crewai.method.name": "plan"}
    crew.emit("call method", later={**method, "event_id": "event-2"}, ending=ending)
    without_id = crew.emit("call method", later=method, ending=ending)
    assert crew.steps == [
        *ended("execute task", "event-1", outcome),
        *ended("execute task", "task-1", outcome),
        *ended("call method", "event-2", outcome),
        *ended("call method", generated_id(without_id), outcome),
    ]


_INSTRUMENTED = endings(
    returned=(IS_OK, SUCCESS),
    failed=(recorded("ValueError", ValueError, description="ValueError: no"), FAILED),
    cancelled=(in_flight(KeyboardInterrupt, UNSET), CANCELLED),
)


@_INSTRUMENTED
@pytest.mark.parametrize(
    "scope", ["openinference.instrumentation.crewai", "openinference.instrumentation.crewai._event_listener"]
)
def test_crewai_with_openinference_reports_tasks_and_nodes(scope: str, ending: Ending, outcome: Outcome) -> None:
    """Tasks and nodes of flows are steps; crews, agents and tools are none."""
    crew = Framework(scope)
    kickoff = crew.start("Crew_1.kickoff", {"openinference.span.kind": "CHAIN"})
    task = crew.emit("Researcher._execute_core", later={"task_id": "task-1"}, below=kickoff, ending=ending)
    node = crew.emit("plan.execute", later={"flow.node.name": "plan"}, below=kickoff, ending=ending)
    crew.emit("ToolUsage._use", {"openinference.span.kind": "TOOL"}, below=task, ending=ending)
    end(kickoff, ending)
    assert crew.steps == [
        *ended("Researcher._execute_core", generated_id(task), outcome),
        *ended("plan.execute", generated_id(node), outcome),
    ]


def test_crewai_with_openinference_reports_no_pause() -> None:
    """A method that waits for human feedback has not ended, nor has one whose span a removed event listener ends."""
    flow = Framework("openinference.instrumentation.crewai")
    pending = recorded("crewai.flow.async_feedback.types.HumanFeedbackPending", description="")
    flow.emit("Flow_1.ask", later={"flow.node.name": "ask"}, ending=pending)
    listener = Framework("openinference.instrumentation.crewai._event_listener")
    listener.emit("Flow_1.ask", {"flow.node.name": "ask"}, ending=Ending(status=ERROR))
    assert [*flow.steps, *listener.steps] == []


@_INSTRUMENTED
def test_crewai_with_traceloop_reports_tasks_in_threads(ending: Ending, outcome: Outcome) -> None:
    """A task that runs in a thread has no span: the span of its agent is the step, and not those of agents below it."""
    crew = Framework("opentelemetry.instrumentation.crewai.instrumentation")
    workflow = crew.start("crewai.workflow", {"traceloop.span.kind": "workflow"})
    agent = crew.start("Researcher.agent", {"traceloop.span.kind": "agent"}, below=workflow)
    crew.emit("Writer.agent", {"traceloop.span.kind": "agent"}, below=agent, ending=ending)
    end(agent, ending)
    assert crew.steps == ended("Researcher.agent", generated_id(agent), outcome)


@_INSTRUMENTED
def test_crewai_with_traceloop_reports_tasks(ending: Ending, outcome: Outcome) -> None:
    """Tasks are steps; workflow, agents and models are none."""
    crew = Framework("opentelemetry.instrumentation.crewai.instrumentation")
    workflow = crew.start("crewai.workflow", {"traceloop.span.kind": "workflow"})
    task = crew.start("Research.task", {"traceloop.span.kind": "task"}, below=workflow)
    crew.emit("Researcher.agent", {"traceloop.span.kind": "agent"}, below=task, ending=ending)
    crew.emit("gpt.llm", {"gen_ai.operation.name": "chat"}, below=task, ending=ending)
    end(task, ending)
    end(workflow, ending)
    assert crew.steps == ended("Research.task", generated_id(task), outcome)
