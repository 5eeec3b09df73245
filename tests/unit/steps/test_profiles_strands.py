"""The row of Strands Agents, whose cycles have no end of their own when they are cancelled."""

import asyncio
import gc

import pytest
from emitting import (
    CANCELLED,
    ERROR,
    FAILED,
    IS_OK,
    OK,
    RETURNED,
    SUCCESS,
    Ending,
    Framework,
    end,
    ended,
    endings,
    generated_id,
    in_flight,
    recorded,
)
from opentelemetry.trace import Span

from otel_step_hook.steps.event import Outcome

_CYCLE = "execute_event_loop_cycle"
_LATER_END = 2_000_000_000_000_000_000  # ns; long after the other spans of a test


def _strands() -> tuple[Framework, Span]:
    """The framework, and the span of an agent that has begun."""
    strands = Framework("strands.telemetry.tracer")
    return strands, strands.start("invoke_agent X", later={"gen_ai.operation.name": "invoke_agent"})


def _cycle(strands: Framework, agent: Span, cycle_id: str = "cycle-1") -> Span:
    return strands.start(_CYCLE, later={"event_loop.cycle_id": cycle_id}, below=agent)


def _stopped(kind: str) -> Ending:
    """How the span of an agent ends that something has stopped from outside."""
    return Ending(attributes={"strands.cancellation.type": kind})


@endings(
    returned=(IS_OK, SUCCESS),
    returned_without_status=(RETURNED, SUCCESS),
    failed=(recorded("ValueError", ValueError, description="broke"), FAILED),
    cancelled=(in_flight(asyncio.CancelledError), CANCELLED),
)
def test_a_cycle_is_told_once_by_its_own_end(ending: Ending, outcome: Outcome) -> None:
    """A cycle that ends is a step, by its cycle id; agent, model and tools are none, however they end."""
    strands, agent = _strands()
    cycle = _cycle(strands, agent)
    strands.emit("chat", later={"gen_ai.operation.name": "chat"}, below=cycle, ending=ending)
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.id": "call-1"}
    strands.emit("execute_tool weather", later=tool, below=cycle, ending=in_flight(asyncio.CancelledError, OK))
    end(cycle, ending)
    assert strands.steps == ended(_CYCLE, "cycle-1", outcome)
    end(agent, _stopped("CancelledError"))
    assert strands.steps == ended(_CYCLE, "cycle-1", outcome)


@endings(
    cancelled=(_stopped("CancelledError"), CANCELLED),
    cancelled_in_flight=(
        Ending(attributes={"strands.cancellation.type": "CancelledError"}, in_flight=asyncio.CancelledError),
        CANCELLED,
    ),
    interrupted=(_stopped("KeyboardInterrupt"), CANCELLED),
    exited=(_stopped("SystemExit"), CANCELLED),
    closed_early=(_stopped("GeneratorExit"), SUCCESS),
    closed_early_in_flight=(
        Ending(attributes={"strands.cancellation.type": "GeneratorExit"}, in_flight=GeneratorExit),
        SUCCESS,
    ),
    stopped_without_a_word=(in_flight(asyncio.CancelledError), CANCELLED),
    unknown_word=(_stopped("SomethingElse"), CANCELLED),
    failed=(Ending(status=ERROR, description="broke"), FAILED),
)
def test_an_open_cycle_is_told_with_the_end_of_its_agent(ending: Ending, outcome: Outcome) -> None:
    """A cycle without an end of its own is told once, under its own span, with its agent's end time and outcome."""
    strands, agent = _strands()
    cycle = _cycle(strands, agent)
    end(agent, ending, _LATER_END)
    (event,) = strands.recorder.events
    assert strands.steps == ended(_CYCLE, "cycle-1", outcome)
    assert event.context == cycle.get_span_context()
    assert 0 < event.start_time < event.end_time == _LATER_END


def test_a_cycle_that_ends_after_it_has_been_told_is_not_told_again() -> None:
    """The end that comes too late says nothing new."""
    strands, agent = _strands()
    cycle = _cycle(strands, agent)
    end(agent, _stopped("CancelledError"))
    end(cycle, IS_OK)
    assert strands.steps == ended(_CYCLE, "cycle-1", CANCELLED)


