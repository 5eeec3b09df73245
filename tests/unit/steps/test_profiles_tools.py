"""The rows whose tool calls are steps only outside of other steps."""

import asyncio
import enum
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

from otel_step_hook.steps.event import Outcome

_TOOL = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "weather"}
_CALL = {**_TOOL, "gen_ai.tool.call.id": "call-1"}
_SDK = pytest.mark.parametrize(
    ("raising", "outcome"),
    [
        (None, SUCCESS),
        (ValueError, FAILED),
        (asyncio.CancelledError, CANCELLED),
        (KeyboardInterrupt, CANCELLED),
        (GeneratorExit, SUCCESS),
    ],
)

# Google ADK

_ADK = "gcp.vertex.agent"
_ADK_SCOPES = pytest.mark.parametrize("scope", [_ADK, "openinference.instrumentation.google_adk"])
_NODE = {"gen_ai.operation.name": "invoke_node"}


@_SDK
@_ADK_SCOPES
def test_google_adk_reports_its_nodes(scope: str, raising: type[BaseException] | None, outcome: Outcome) -> None:
    """A node is a step, and the exception that leaves the SDK's context manager decides its outcome."""
    adk = Framework(scope)
    node = adk.run("invoke_node plan", _NODE, raising)
    assert adk.steps == ended("invoke_node plan", generated_id(node), outcome)


@endings(
    returned=(RETURNED, SUCCESS),
    failed=(
        Ending(
            status=ERROR,
            events=(("exception", {"exception.type": "ValueError"}),) * 2,
            attributes={"error.type": "ValueError"},
            in_flight=ValueError,
        ),
        FAILED,
    ),
    cancelled=(in_flight(asyncio.CancelledError), CANCELLED),
    cancelled_under_ok=(in_flight(asyncio.CancelledError, OK), CANCELLED),  # as openinference leaves it
    closed_early=(in_flight(GeneratorExit), SUCCESS),
)
@_ADK_SCOPES
def test_google_adk_reports_the_tools_of_an_agent_without_nodes(scope: str, ending: Ending, outcome: Outcome) -> None:
    """Outside of nodes, tool calls are the steps; agents, models and the merged span of several tools are none."""
    adk = Framework(scope)
    agent = adk.start("invoke_agent demo", later={"gen_ai.operation.name": "invoke_agent"})
    model = adk.start("call_llm", later={"gen_ai.operation.name": "generate_content"}, below=agent)
    adk.emit("execute_tool weather", later=_CALL, below=model, ending=ending)
    nameless = {**_TOOL, "gen_ai.tool.call.id": "<not specified>"}
    without_id = adk.emit("execute_tool weather", later=nameless, below=model, ending=ending)
    adk.emit("execute_tool (merged)", later={**_TOOL, "gen_ai.tool.call.id": "event-1"}, below=agent, ending=ending)
    end(model, ending)
    end(agent, ending)
    assert adk.steps == [
        *ended("execute_tool weather", "call-1", outcome),
        *ended("execute_tool weather", generated_id(without_id), outcome),
    ]


@endings(
    returned=(RETURNED, None),
    returned_under_ok=(IS_OK, None),
    failed=(recorded("ValueError", ValueError, attributes={"error.type": "ValueError"}), FAILED),
    cancelled=(in_flight(asyncio.CancelledError), CANCELLED),
    cancelled_under_ok=(in_flight(asyncio.CancelledError, OK), CANCELLED),
)
@_ADK_SCOPES
def test_google_adk_reports_no_long_running_tool_that_is_pending(
    scope: str, ending: Ending, outcome: Outcome | None
) -> None:
    """A long-running tool returns before its work is done; one that raises, or is cancelled, has ended."""
    adk = Framework(scope)
    adk.emit("execute_tool ask", later={**_CALL, "gen_ai.tool.type": "LongRunningFunctionTool"}, ending=ending)
    adk.emit("execute_tool weather", later={**_CALL, "gen_ai.tool.type": "FunctionTool"})
    assert adk.steps == [
        *ended("execute_tool ask", "call-1", outcome),
        *ended("execute_tool weather", "call-1", SUCCESS),
    ]


