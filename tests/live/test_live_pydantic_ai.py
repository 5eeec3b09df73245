"""pydantic-ai: each tool call is a step, under the id that the model has given it."""

from collections.abc import Callable
from typing import Any

import pytest
from observing import Gate, Observed, Told, cancel_inside
from pydantic_ai import Agent, DeferredToolRequests, DeferredToolResults, ModelRetry
from pydantic_ai.exceptions import ApprovalRequired, CallDeferred
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.instrumented import InstrumentationSettings
from pydantic_ai.run import AgentRunResult
from pydantic_ai.toolsets import FunctionToolset

pytestmark = pytest.mark.anyio


class ToolError(Exception):
    """What a tool raises here."""


def calls(*tools: str) -> Callable[[list[ModelMessage], AgentInfo], ModelResponse]:
    """A model that calls one of *tools* after the other, as call-0, call-1, …, and is content then."""

    def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        turn = sum(isinstance(message, ModelResponse) for message in messages)
        if turn == len(tools):
            return ModelResponse([TextPart("done")])
        return ModelResponse([ToolCallPart(tools[turn], {}, tool_call_id=f"call-{turn}")])

    return answer


def agent(observed: Observed, *tools: Callable[..., object], turns: int = 1, approve: bool = False) -> Agent[None, Any]:
    """An agent that calls each of *tools*, *turns* times."""
    model = FunctionModel(calls(*[tool.__name__ for tool in tools for _ in range(turns)]))
    made: Agent[None, Any] = Agent(
        model,
        output_type=[str, DeferredToolRequests],
        toolsets=[FunctionToolset(tools, requires_approval=approve)],
    )
    made.instrument = InstrumentationSettings(tracer_provider=observed.provider)
    return made


async def test_a_tool_that_returns_is_a_success(observed: Observed) -> None:
    """Of a run with two tool calls, these are told, and neither the run nor the model's answers."""

    async def search() -> str:
        return "found"

    def read() -> str:
        return "it says so"

    result = await agent(observed, search, read).run("what does it say?")
    assert result.output == "done"
    assert observed.told() == [
        Told("execute_tool read", "call-1", "success"),
        Told("execute_tool search", "call-0", "success"),
    ]


async def test_a_tool_that_raises_has_failed(observed: Observed) -> None:
    """A tool's exception, which ends the run, is told as a failed step."""

    def broken() -> str:
        raise ToolError

    with pytest.raises(ToolError):
        await agent(observed, broken).run("break it")
    assert observed.told() == [Told("execute_tool broken", "call-0", "failed")]


async def test_each_call_that_the_model_is_asked_to_repeat_is_a_step(observed: Observed) -> None:
    """A call that the tool refuses with ModelRetry has failed; the next one, of another id, succeeds."""
    refusals = iter([ModelRetry("once more")])

    def picky() -> str:
        for refusal in refusals:
            raise refusal
        return "fine"

    await agent(observed, picky, turns=2).run("try it")
    assert observed.told() == [
        Told("execute_tool picky", "call-0", "failed"),
        Told("execute_tool picky", "call-1", "success"),
    ]


async def test_a_run_cancelled_inside_its_tool_tells_that_tool_as_cancelled(observed: Observed) -> None:
    """Cancelling the task of the run cancels the tool call that it is in."""
    gate = Gate()

    async def slow() -> str:
        return await gate.wait()

    await cancel_inside(agent(observed, slow).run("take your time"), gate)
    assert observed.told() == [Told("execute_tool slow", "call-0", "cancelled")]


async def test_a_deferred_call_is_not_told(observed: Observed) -> None:
    """A tool that hands its call over to somebody else has not ended."""

    def outsourced() -> str:
        raise CallDeferred

    result = await agent(observed, outsourced).run("let others do it")
    assert [call.tool_call_id for call in result.output.calls] == ["call-0"]
    assert observed.span("execute_tool outsourced")
    assert observed.told() == []


async def _approved(run: AgentRunResult[Any], asked: Agent[None, Any]) -> None:
    """Let the run go on that has asked for the approval of its call."""
    assert [call.tool_call_id for call in run.output.approvals] == ["call-0"]
    await asked.run(
        message_history=run.all_messages(), deferred_tool_results=DeferredToolResults(approvals={"call-0": True})
    )


async def test_a_tool_that_asks_for_approval_is_told_once_it_has_run(observed: Observed) -> None:
    """Nothing is told of a call that waits for its approval; one success follows when it has it."""
    permitted = iter([False, True])

    def delete() -> str:
        if not next(permitted):
            raise ApprovalRequired
        return "gone"

    asked = agent(observed, delete)
    paused = await asked.run("delete it")
    assert observed.span("execute_tool delete")
    assert observed.told() == []
    await _approved(paused, asked)
    assert observed.told() == [Told("execute_tool delete", "call-0", "success")]


async def test_a_tool_that_always_needs_approval_is_told_once_it_has_run(observed: Observed) -> None:
    """Where approval is asked for before the tool is called, nothing is told of the asking either."""

    def delete() -> str:
        return "gone"

    asked = agent(observed, delete, approve=True)
    paused = await asked.run("delete it")
    assert observed.told() == []
    await _approved(paused, asked)
    assert observed.told() == [Told("execute_tool delete", "call-0", "success")]


async def test_a_refused_approval_is_not_told(observed: Observed) -> None:
    """A call that is denied never ran: it has no step."""

    def delete() -> str:
        return "gone"

    asked = agent(observed, delete, approve=True)
    paused = await asked.run("delete it")
    denied = DeferredToolResults(approvals={"call-0": False})
    await asked.run(message_history=paused.all_messages(), deferred_tool_results=denied)
    assert observed.told() == []


async def test_tools_are_told_of_a_streamed_run(observed: Observed) -> None:
    """A run that is iterated over tells its tool calls like any other."""

    def search() -> str:
        return "found"

    async with agent(observed, search).iter("look for it") as run:
        nodes = [type(node).__name__ async for node in run]
    assert "CallToolsNode" in nodes
    assert observed.told() == [Told("execute_tool search", "call-0", "success")]
