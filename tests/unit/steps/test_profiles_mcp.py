"""Calls of MCP tools: the client, the server and the agent's tool call around them are one step."""

import asyncio

import pytest
from emitting import (
    CANCELLED,
    ERROR,
    FAILED,
    RETURNED,
    SUCCESS,
    Ending,
    Framework,
    Step,
    end,
    ended,
    endings,
    generated_id,
    in_flight,
)
from opentelemetry.trace import Span, SpanKind

from otel_step_hook.steps.event import Outcome
from otel_step_hook.steps.frameworks import PROFILES
from otel_step_hook.steps.frameworks.conventions import MCP
from otel_step_hook.steps.reader import StepReader

_FASTMCP, _SDK = "fastmcp", "mcp-python-sdk"
_TOOL = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.id": "call-1"}
_METHOD = {"mcp.method.name": "tools/call"}
_CALL = {**_METHOD, "gen_ai.operation.name": "execute_tool"}
_RETURNED_ERROR = Ending(status=ERROR, attributes={"error.type": "tool_error"})
_ENDINGS = endings(
    returned=(RETURNED, SUCCESS),
    failed=(_RETURNED_ERROR, FAILED),
    cancelled=(in_flight(asyncio.CancelledError), CANCELLED),
)


class _Mcp(Framework):
    """Makes the spans of FastMCP and of MCP's SDK as they do."""

    def client(self, below: Span | None = None) -> Span:
        return self.start("tools/call look", _CALL, below=below, scope=_FASTMCP, kind=SpanKind.CLIENT)

    def sdk_client(self, below: Span | None = None) -> Span:
        return self.start("MCP send tools/call look", _METHOD, below=below, scope=_SDK, kind=SpanKind.CLIENT)

    def server(self, below: Span | None = None, scope: str = _FASTMCP) -> Span:
        return self.start("tools/call look", _METHOD, later=_CALL, below=below, scope=scope, kind=SpanKind.SERVER)

    def call(self, below: Span | None = None, ending: Ending = RETURNED) -> Span:
        """Make the spans of one call in one process, and return the client's."""
        client = self.client(below)
        sdk_client = self.sdk_client(client)
        end(self.server(sdk_client), ending)
        end(sdk_client, RETURNED if ending is _RETURNED_ERROR else ending)
        end(client, ending)
        return client


@_ENDINGS
def test_a_call_inside_one_process_is_reported_once(ending: Ending, outcome: Outcome) -> None:
    """The client's span is the step; the span of the SDK and the server's are parts."""
    mcp = _Mcp(_FASTMCP)
    client = mcp.call(ending=ending)
    assert mcp.steps == ended("tools/call look", generated_id(client), outcome)


def test_a_server_that_ends_after_its_client_is_a_part() -> None:
    """The server may end long after a client that was cancelled, and with another outcome."""
    mcp = _Mcp(_FASTMCP)
    client = mcp.client()
    sdk_client = mcp.sdk_client(client)
    server = mcp.server(sdk_client)
    end(sdk_client, in_flight(asyncio.CancelledError))
    end(client, in_flight(asyncio.CancelledError))
    end(server)
    assert mcp.steps == ended("tools/call look", generated_id(client), CANCELLED)


@_ENDINGS
def test_a_client_or_a_server_alone_is_reported(ending: Ending, outcome: Outcome) -> None:
    """The other side may be in another process, or without spans."""
    mcp = _Mcp(_FASTMCP)
    spans = [mcp.client(), mcp.sdk_client(), mcp.server(), mcp.server(scope=_SDK), mcp.server(scope="the.application")]
    for span in spans:
        end(span, ending)
    assert [(step.step_id, step.outcome) for step in mcp.steps] == [(generated_id(span), outcome) for span in spans]


def test_other_requests_are_no_steps() -> None:
    """Only the call of a tool is a step, and not the handshake or the listing of tools."""
    mcp = _Mcp(_FASTMCP)
    for method in ("initialize", "tools/list", "prompts/get", "resources/read"):
        mcp.emit(method, {"mcp.method.name": method})
        mcp.emit(method, {"mcp.method.name": method}, scope=_SDK)
    assert mcp.steps == []


