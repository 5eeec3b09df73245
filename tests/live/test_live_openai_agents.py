"""OpenAI Agents: with openinference each turn is a step; traceloop has no spans of turns, so each tool call is one."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import agents
import pytest
from agents import Agent, Runner, function_tool
from agents.exceptions import MaxTurnsExceeded, UserError
from agents.items import ModelResponse, TResponseStreamEvent
from agents.models.interface import Model
from agents.tool import FunctionTool
from agents.usage import Usage
from observing import Gate, Observed, cancel_inside
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText
from openinference.instrumentation.openai_agents import OpenAIAgentsInstrumentor as Openinference
from opentelemetry.instrumentation.openai_agents import OpenAIAgentsInstrumentor as Traceloop

pytestmark = pytest.mark.anyio


class BrokenError(Exception):
    """The exception of a tool or a model."""


class FakeModel(Model):
    """A model that calls one of *tools* in each turn, or raises it if it is an exception; then it answers `done`."""

    def __init__(self, *tools: str | Exception) -> None:
        self._tools = list(tools)

    async def get_response(self, *_: object, **__: object) -> ModelResponse:
        """Return the next tool call, or the final answer."""
        if not self._tools:
            text = ResponseOutputText(text="done", type="output_text", annotations=[])
            message = ResponseOutputMessage(
                id="message", content=[text], role="assistant", status="completed", type="message"
            )
            return ModelResponse(output=[message], usage=Usage(), response_id=None)
        tool = self._tools.pop(0)
        if isinstance(tool, Exception):
            raise tool
        call = ResponseFunctionToolCall(
            arguments="{}", call_id=f"call-{len(self._tools)}", name=tool, type="function_call"
        )
        return ModelResponse(output=[call], usage=Usage(), response_id=None)

    def stream_response(self, *_: Any, **__: Any) -> AsyncIterator[TResponseStreamEvent]:
        """Raise, because no test streams a run."""
        raise NotImplementedError


def _agent(model: FakeModel, *tools: FunctionTool) -> Agent[None]:
    return Agent(name="assistant", model=model, tools=list(tools))


@function_tool
async def search() -> str:
    """Search for something."""
    return "found"


@function_tool(failure_error_function=None)
async def broken() -> str:
    """Raise an exception that ends the run."""
    raise BrokenError


@function_tool
async def forgiven() -> str:
    """Raise an exception, which the SDK sends to the model."""
    raise BrokenError


def _waiting(gate: Gate) -> FunctionTool:
    @function_tool
    async def slow() -> str:
        """Wait."""
        return await gate.wait()

    return slow


@pytest.fixture
def by_turns(observed: Observed) -> Iterator[Observed]:
    """A pipeline with openinference, which makes a span for each turn."""
    agents.set_trace_processors([])  # the default one of OpenAI sends spans over the network
    instrumentor = Openinference()
    instrumentor.instrument(tracer_provider=observed.provider)
    yield observed
    instrumentor.uninstrument()
    agents.set_trace_processors([])


@pytest.fixture
def by_tools(observed: Observed) -> Iterator[Observed]:
    """A pipeline with traceloop, which makes spans for tools, and none for turns."""
    agents.set_trace_processors([])
    instrumentor = Traceloop()
    instrumentor.instrument(tracer_provider=observed.provider)
    yield observed
    instrumentor.uninstrument()
    agents.set_trace_processors([])  # uninstrument() does not remove its processor


async def test_turns_without_an_exception_are_successes(by_turns: Observed) -> None:
    """A run that calls a tool and then answers has two turns; the tool is a part of the first."""
    result = await Runner.run(_agent(FakeModel("search"), search), "look for it")
    assert result.final_output == "done"
    assert by_turns.hooked.named("search")
    assert by_turns.outcomes() == [("turn", "success")] * 2
    assert len({each.step_id for each in by_turns.reported()}) == 2


async def test_a_turn_whose_tool_raises_has_failed(by_turns: Observed) -> None:
    """An exception of a tool that ends the run fails its turn, whose span has status OK; the turn before succeeds."""
    with pytest.raises(UserError):
        await Runner.run(_agent(FakeModel("search", "broken"), search, broken), "break it")
    assert by_turns.outcomes() == [("turn", "failed"), ("turn", "success")]


async def test_a_turn_whose_model_raises_has_failed(by_turns: Observed) -> None:
    """An exception of the model fails its turn."""
    with pytest.raises(BrokenError):
        await Runner.run(_agent(FakeModel("search", BrokenError()), search), "break it")
    assert by_turns.outcomes() == [("turn", "failed"), ("turn", "success")]


async def test_a_turn_whose_tool_error_is_sent_to_the_model_is_a_success(by_turns: Observed) -> None:
    """A failure of a tool that the model can answer to does not fail the turn."""
    await Runner.run(_agent(FakeModel("forgiven"), forgiven), "try it")
    assert by_turns.outcomes() == [("turn", "success")] * 2


async def test_turns_of_a_run_that_has_too_many_are_successes(by_turns: Observed) -> None:
    """If a run exceeds *max_turns*, the turns before the limit are still successes."""
    with pytest.raises(MaxTurnsExceeded):
        await Runner.run(_agent(FakeModel(*["search"] * 9), search), "look for it", max_turns=2)
    assert by_turns.outcomes() == [("turn", "success")] * 2


async def test_the_turn_of_a_cancelled_tool_is_reported_as_cancelled(by_turns: Observed) -> None:
    """Cancelling the task of a run cancels its current turn, whose span has status OK."""
    gate = Gate()
    run = Runner.run(_agent(FakeModel("search", "slow"), search, _waiting(gate)), "take your time")
    await cancel_inside(run, gate)
    assert by_turns.outcomes() == [("turn", "cancelled"), ("turn", "success")]


async def test_tools_that_return_are_successes(by_tools: Observed) -> None:
    """Without turns, each tool call is reported; agent, workflow and model answers are not."""
    await Runner.run(_agent(FakeModel("search", "search"), search), "look for it")
    assert by_tools.outcomes() == [("search.tool", "success")] * 2
    assert len({each.step_id for each in by_tools.reported()}) == 2


async def test_a_tool_that_raises_has_failed(by_tools: Observed) -> None:
    """An exception of a tool that ends the run is the failure of its call."""
    with pytest.raises(UserError):
        await Runner.run(_agent(FakeModel("search", "broken"), search, broken), "break it")
    assert by_tools.outcomes() == [("broken.tool", "failed"), ("search.tool", "success")]


async def test_a_tool_whose_error_is_sent_to_the_model_has_failed(by_tools: Observed) -> None:
    """The tool call has failed, although the run continues."""
    await Runner.run(_agent(FakeModel("forgiven"), forgiven), "try it")
    assert by_tools.outcomes() == [("forgiven.tool", "failed")]


async def test_a_cancelled_tool_is_reported_as_cancelled(by_tools: Observed) -> None:
    """Cancelling the task of a run cancels its running tool call, whose span has status OK."""
    gate = Gate()
    run = Runner.run(_agent(FakeModel("search", "slow"), search, _waiting(gate)), "take your time")
    await cancel_inside(run, gate)
    assert by_tools.outcomes() == [("search.tool", "success"), ("slow.tool", "cancelled")]
