"""The row of Strands Agents, which does not end the span of a cycle that is cancelled."""

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
_LATER_END = 2_000_000_000_000_000_000  # unix ns, in 2033: after the other spans of a test


def _strands() -> tuple[Framework, Span]:
    """Return the framework, and the open span of an agent."""
    strands = Framework("strands.telemetry.tracer")
    return strands, strands.start("invoke_agent X", later={"gen_ai.operation.name": "invoke_agent"})


def _cycle(strands: Framework, agent: Span, cycle_id: str = "cycle-1") -> Span:
    return strands.start(_CYCLE, later={"event_loop.cycle_id": cycle_id}, below=agent)


def _stopped(kind: str) -> Ending:
    """Return the ending of an agent that an exception of type *kind* has stopped from outside."""
    return Ending(attributes={"strands.cancellation.type": kind})


@endings(
    returned=(IS_OK, SUCCESS),
    returned_without_status=(RETURNED, SUCCESS),
    failed=(recorded("ValueError", ValueError, description="broke"), FAILED),
    cancelled=(in_flight(asyncio.CancelledError), CANCELLED),
)
def test_a_cycle_is_reported_once_at_its_own_end(ending: Ending, outcome: Outcome) -> None:
    """A cycle that ends is a step under its cycle id; agent, model and tools are none, however they end."""
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
    stopped_without_attribute=(in_flight(asyncio.CancelledError), CANCELLED),
    unknown_value=(_stopped("SomethingElse"), CANCELLED),
    failed=(Ending(status=ERROR, description="broke"), FAILED),
)
def test_an_open_cycle_is_reported_at_the_end_of_its_agent(ending: Ending, outcome: Outcome) -> None:
    """A cycle without an end is reported once, with its own span, and with its agent's end time and outcome."""
    strands, agent = _strands()
    cycle = _cycle(strands, agent)
    end(agent, ending, _LATER_END)
    (event,) = strands.recorder.events
    assert strands.steps == ended(_CYCLE, "cycle-1", outcome)
    assert event.context == cycle.get_span_context()
    assert 0 < event.start_time < event.end_time == _LATER_END


def test_a_cycle_that_ends_after_it_was_reported_is_not_reported_again() -> None:
    """The end of a cycle after that of its agent is ignored."""
    strands, agent = _strands()
    cycle = _cycle(strands, agent)
    end(agent, _stopped("CancelledError"))
    end(cycle, IS_OK)
    assert strands.steps == ended(_CYCLE, "cycle-1", CANCELLED)


def test_only_open_cycles_are_reported_at_the_end_of_their_agent() -> None:
    """Cycles that ended before their agent keep their own outcome."""
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


def test_a_cycle_without_references_is_still_reported() -> None:
    """The framework drops its last reference to a cancelled cycle before its agent ends."""
    strands, agent = _strands()
    cycle = _cycle(strands, agent)
    del cycle
    gc.collect()
    end(agent, _stopped("CancelledError"))
    assert strands.steps == ended(_CYCLE, "cycle-1", CANCELLED)


def test_a_cycle_without_its_id_is_no_step() -> None:
    """A cycle that stops before the framework has set its id is not reported."""
    strands, agent = _strands()
    cycle = strands.start(_CYCLE, below=agent)
    end(agent, _stopped("CancelledError"))
    end(cycle)
    assert strands.steps == []


def test_a_blank_cycle_id_is_replaced() -> None:
    """The id is generated, both at the end of the cycle and at the end of its agent."""
    strands, agent = _strands()
    first, left_open = _cycle(strands, agent, ""), _cycle(strands, agent, "")
    end(first)
    end(agent, _stopped("CancelledError"))
    assert strands.steps == [
        *ended(_CYCLE, generated_id(first), SUCCESS),
        *ended(_CYCLE, generated_id(left_open), CANCELLED),
    ]


def test_an_agent_below_an_agent_is_not_reported() -> None:
    """The end of an inner agent reports its own cycles; the cycles of the outer agent stay open until its end."""
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


def test_a_step_of_another_scope_below_an_agent_is_not_reported_with_it() -> None:
    """The end of an agent reports only cycles of the framework itself."""
    strands, agent = _strands()
    other = strands.start("work", {"step_id": "mine"}, below=agent, scope="the.application")
    end(agent, _stopped("CancelledError"))
    assert strands.steps == []
    end(other)
    assert strands.steps == ended("work", "mine", SUCCESS)


@pytest.mark.parametrize("parent", ["", "execute_event_loop_cycle", "POST /ask"])
def test_a_cycle_that_is_not_directly_below_an_agent_is_reported_only_at_its_own_end(parent: str) -> None:
    """Without an agent as its parent, an open cycle has no other end."""
    strands, agent = _strands()
    parent_span = strands.start(parent, below=agent) if parent else None
    cycle = strands.start(_CYCLE, later={"event_loop.cycle_id": "cycle-1"}, below=parent_span)
    if parent_span is not None:
        end(parent_span, _stopped("CancelledError"))
    end(agent, _stopped("CancelledError"))
    assert strands.steps == []
    end(cycle, IS_OK)
    assert strands.steps == ended(_CYCLE, "cycle-1", SUCCESS)


def test_an_open_cycle_is_reported_under_the_users_step_id() -> None:
    """``step_id`` on an open cycle replaces its cycle id."""
    strands, agent = _strands()
    cycle = _cycle(strands, agent)
    cycle.set_attribute("step_id", "mine")
    end(agent, _stopped("CancelledError"))
    assert strands.steps == ended(_CYCLE, "mine", CANCELLED)
