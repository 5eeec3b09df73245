"""The outcome of nodes that hand over to the graph around theirs, by LangGraph's exception ``ParentCommand``."""

import asyncio

from emitting import CANCELLED, ERROR, FAILED, OK, SUCCESS, UNSET, Ending, Framework, in_flight, recorded

from otel_step_hook.steps.event import Outcome

_HANDOVER = "langgraph.errors.ParentCommand"


class ParentCommand(Exception):  # noqa: N818 -- LangGraph's own name
    """LangGraph's exception."""

    __module__ = "langgraph.errors"


def _outcomes(*endings: Ending) -> list[Outcome]:
    graph = Framework("the.application")
    for ending in endings:
        graph.emit("alice", {"step_id": "1"}, ending=ending)
    return [step.outcome for step in graph.steps]


def test_a_node_that_hands_over_has_succeeded() -> None:
    """Under each status the exception, recorded or in flight, is no failure; its message is that of the command."""
    endings = (
        recorded(_HANDOVER, description="Command(graph='__parent__', goto='bob')"),
        recorded(_HANDOVER, ParentCommand, attributes={"error.type": "ParentCommand"}),
        recorded(_HANDOVER, status=UNSET),
        recorded(_HANDOVER, status=OK),
        in_flight(ParentCommand, ERROR),
        in_flight(ParentCommand, UNSET),
        in_flight(ParentCommand, OK),
    )
    assert _outcomes(*endings) == [SUCCESS] * 7


def test_a_node_that_is_cancelled_while_it_hands_over_is_cancelled() -> None:
    """A cancellation in flight outweighs the recorded exception."""
    assert _outcomes(recorded(_HANDOVER, asyncio.CancelledError)) == [CANCELLED]


def test_only_langgraphs_exception_is_a_handover() -> None:
    """An exception of the same name from the application is a failure, and so is one that follows the handover."""
    own = type("ParentCommand", (Exception,), {"__module__": "app"})
    both = tuple(("exception", {"exception.type": kind}) for kind in (_HANDOVER, "ValueError"))
    endings = (
        recorded("app.ParentCommand"),
        recorded("ParentCommand"),
        in_flight(own),
        in_flight(own, ERROR),
        recorded(_HANDOVER, ParentCommand, events=both),
    )
    assert _outcomes(*endings) == [FAILED] * 5