def test_only_the_open_cycles_are_told_with_their_agent() -> None:
    """Of several cycles those that have ended keep their own outcome."""
    strands, agent = _strands()
    end(_cycle(strands, agent, "cycle-1"), IS_OK)
    end(_cycle(strands, agent, "cycle-2"), recorded("ValueError"))
    open_cycle = _cycle(strands, agent, "cycle-3")
    end(agent, _stopped("CancelledError"))
    assert strands.steps == [
        *ended(_CYCLE, "cycle-1", SUCCESS),
        *ended(_CYCLE, "cycle-2", FAILED),
        *ended(_CYCLE, "cycle-3", CANCELLED),
    ]
    end(open_cycle)
    assert len(strands.steps) == 3


def test_a_cycle_that_nobody_holds_any_more_is_still_told() -> None:
    """A cancelled cycle is dropped by the framework before its agent ends."""
    strands, agent = _strands()
    cycle = _cycle(strands, agent)
    del cycle
    gc.collect()
    end(agent, _stopped("CancelledError"))
    assert strands.steps == ended(_CYCLE, "cycle-1", CANCELLED)


def test_a_cycle_without_its_id_is_no_step() -> None:
    """What stops before the framework has set the id tells nothing."""
    strands, agent = _strands()
    cycle = strands.start(_CYCLE, below=agent)
    end(agent, _stopped("CancelledError"))
    end(cycle)
    assert strands.steps == []


def test_a_blank_id_is_none() -> None:
    """The id is made from the span, when it ends and when its agent does."""
    strands, agent = _strands()
    first, left_open = _cycle(strands, agent, ""), _cycle(strands, agent, "")
    end(first)
    end(agent, _stopped("CancelledError"))
    assert strands.steps == [
        *ended(_CYCLE, generated_id(first), SUCCESS),
        *ended(_CYCLE, generated_id(left_open), CANCELLED),
    ]


def test_an_agent_below_an_agent_is_never_told() -> None:
    """An agent that another one calls ends with its own cycles; those of the outer one stay open until its end."""
    strands, outer = _strands()
    outer_cycle = _cycle(strands, outer, "outer")
    tool = strands.start("execute_tool ask", below=outer_cycle)
    inner, directly_below = strands.start("invoke_agent Y", below=tool), strands.start("invoke_agent Z", below=outer)
    inner_cycle = _cycle(strands, inner, "inner")
    end(inner, _stopped("CancelledError"))
    assert strands.steps == ended(_CYCLE, "inner", CANCELLED)
    end(outer, _stopped("CancelledError"))
    assert strands.steps[1:] == ended(_CYCLE, "outer", CANCELLED)
    for span in (inner_cycle, tool, outer_cycle, directly_below):
        end(span)
    assert len(strands.steps) == 2


def test_what_other_scopes_have_below_an_agent_is_not_told_with_it() -> None:
    """Only cycles of the framework itself end with their agent."""
    strands, agent = _strands()
    other = strands.start("work", {"step_id": "mine"}, below=agent, scope="the.application")
    end(agent, _stopped("CancelledError"))
    assert strands.steps == []
    end(other)
    assert strands.steps == ended("work", "mine", SUCCESS)


@pytest.mark.parametrize("parent", ["", "execute_event_loop_cycle", "POST /ask"])
def test_a_cycle_below_something_else_is_told_by_its_own_end_alone(parent: str) -> None:
    """Without an agent's span directly above it nobody knows when an open cycle is over."""
    strands, agent = _strands()
    above = strands.start(parent, below=agent) if parent else None
    cycle = strands.start(_CYCLE, later={"event_loop.cycle_id": "cycle-1"}, below=above)
    if above is not None:
        end(above, _stopped("CancelledError"))
    end(agent, _stopped("CancelledError"))
    assert strands.steps == []
    end(cycle, IS_OK)
    assert strands.steps == ended(_CYCLE, "cycle-1", SUCCESS)


def test_the_id_of_the_user_is_that_of_an_open_cycle() -> None:
    """An id that the user has set on an open cycle is the one that is told."""
    strands, agent = _strands()
    cycle = _cycle(strands, agent)
    cycle.set_attribute("step_id", "mine")
    end(agent, _stopped("CancelledError"))
    assert strands.steps == ended(_CYCLE, "mine", CANCELLED)