def test_the_server_is_the_step_below_a_client_of_the_sdk() -> None:
    """The client's span of the SDK does not show that the tool has returned an error, and the server's does."""
    mcp = _Mcp(_FASTMCP)
    client = mcp.sdk_client()
    server = mcp.server(client)
    end(server, _RETURNED_ERROR)
    end(client)
    assert mcp.steps == ended("tools/call look", generated_id(server), FAILED)


def test_a_client_of_the_sdk_that_ends_before_its_server_is_the_step() -> None:
    """What was cancelled in the client is reported at once, and not again when the server ends."""
    mcp = _Mcp(_FASTMCP)
    client = mcp.sdk_client()
    server = mcp.server(client)
    end(client, in_flight(asyncio.CancelledError))
    end(server, in_flight(asyncio.CancelledError))
    assert mcp.steps == ended("MCP send tools/call look", generated_id(client), CANCELLED)


def test_two_calls_below_one_span_are_two_steps() -> None:
    """Calls beside each other are different pieces of work."""
    mcp = _Mcp(_FASTMCP)
    agent = mcp.start("invoke_agent x", {"gen_ai.operation.name": "invoke_agent"}, scope="the.application")
    one, other = mcp.call(agent), mcp.call(agent)
    assert [step.step_id for step in mcp.steps] == [generated_id(one), generated_id(other)]


@pytest.mark.parametrize("scope", ["pydantic-ai", "gcp.vertex.agent", "autogen-core", "langsmith", "the.application"])
@_ENDINGS
def test_a_call_inside_an_agents_tool_call_is_a_part(scope: str, ending: Ending, outcome: Outcome) -> None:
    """The tool call of the agent is the step, under its own id, whatever spans are between."""
    mcp = _Mcp(scope)
    tool = mcp.start("execute_tool look", later=_TOOL)
    request = mcp.start("POST", below=tool, scope="opentelemetry.instrumentation.httpx")
    mcp.call(request, ending)
    end(tool, ending)
    assert mcp.steps == ended("execute_tool look", "call-1", outcome)


def test_a_call_that_outlives_the_agents_tool_call_is_a_part() -> None:
    """The tool call has been reported already."""
    mcp = _Mcp("pydantic-ai")
    tool = mcp.start("execute_tool look", _TOOL)
    client = mcp.client(tool)
    end(tool, in_flight(asyncio.CancelledError))
    end(client, in_flight(asyncio.CancelledError))
    assert mcp.steps == ended("execute_tool look", "call-1", CANCELLED)


def test_a_call_inside_a_tool_that_is_part_of_a_step_is_a_part() -> None:
    """A turn, or a node, is the step; its tools are its parts, and the MCP calls of these, too."""
    agents = _Mcp("openinference.instrumentation.openai_agents")
    turn = agents.start("turn", {"openinference.span.kind": "CHAIN"})
    agents.call(agents.start("look", {"openinference.span.kind": "TOOL"}, below=turn))
    end(turn)
    assert agents.steps == ended("turn", generated_id(turn), SUCCESS)
    prefix = "traceloop.association.properties.langgraph"
    node = {f"{prefix}_node": "tools", "traceloop.entity.name": "tools", "traceloop.span.kind": "task"}
    graph = _Mcp("opentelemetry.instrumentation.langchain")
    tools = graph.start("execute_task tools", later={**node, f"{prefix}_checkpoint_ns": "tools:1"})
    graph.call(graph.start("execute_tool look", later=_TOOL, below=tools))
    end(tools)
    assert graph.steps == ended("execute_task tools", "tools:1", SUCCESS)


@pytest.mark.parametrize(
    ("scope", "attributes"),
    [
        ("openinference.instrumentation.agno", {"openinference.span.kind": "TOOL"}),  # in no row
        ("opentelemetry.instrumentation.langchain", _TOOL),  # outside of a graph
        ("openinference.instrumentation.openai_agents", {"openinference.span.kind": "TOOL"}),  # outside of a turn
    ],
)
def test_a_call_inside_a_tool_that_nothing_reports_is_a_step(scope: str, attributes: dict[str, str]) -> None:
    """The call is not lost, although a span around it looks like an agent's tool call."""
    mcp = _Mcp(scope)
    agent = mcp.start("agent", {"step_id": "mine"}, scope=scope)
    client = mcp.call(mcp.start("look", attributes, below=agent))
    assert mcp.steps == ended("tools/call look", generated_id(client), SUCCESS)


