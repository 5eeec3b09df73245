"""pydantic-ai: each tool call is a step, under the id that the model gave it."""

from collections.abc import Callable
from typing import Any

import pytest
from observing import Gate, Observed, Reported, cancel_inside
from pydantic_ai import Agent, DeferredToolRequests, DeferredToolResults, ModelRetry
from pydantic_ai.exceptions import ApprovalRequired, CallDeferred
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.instrumented import InstrumentationSettings
from pydantic_ai.run import AgentRunResult
from pydantic_ai.toolsets import FunctionToolset

pytestmark = pytest.mark.anyio


class ToolError(Exception):
    """The exception of a tool."""


def calls(*tools: str) -> Callable[[list[ModelMessage], AgentInfo], ModelResponse]:
    """Return a model that calls *tools* one after the other, as call-0, call-1, …, and then answers `done`."""

    def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
        number = sum(isinstance(message, ModelResponse) for message in messages)
        if number == len(tools):
            return ModelResponse([TextPart("done")])
        return ModelResponse([ToolCallPart(tools[number], {}, tool_call_id=f"call-{number}")])

    return answer


def agent(observed: Observed, *tools: Callable[..., object], times: int = 1, approve: bool = False) -> Agent[None, Any]:
    """Return an agent that calls each of *tools* as many *times*; *approve*: the calls need an approval."""
    model = FunctionModel(calls(*[tool.__name__ for tool in tools for _ in range(times)]))
    made: Agent[None, Any] = Agent(
        model,
        output_type=[str, DeferredToolRequests],
        toolsets=[FunctionToolset(tools, requires_approval=approve)],
    )
    made.instrument = InstrumentationSettings(tracer_provider=observed.provider)
    return made


async def test_a_tool_that_returns_is_a_success(observed: Observed) -> None:
    """The two tool calls of a run are reported; the run and the model's answers are not."""

    async def search() -> str:
        return "found"

    def read() -> str:
        return "it says so"

    result = await agent(observed, search, read).run("what does it say?")
    assert result.output == "done"
    assert observed.reported() == [
        Reported("execute_tool read", "call-1", "success"),
        Reported("execute_tool search", "call-0", "success"),
    ]


async def test_a_tool_that_raises_has_failed(observed: Observed) -> None:
    """An exception of a tool, which ends the run, is reported as a failed step."""

    def broken() -> str:
        raise ToolError

    with pytest.raises(ToolError):
        await agent(observed, broken).run("break it")
    assert observed.reported() == [Reported("execute_tool broken", "call-0", "failed")]


async def test_each_repeated_call_is_a_step(observed: Observed) -> None:
    """A call that the tool refuses with ModelRetry has failed; the next call, under another id, succeeds."""
    refusals = iter([ModelRetry("once more")])

    def picky() -> str:
        for refusal in refusals:
            raise refusal
        return "fine"

    await agent(observed, picky, times=2).run("try it")
    assert observed.reported() == [
        Reported("execute_tool picky", "call-0", "failed"),
        Reported("execute_tool picky", "call-1", "success"),
    ]


async def test_a_cancelled_tool_is_reported_as_cancelled(observed: Observed) -> None:
    """Cancelling the task of a run cancels its running tool call."""
    gate = Gate()

    async def slow() -> str:
        return await gate.wait()

    await cancel_inside(agent(observed, slow).run("take your time"), gate)
    assert observed.reported() == [Reported("execute_tool slow", "call-0", "cancelled")]


async def test_a_deferred_call_is_not_reported(observed: Observed) -> None:
    """A tool call that is answered outside of the run has not ended."""

    def outsourced() -> str:
        raise CallDeferred

    result = await agent(observed, outsourced).run("let others do it")
    assert [call.tool_call_id for call in result.output.calls] == ["call-0"]
    assert observed.span("execute_tool outsourced")
    assert observed.reported() == []


async def _approved(run: AgentRunResult[Any], asked: Agent[None, Any]) -> None:
    """Continue a run that has asked for the approval of its call, with that approval."""
    assert [call.tool_call_id for call in run.output.approvals] == ["call-0"]
    await asked.run(
        message_history=run.all_messages(), deferred_tool_results=DeferredToolResults(approvals={"call-0": True})
    )


async def test_a_tool_that_asks_for_approval_is_reported_when_it_has_run(observed: Observed) -> None:
    """A call that waits for approval is not reported; after the approval, one success is."""
    permitted = iter([False, True])

    def delete() -> str:
        if not next(permitted):
            raise ApprovalRequired
        return "gone"

    asked = agent(observed, delete)
    paused = await asked.run("delete it")
    assert observed.span("execute_tool delete")
    assert observed.reported() == []
    await _approved(paused, asked)
    assert observed.reported() == [Reported("execute_tool delete", "call-0", "success")]


async def test_a_tool_that_always_needs_approval_is_reported_when_it_has_run(observed: Observed) -> None:
    """If the approval is requested before the tool is called, the request is not reported either."""

    def delete() -> str:
        return "gone"

    asked = agent(observed, delete, approve=True)
    paused = await asked.run("delete it")
    assert observed.reported() == []
    await _approved(paused, asked)
    assert observed.reported() == [Reported("execute_tool delete", "call-0", "success")]


async def test_a_refused_approval_is_not_reported(observed: Observed) -> None:
    """A call that is denied never runs, and is no step."""

    def delete() -> str:
        return "gone"

    asked = agent(observed, delete, approve=True)
    paused = await asked.run("delete it")
    denied = DeferredToolResults(approvals={"call-0": False})
    await asked.run(message_history=paused.all_messages(), deferred_tool_results=denied)
    assert observed.reported() == []


async def test_the_tools_of_an_iterated_run_are_reported(observed: Observed) -> None:
    """The tool calls of a run with `iter` are reported like those of any other run."""

    def search() -> str:
        return "found"

    async with agent(observed, search).iter("look for it") as run:
        nodes = [type(node).__name__ async for node in run]
    assert "CallToolsNode" in nodes
    assert observed.reported() == [Reported("execute_tool search", "call-0", "success")]