@pytest.mark.parametrize("between", ["", _ADK, "the.application", "opentelemetry.instrumentation.httpx"])
@_ADK_SCOPES
def test_google_adk_reports_no_tools_inside_a_node(scope: str, between: str) -> None:
    """A tool inside a node is a part of it, also if spans of any scope are between them."""
    adk = Framework(scope)
    node = adk.start("invoke_node plan", _NODE)
    inside = adk.start("work", below=node, scope=between) if between else node
    adk.emit("execute_tool weather", later=_CALL, below=inside)
    adk.emit("execute_tool (merged)", later=_CALL, below=inside)
    end(node)
    assert adk.steps == ended("invoke_node plan", generated_id(node), SUCCESS)


def test_google_adk_reports_no_tools_of_a_node_that_has_ended() -> None:
    """A tool that ends after its node, or starts below a tool that the node left open, is a part of the node."""
    adk = Framework(_ADK)
    node = adk.start("invoke_node plan", _NODE)
    tool = adk.start("execute_tool weather", later=_CALL, below=node)
    end(node)
    adk.emit("execute_tool weather", later=_CALL, below=tool)
    end(tool)
    assert adk.steps == ended("invoke_node plan", generated_id(node), SUCCESS)


def test_google_adk_reports_tools_beside_a_node() -> None:
    """A tool that is not below a node is a step, and a node inside a node is a step as well."""
    adk = Framework(_ADK)
    root = adk.start("invocation")
    node = adk.start("invoke_node plan", _NODE, below=root)
    adk.emit("execute_tool weather", later=_CALL, below=root)
    inner = adk.emit("invoke_node inner", _NODE, below=node)
    end(node)
    assert adk.steps == [
        *ended("execute_tool weather", "call-1", SUCCESS),
        *ended("invoke_node inner", generated_id(inner), SUCCESS),
        *ended("invoke_node plan", generated_id(node), SUCCESS),
    ]


# Microsoft's agent framework


class _Key(str, enum.Enum):  # noqa: UP042 -- as in the framework: str() of a member is not its value
    EXECUTOR_ID = "executor.id"
    OPERATION = "gen_ai.operation.name"
    CALL_ID = "gen_ai.tool.call.id"


class _Value(str, enum.Enum):  # noqa: UP042 -- see above
    EXECUTE_TOOL = "execute_tool"
    CHAT = "chat"
    CALL_1 = "call-1"
    UNKNOWN = "unknown"


_MAF = "agent_framework"


@endings(
    returned=(RETURNED, SUCCESS),
    failed=(Ending(status=ERROR, attributes={"error.type": "ValueError"}, in_flight=ValueError), FAILED),
    cancelled=(in_flight(asyncio.CancelledError), CANCELLED),
)
def test_agent_framework_reports_executors_without_their_tools(ending: Ending, outcome: Outcome) -> None:
    """An executor is a step under a generated id; the workflow, and the tools inside the executor, are none."""
    framework = Framework(_MAF)
    workflow = framework.start("workflow.run", {"workflow.id": "workflow-1"})
    executor = framework.start("executor.process plan", {_Key.EXECUTOR_ID: "plan"}, below=workflow)
    agent = framework.start("invoke_agent demo", {_Key.OPERATION: "invoke_agent"}, below=executor)
    call: Attributes = {_Key.OPERATION: _Value.EXECUTE_TOOL, _Key.CALL_ID: _Value.CALL_1}
    framework.emit("execute_tool weather", call, below=agent, ending=ending)
    framework.emit("message.send", {"message.type": "text"}, below=executor, ending=ending)
    for span in (agent, executor, workflow):
        end(span, ending)
    assert framework.steps == ended("executor.process plan", generated_id(executor), outcome)


