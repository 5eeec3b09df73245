"""OpenAI Agents: each turn is a step for openinference; traceloop has no turns, there each tool call is one."""

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
    """What a tool or a model raises here."""


class FakeModel(Model):
    """Calls each of *tools*, one in each turn, and is content then; raises what it is to raise."""

    def __init__(self, *tools: str | Exception) -> None:
        self._tools = list(tools)

    async def get_response(self, *_: object, **__: object) -> ModelResponse:
        """Say the next line."""
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
        """No run here is streamed."""
        raise NotImplementedError


def _agent(model: FakeModel, *tools: FunctionTool) -> Agent[None]:
    return Agent(name="helper", model=model, tools=list(tools))


@function_tool
async def search() -> str:
    """Find it."""
    return "found"


@function_tool(failure_error_function=None)
async def broken() -> str:
    """Fail the run."""
    raise BrokenError


@function_tool
async def excused() -> str:
    """Fail, of which the model is told."""
    raise BrokenError


def _waiting(gate: Gate) -> FunctionTool:
    @function_tool
    async def slow() -> str:
        """Wait."""
        return await gate.wait()

    return slow


@pytest.fixture
def by_turns(observed: Observed) -> Iterator[Observed]:
    """Observed by openinference."""
    agents.set_trace_processors([])  # OpenAI's own sends to the network
    instrumentor = Openinference()
    instrumentor.instrument(tracer_provider=observed.provider)
    yield observed
    instrumentor.uninstrument()
    agents.set_trace_processors([])


@pytest.fixture
def by_tools(observed: Observed) -> Iterator[Observed]:
    """Observed by traceloop."""
    agents.set_trace_processors([])
    instrumentor = Traceloop()
    instrumentor.instrument(tracer_provider=observed.provider)
    yield observed
    instrumentor.uninstrument()
    agents.set_trace_processors([])  # which uninstrument() leaves as they are


async def test_turns_that_end_are_successes(by_turns: Observed) -> None:
    """A run that calls a tool and then answers has two turns; the tool is a part of the first."""
    result = await Runner.run(_agent(FakeModel("search"), search), "look for it")
    assert result.final_output == "done"
    assert by_turns.hooked.named("search")
    assert by_turns.outcomes() == [("turn", "success")] * 2
    assert len({each.step_id for each in by_turns.told()}) == 2


async def test_the_turn_of_a_tool_that_ends_the_run_has_failed(by_turns: Observed) -> None:
    """A tool's exception fails its turn, whose span has status OK; the turn before was a success."""
    with pytest.raises(UserError):
        await Runner.run(_agent(FakeModel("search", "broken"), search, broken), "break it")
    assert by_turns.outcomes() == [("turn", "failed"), ("turn", "success")]


async def test_the_turn_of_a_model_that_raises_has_failed(by_turns: Observed) -> None:
    """A model's exception fails its turn as well."""
    with pytest.raises(BrokenError):
        await Runner.run(_agent(FakeModel("search", BrokenError()), search), "break it")
    assert by_turns.outcomes() == [("turn", "failed"), ("turn", "success")]


async def test_the_turn_of_a_tool_whose_failure_the_model_is_told_is_a_success(by_turns: Observed) -> None:
    """What the model can answer to fails no turn."""
    await Runner.run(_agent(FakeModel("excused"), excused), "try it")
    assert by_turns.outcomes() == [("turn", "success")] * 2


async def test_turns_of_a_run_that_has_too_many_are_successes(by_turns: Observed) -> None:
    """The turns before the limit have done what was asked of them."""
    with pytest.raises(MaxTurnsExceeded):
        await Runner.run(_agent(FakeModel(*["search"] * 9), search), "look for it", max_turns=2)
    assert by_turns.outcomes() == [("turn", "success")] * 2


async def test_a_run_cancelled_inside_its_tool_tells_the_turn_as_cancelled(by_turns: Observed) -> None:
    """Cancelling the task of the run cancels the turn that it is in, whose span has status OK."""
    gate = Gate()
    run = Runner.run(_agent(FakeModel("search", "slow"), search, _waiting(gate)), "take your time")
    await cancel_inside(run, gate)
    assert by_turns.outcomes() == [("turn", "cancelled"), ("turn", "success")]


async def test_tools_that_return_are_successes(by_tools: Observed) -> None:
    """Without turns, each tool call is told; neither the agent nor the workflow nor the model's answers are."""
    await Runner.run(_agent(FakeModel("search", "search"), search), "look for it")
    assert by_tools.outcomes() == [("search.tool", "success")] * 2
    assert len({each.step_id for each in by_tools.told()}) == 2


async def test_a_tool_that_ends_the_run_has_failed(by_tools: Observed) -> None:
    """A tool's exception is the failure of its call."""
    with pytest.raises(UserError):
        await Runner.run(_agent(FakeModel("search", "broken"), search, broken), "break it")
    assert by_tools.outcomes() == [("broken.tool", "failed"), ("search.tool", "success")]


async def test_a_tool_whose_failure_the_model_is_told_has_failed(by_tools: Observed) -> None:
    """The call has failed, whatever the run makes of it."""
    await Runner.run(_agent(FakeModel("excused"), excused), "try it")
    assert by_tools.outcomes() == [("excused.tool", "failed")]


async def test_a_run_cancelled_inside_its_tool_tells_that_tool_as_cancelled(by_tools: Observed) -> None:
    """Cancelling the task of the run cancels the tool call that it is in, whose span has status OK."""
    gate = Gate()
    run = Runner.run(_agent(FakeModel("search", "slow"), search, _waiting(gate)), "take your time")
    await cancel_inside(run, gate)
    assert by_tools.outcomes() == [("search.tool", "success"), ("slow.tool", "cancelled")]