def test_a_call_inside_a_step_that_is_no_tool_call_is_a_step() -> None:
    """A step of an engine, or of the application, may have many calls, as with the tools of an agent."""
    mcp = _Mcp("temporalio.contrib.opentelemetry")
    activity = mcp.start("RunActivity:x", {"temporalActivityID": "1", "temporalRunID": "run"})
    mine = mcp.start("work", {"step_id": "mine"}, below=activity, scope="the.application")
    client = mcp.call(mine)
    end(mine)
    end(activity)
    assert mcp.steps == [
        *ended("tools/call look", generated_id(client), SUCCESS),
        *ended("work", "mine", SUCCESS),
        *ended("RunActivity:x", "run/1", SUCCESS),
    ]


def test_a_call_is_a_step_if_the_profile_of_the_tool_call_is_not_selected() -> None:
    """With the profile of MCP alone, nothing else reports the work."""
    mcp = _Mcp("pydantic-ai", [MCP])
    client = mcp.call(mcp.start("execute_tool look", _TOOL))
    assert mcp.steps == ended("tools/call look", generated_id(client), SUCCESS)


def test_the_users_rule_decides_about_each_span() -> None:
    """With a rule of the application, nothing is a part of anything."""
    mcp = _Mcp(_FASTMCP)
    mcp.recorder.reader = StepReader(PROFILES, is_step=lambda span: span.name == "tools/call look")
    mcp.call()
    assert [step[:1] for step in mcp.steps] == [Step("tools/call look", "", SUCCESS)[:1]] * 2


def test_spans_between_client_and_server_change_nothing() -> None:
    """Such as those of a web framework, which serves the request."""
    mcp = _Mcp(_FASTMCP)
    client = mcp.sdk_client()
    between = mcp.start("POST /mcp", below=client, scope="the.application")
    server = mcp.server(between)
    end(server, _RETURNED_ERROR)
    end(between)
    end(client)
    assert mcp.steps == ended("tools/call look", generated_id(server), FAILED)


def test_a_server_whose_tool_calls_other_servers_is_reported() -> None:
    """Calls that it makes, of which only the client's spans are here, or the server's, too, are further steps."""
    mcp = _Mcp(_FASTMCP)
    server = mcp.start("tools/call plan", _METHOD, scope="the.application", kind=SpanKind.SERVER)
    alone = mcp.sdk_client(server)
    end(alone)
    client = mcp.sdk_client(server)
    called = mcp.server(client)
    end(called)
    end(client)
    end(server, _RETURNED_ERROR)
    ids = [(generated_id(alone), SUCCESS), (generated_id(called), SUCCESS), (generated_id(server), FAILED)]
    assert [(step.step_id, step.outcome) for step in mcp.steps] == ids


def test_a_server_with_a_step_id_is_reported_once() -> None:
    """A tool may set ``step_id`` on its server's span: then the generic row reports it, and the client is a part."""
    mcp = _Mcp(_FASTMCP)
    client = mcp.sdk_client()
    server = mcp.server(client)
    server.set_attribute("step_id", "mine")
    end(server, _RETURNED_ERROR)
    end(client)
    assert mcp.steps == ended("tools/call look", "mine", FAILED)


def test_a_call_inside_a_long_running_tool_of_google_adk_is_reported() -> None:
    """The tool is pending when it returns, and is not reported itself."""
    mcp = _Mcp("gcp.vertex.agent")
    tool = mcp.start("execute_tool look", {**_TOOL, "gen_ai.tool.type": "LongRunningFunctionTool"})
    client = mcp.call(tool)
    end(tool)
    assert mcp.steps == ended("tools/call look", generated_id(client), SUCCESS)