@endings(
    returned=(RETURNED, SUCCESS),
    failed=(recorded("ValueError", ValueError, attributes={"error.type": "ValueError"}), FAILED),
    cancelled=(in_flight(asyncio.CancelledError), CANCELLED),
)
def test_agent_framework_reports_the_tools_of_an_agent_outside_of_workflows(ending: Ending, outcome: Outcome) -> None:
    """Outside of executors, tool calls are the steps; agents and models are none, and ``unknown`` is no id."""
    framework = Framework(_MAF)
    agent = framework.start("invoke_agent demo", {_Key.OPERATION: "invoke_agent"})
    framework.emit("chat gpt", {_Key.OPERATION: _Value.CHAT}, below=agent, ending=ending)
    call: Attributes = {_Key.OPERATION: _Value.EXECUTE_TOOL, _Key.CALL_ID: _Value.CALL_1}
    framework.emit("execute_tool weather", call, below=agent, ending=ending)
    nameless: Attributes = {_Key.OPERATION: _Value.EXECUTE_TOOL, _Key.CALL_ID: _Value.UNKNOWN}
    without_id = framework.emit("execute_tool weather", nameless, below=agent, ending=ending)
    end(agent, ending)
    assert framework.steps == [
        *ended("execute_tool weather", "call-1", outcome),
        *ended("execute_tool weather", generated_id(without_id), outcome),
    ]
    assert type(framework.steps[0].step_id) is str


# AutoGen

_SENT, _PUBLISHED = '{"sender": "x", "is_rpc": true}', '{"sender": "x", "is_rpc": false}'

_RUNTIMES = ("autogen SingleThreadedAgentRuntime", "autogen Worker Runtime", "autogen-core")
_EACH_RUNTIME = pytest.mark.parametrize("scope", _RUNTIMES)


@_SDK
@_EACH_RUNTIME
def test_autogen_reports_the_messages_that_agents_process(
    scope: str, raising: type[BaseException] | None, outcome: Outcome
) -> None:
    """The processing of a message by an agent is a step; creating, sending and publishing messages are none."""
    autogen = Framework(scope)
    step = autogen.run("autogen process writer.(default)-A", {"messaging.operation": "process"}, raising)
    for operation in ("create", "send", "publish", "ack"):
        autogen.run(f"autogen {operation} writer.(default)-A", {"messaging.operation": operation}, raising)
    assert autogen.steps == ended("autogen process writer.(default)-A", generated_id(step), outcome)


def test_autogen_reports_the_answers_of_a_teams_agents() -> None:
    """In a team, only an agent's answer is a step; an agent class of the application reports each message."""
    is_step = {
        ("ChatAgentContainer", "{}", _PUBLISHED): True,
        ("ChatAgentContainer", "{}", _SENT): False,  # a reset or a pause
        ("ChatAgentContainer", '{"agent_response": 1}', _PUBLISHED): False,  # an answer of another agent
        ("RoundRobinGroupChatManager", '{"messages": []}', _PUBLISHED): False,
        ("MagenticOneOrchestrator", "{}", _PUBLISHED): False,
        ("Writer", "{}", _SENT): True,
        ("Writer", '{"text": "hello"}', _PUBLISHED): True,
    }
    expected, found = {}, {}
    for case in product(_RUNTIMES, is_step):
        autogen, (kind, message, context) = Framework(case[0]), case[1]
        attributes = {"recipient_agent_class": kind, "message": message, "message_context": context}
        span = autogen.emit("autogen process writer.(default)-A", {"messaging.operation": "process", **attributes})
        step = ended("autogen process writer.(default)-A", generated_id(span), SUCCESS)
        expected[case] = step if is_step[case[1]] else []
        found[case] = autogen.steps
    assert found == expected


def test_autogen_reports_no_tools_inside_a_message_of_a_team() -> None:
    """A tool is a part of the message whose processing called it, although the message itself is not reported."""
    autogen = Framework("autogen-core")
    attributes = {"messaging.operation": "process", "recipient_agent_class": "SelectorGroupChatManager"}
    step = autogen.start("autogen process m.(default)-A", attributes, scope="autogen SingleThreadedAgentRuntime")
    autogen.emit("execute_tool weather", _CALL, below=step)
    end(step)
    assert autogen.steps == []


@_EACH_RUNTIME
def test_autogen_reports_tools_only_outside_of_messages(scope: str) -> None:
    """A tool is a step only if no runtime is processing the message whose processing called it."""
    autogen = Framework("autogen-core")
    step = autogen.start("autogen process writer.(default)-A", {"messaging.operation": "process"}, scope=scope)
    agent = autogen.start("invoke_agent writer", {"gen_ai.operation.name": "invoke_agent"}, below=step)
    autogen.emit("execute_tool weather", _CALL, below=agent)
    end(agent)
    end(step)
    alone = autogen.start("invoke_agent writer", {"gen_ai.operation.name": "invoke_agent"})
    autogen.emit("execute_tool weather", _CALL, below=alone, ending=recorded("ValueError", ValueError))
    autogen.emit("execute_tool weather", _CALL, below=alone, ending=in_flight(asyncio.CancelledError))
    without_id = autogen.emit("execute_tool weather", _TOOL, below=alone)
    assert autogen.steps == [
        *ended("autogen process writer.(default)-A", generated_id(step), SUCCESS),
        *ended("execute_tool weather", "call-1", FAILED),
        *ended("execute_tool weather", "call-1", CANCELLED),
        *ended("execute_tool weather", generated_id(without_id), SUCCESS),
    ]


# The decorators of traceloop-sdk

_TRACELOOP = "traceloop.tracer"
_DECORATED = endings(
    returned=(RETURNED, SUCCESS),
    failed=(recorded("ValueError", ValueError, description="broke"), FAILED),
    cancelled=(in_flight(asyncio.CancelledError), CANCELLED),
)


@_DECORATED
def test_traceloop_reports_tasks_without_their_tools(ending: Ending, outcome: Outcome) -> None:
    """A task is a step, also inside another task; its tools, workflows and agents are none."""
    app = Framework(_TRACELOOP)
    workflow = app.start("report.workflow", later={"traceloop.span.kind": "workflow"})
    agent = app.start("writer.agent", later={"traceloop.span.kind": "agent"}, below=workflow)
    task = app.start("write.task", later={"traceloop.span.kind": "task"}, below=agent)
    app.emit("search.tool", later={"traceloop.span.kind": "tool"}, below=task, ending=ending)
    model = app.start("openai.chat", below=task, scope="opentelemetry.instrumentation.openai.v1")
    app.emit("search.tool", later={"traceloop.span.kind": "tool"}, below=model, ending=ending)
    inner = app.emit("review.task", later={"traceloop.span.kind": "task"}, below=task, ending=ending)
    for span in (model, task, agent, workflow):
        end(span, ending)
    assert app.steps == [
        *ended("review.task", generated_id(inner), outcome),
        *ended("write.task", generated_id(task), outcome),
    ]


@_DECORATED
def test_traceloop_reports_tools_outside_of_tasks(ending: Ending, outcome: Outcome) -> None:
    """A tool alone, or inside a workflow or another tool, is a step."""
    app = Framework(_TRACELOOP)
    workflow = app.start("report.workflow", later={"traceloop.span.kind": "workflow"})
    outer = app.start("search.tool", later={"traceloop.span.kind": "tool"}, below=workflow)
    inner = app.emit("fetch.tool", later={"traceloop.span.kind": "tool"}, below=outer, ending=ending)
    end(outer, ending)
    alone = app.emit("search.tool", later={"traceloop.span.kind": "tool"}, ending=ending)
    end(workflow, IS_OK)
    assert app.steps == [
        *ended("fetch.tool", generated_id(inner), outcome),
        *ended("search.tool", generated_id(outer), outcome),
        *ended("search.tool", generated_id(alone), outcome),
    ]
