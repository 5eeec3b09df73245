"""LangGraph, seen by openinference and by traceloop: each node is a step, under its checkpoint namespace."""

import asyncio
import contextlib
import itertools
import operator
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

import langchain_core.callbacks
import pytest
from langchain import agents
from langchain.agents.middleware.types import AgentMiddleware
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.tools import tool
from langgraph import prebuilt
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import chat_agent_executor
from langgraph.pregel import Pregel
from langgraph.types import Command, Interrupt, RetryPolicy, Send, interrupt
from observing import LIMIT, Gate, Observed, Told, cancel_inside
from openinference.instrumentation.langchain import LangChainInstrumentor as Openinference
from opentelemetry.instrumentation.langchain import LangchainInstrumentor as Traceloop

pytestmark = pytest.mark.anyio

Graph = CompiledStateGraph[Any, Any, Any, Any]
Node = Callable[..., object]
_THREAD: RunnableConfig = {"configurable": {"thread_id": "one"}}
_HOOKS = [f"{a}{when}_{what}" for a in ("", "a") for when in ("before", "after") for what in ("model", "agent")]
_WRAPPED = [
    (langchain_core.callbacks.BaseCallbackManager, "__init__"),
    (Pregel, "stream"),
    (Pregel, "astream"),
    (Command, "__init__"),
    (agents, "create_agent"),
    (agents.factory, "create_agent"),
    (prebuilt, "create_react_agent"),
    (chat_agent_executor, "create_react_agent"),
    *[(AgentMiddleware, name) for name in _HOOKS],
]


class NodeError(Exception):
    """What a node raises here."""


class State(TypedDict, total=False):
    """What the nodes pass on: their names, and an agent's messages."""

    trail: Annotated[list[str], operator.add]
    messages: Annotated[list[AnyMessage], operator.add]


@dataclass
class Traced:
    """LangGraph under one of the two instrumentations, called in one of the two ways."""

    observed: Observed
    prefix: str  # of a node's span
    is_async: bool
    namespaces: list[str] = field(default_factory=list)  # of the nodes that have run, in their order

    async def run(self, graph: Graph, given: object = None, config: RunnableConfig | None = None) -> dict[str, Any]:
        start = State(trail=[], messages=[]) if given is None else given
        return await graph.ainvoke(start, config) if self.is_async else graph.invoke(start, config)

    def visited(self, name: str) -> Node:
        """A node that notes its namespace, and leaves its name in the state."""

        def node(_: State, config: RunnableConfig) -> State:
            self.note(config)
            return {"trail": [name]}

        return node

    def note(self, config: RunnableConfig) -> None:
        self.namespaces.append(config["configurable"]["checkpoint_ns"])

    def expected(self, *ended: tuple[str, str]) -> list[Told]:
        """The webhooks for these names and outcomes, if each node has told its namespace when it ran."""
        pairs = zip(ended, self.namespaces, strict=True)
        return sorted(Told(self.prefix + name, space, outcome) for (name, outcome), space in pairs)


@pytest.fixture(params=["openinference", "traceloop"])
def prefix(request: pytest.FixtureRequest, observed: Observed, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """How the instrumentation under test names the spans of nodes; it is active during the test."""
    for owner, name in _WRAPPED:
        # The same again, only to have it back: traceloop's uninstrument() leaves most of its wrappers where they are.
        monkeypatch.setattr(owner, name, vars(owner)[name])
    instrumentor = Openinference() if request.param == "openinference" else Traceloop()
    instrumentor.instrument(tracer_provider=observed.provider)
    yield "" if request.param == "openinference" else "execute_task "
    instrumentor.uninstrument()


@pytest.fixture(params=["invoke", "ainvoke"])
def traced(request: pytest.FixtureRequest, observed: Observed, prefix: str) -> Traced:
    """LangGraph under each instrumentation, once as synchronous and once as asynchronous code."""
    return Traced(observed, prefix, is_async=request.param == "ainvoke")


def line(*nodes: tuple[str, Node | Graph], retry: RetryPolicy | None = None) -> StateGraph[Any, Any, Any, Any]:
    """A graph that runs *nodes* one after the other."""
    graph: StateGraph[Any, Any, Any, Any] = StateGraph(State)
    for name, node in nodes:
        graph.add_node(name, node, retry_policy=retry)
    path = [START, *(name for name, _ in nodes), END]
    for one, other in itertools.pairwise(path):
        graph.add_edge(one, other)
    return graph


async def test_nodes_that_return_are_successes(traced: Traced) -> None:
    """Each node of a graph is told once, under its namespace; the graph is not."""
    graph = line(("plan", traced.visited("plan")), ("act", traced.visited("act"))).compile()
    assert (await traced.run(graph))["trail"] == ["plan", "act"]
    assert traced.observed.told() == traced.expected(("plan", "success"), ("act", "success"))


async def test_what_is_inside_of_a_node_is_no_step(traced: Traced) -> None:
    """Neither the conditional edge behind a node is told, nor the chain that it runs."""
    doubled: Runnable[int, int] = RunnableLambda(lambda number: number * 2)
    chain = doubled | RunnableLambda(lambda number: number + 2)

    async def plan(_: State, config: RunnableConfig) -> State:
        traced.note(config)
        return {"trail": [str(await chain.ainvoke(1))]}

    def plan_now(_: State, config: RunnableConfig) -> State:
        traced.note(config)
        return {"trail": [str(chain.invoke(1))]}

    graph: StateGraph[Any, Any, Any, Any] = StateGraph(State)
    node: Node = plan if traced.is_async else plan_now
    graph.add_node("plan", node)
    graph.add_node("act", traced.visited("act"))
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", lambda _: "act", ["act"])
    assert (await traced.run(graph.compile()))["trail"] == ["4", "act"]
    assert traced.observed.hooked.named(f"{traced.prefix}RunnableSequence")
    assert traced.observed.told() == traced.expected(("plan", "success"), ("act", "success"))


@pytest.mark.parametrize("is_tool", [False, True])
async def test_what_is_named_like_the_node_that_it_is_inside_of_is_no_step(traced: Traced, *, is_tool: bool) -> None:
    """A tool or a piece of a chain may have its node's name: the node is told once."""

    def search(text: str) -> str:
        """Search for *text*."""
        return f"found {text}"

    begins: Runnable[Any, Any] = RunnableLambda(lambda given: given)
    chain = begins | (tool(search) if is_tool else RunnableLambda(search))

    def node(_: State, config: RunnableConfig) -> State:
        traced.note(config)
        return {"trail": [chain.invoke({"text": "it"})]}

    await traced.run(line(("search", node)).compile())
    assert traced.observed.told() == traced.expected(("search", "success"))


async def test_the_choice_of_the_first_node_is_no_step(traced: Traced) -> None:
    """A conditional edge from START is not told either: `__start__` is no node of the application's."""
    graph: StateGraph[Any, Any, Any, Any] = StateGraph(State)
    graph.add_node("act", traced.visited("act"))
    graph.add_conditional_edges(START, lambda _: "act", ["act"])
    await traced.run(graph.compile())
    assert traced.observed.told() == traced.expected(("act", "success"))


async def test_nodes_that_run_at_once_are_told_apart(traced: Traced) -> None:
    """A node that is sent to twice has two namespaces, and two webhooks."""
    graph = line(("plan", traced.visited("plan")))
    graph.add_node("act", traced.visited("act"))
    graph.add_conditional_edges("plan", lambda _: [Send("act", {}), Send("act", {})], ["act"])
    await traced.run(graph.compile())
    assert len(set(traced.namespaces)) == 3
    assert traced.observed.told() == traced.expected(("plan", "success"), ("act", "success"), ("act", "success"))


async def test_a_node_that_raises_has_failed(traced: Traced) -> None:
    """The exception that ends the graph is told as the failure of its node, and of no other."""

    def act(_: State, config: RunnableConfig) -> State:
        traced.note(config)
        raise NodeError

    with pytest.raises(NodeError):
        await traced.run(line(("plan", traced.visited("plan")), ("act", act)).compile())
    assert traced.observed.told() == traced.expected(("plan", "success"), ("act", "failed"))


async def test_each_attempt_of_a_node_is_told_under_one_id(traced: Traced) -> None:
    """No span says that LangGraph will try again: the last webhook of a step id has the last word."""
    errors = iter([NodeError(), NodeError()])

    def act(_: State, config: RunnableConfig) -> State:
        traced.note(config)
        for error in errors:
            raise error
        return {"trail": ["act"]}

    policy = RetryPolicy(initial_interval=0.01, max_attempts=3, jitter=False, retry_on=NodeError)
    await traced.run(line(("act", act), retry=policy).compile())
    assert len(set(traced.namespaces)) == 1
    assert traced.observed.told() == traced.expected(("act", "failed"), ("act", "failed"), ("act", "success"))


async def test_a_graph_cancelled_inside_a_node_tells_that_node_as_cancelled(observed: Observed, prefix: str) -> None:
    """Cancelling the task of the graph cancels the node that it is in."""
    traced, gate = Traced(observed, prefix, is_async=True), Gate()

    async def act(_: State, config: RunnableConfig) -> State:
        traced.note(config)
        return {"trail": [await gate.wait()]}

    await cancel_inside(traced.run(line(("plan", traced.visited("plan")), ("act", act)).compile()), gate)
    assert observed.told() == traced.expected(("plan", "success"), ("act", "cancelled"))


async def test_a_node_whose_neighbour_fails_is_told_as_cancelled(observed: Observed, prefix: str) -> None:
    """LangGraph cancels the nodes that run beside one that raises."""
    traced, gate = Traced(observed, prefix, is_async=True), Gate()

    async def waits(_: State, config: RunnableConfig) -> State:
        traced.note(config)
        return {"trail": [await gate.wait()]}

    async def breaks(_: State, config: RunnableConfig) -> State:
        assert await asyncio.to_thread(gate.reached.wait, LIMIT)
        traced.note(config)
        raise NodeError

    graph = line(("waits", waits))
    node: Node = breaks
    graph.add_node("breaks", node)
    graph.add_edge(START, "breaks")
    with pytest.raises(NodeError):
        await traced.run(graph.compile())
    assert observed.told() == traced.expected(("waits", "cancelled"), ("breaks", "failed"))


async def test_a_stream_that_is_left_early_has_ended_the_nodes_before(observed: Observed, prefix: str) -> None:
    """Whoever has heard enough fails nothing: the node that has been is a success, the next one never began."""
    traced = Traced(observed, prefix, is_async=True)
    graph = line(("plan", traced.visited("plan")), ("act", traced.visited("act"))).compile()
    stream = graph.astream(State(trail=[]), stream_mode="updates")
    assert isinstance(stream, AsyncGenerator)
    async with contextlib.aclosing(stream) as updates:
        async for update in updates:
            assert update == {"plan": {"trail": ["plan"]}}
            break
    assert observed.told() == traced.expected(("plan", "success"))


def _asks(traced: Traced) -> Node:
    def ask(_: State, config: RunnableConfig) -> State:
        answer = interrupt("go on?")
        traced.note(config)
        return {"trail": [answer]}

    return ask


async def test_a_node_that_waits_for_somebody_is_told_when_it_has_ended(traced: Traced) -> None:
    """Nothing is told of an interrupt; when the graph is resumed, one success is, under the same id."""
    graph = line(("ask", _asks(traced))).compile(checkpointer=InMemorySaver())
    paused = await traced.run(graph, config=_THREAD)
    assert isinstance(paused["__interrupt__"][0], Interrupt)
    assert traced.observed.hooked.named(f"{traced.prefix}ask")
    assert traced.observed.told() == []
    assert (await traced.run(graph, Command(resume="yes"), _THREAD))["trail"] == ["yes"]
    assert traced.observed.told() == traced.expected(("ask", "success"))


async def test_a_subgraph_that_waits_is_told_when_it_has_ended(traced: Traced) -> None:
    """An interrupt inside of a subgraph is no end of the node that holds it either."""
    graph = line(("team", line(("ask", _asks(traced))).compile())).compile(checkpointer=InMemorySaver())
    await traced.run(graph, config=_THREAD)
    assert traced.observed.told() == []
    await traced.run(graph, Command(resume="yes"), _THREAD)
    traced.namespaces.append(traced.namespaces[0].partition("|")[0])
    assert traced.observed.told() == traced.expected(("ask", "success"), ("team", "success"))


@pytest.mark.parametrize("name", [None, "team", "squad"])
async def test_the_nodes_of_a_subgraph_are_steps_of_their_own(traced: Traced, name: str | None) -> None:
    """A subgraph is told once, as the node that it is, and so is each node of it, whatever the graph is called."""
    graph = line(("team", line(("act", traced.visited("act"))).compile(name=name))).compile()
    await traced.run(graph)
    traced.namespaces.append(traced.namespaces[0].partition("|")[0])
    assert traced.observed.told() == traced.expected(("act", "success"), ("team", "success"))


async def test_a_node_named_like_all_that_hold_it_is_a_step(traced: Traced) -> None:
    """A node `team` of the graph `team` in the node `team`: two nodes, two namespaces, two webhooks."""
    inner = line(("team", traced.visited("team"))).compile(name="team")
    await traced.run(line(("team", inner)).compile())
    traced.namespaces.append(traced.namespaces[0].partition("|")[0])
    assert traced.observed.told() == traced.expected(("team", "success"), ("team", "success"))


async def test_tasks_of_the_functional_api_are_steps(traced: Traced) -> None:
    """So is the entrypoint, which is the only node of its graph, and holds them."""

    @task
    def act(number: int) -> int:
        return number + 1

    @entrypoint()
    def whole(number: int) -> int:
        return act(number).result() + act(number).result()

    @entrypoint()
    async def awaited(number: int) -> int:
        return sum([await act(number), await act(number)])

    graph = awaited if traced.is_async else whole
    assert (await graph.ainvoke(1) if traced.is_async else graph.invoke(1)) == 4
    told = traced.observed.told()
    names = ["act", "act", "awaited" if traced.is_async else "whole"]
    assert [(each.name, each.outcome) for each in told] == [(traced.prefix + name, "success") for name in names]
    assert {each.step_id.partition("|")[0] for each in told} == {told[-1].step_id}
    assert len({each.step_id for each in told}) == 3


async def test_a_subgraph_that_fails_is_told_with_its_node(traced: Traced) -> None:
    """An exception inside of a subgraph is the failure of the node that raises and of the one that holds it."""

    def act(_: State, config: RunnableConfig) -> State:
        traced.note(config)
        raise NodeError

    with pytest.raises(NodeError):
        await traced.run(line(("team", line(("act", act)).compile())).compile())
    traced.namespaces.append(traced.namespaces[0].partition("|")[0])
    assert traced.observed.told() == traced.expected(("act", "failed"), ("team", "failed"))


class FakeModel(GenericFakeChatModel):
    """A model that says what it is told to, and takes any tools."""

    def bind_tools(self, *_: object, **__: object) -> "FakeModel":
        return self


def _researcher() -> Graph:
    """An agent that calls its tool once."""

    def search(text: str) -> str:
        """Search for *text*."""
        return f"found {text}"

    call = {"name": "search", "args": {"text": "it"}, "id": "call-1"}
    says = iter([AIMessage("", tool_calls=[call]), AIMessage("done")])
    return agents.create_agent(FakeModel(messages=says), [search], name="researcher")


async def test_an_agent_tells_its_own_nodes(traced: Traced) -> None:
    """An agent is a graph: its model and its tools are steps, the agent itself, a model's call or one tool are not."""
    await traced.run(_researcher())
    told = [(each.name, each.outcome) for each in traced.observed.told()]
    assert told == [(traced.prefix + name, "success") for name in ("model", "model", "tools")]


async def test_a_node_named_like_the_agent_that_it_holds_is_told_once(traced: Traced) -> None:
    """The agent `researcher` in the node `researcher` is one step beside those inside of it."""
    await traced.run(line(("researcher", _researcher())).compile())
    told = traced.observed.told()
    assert [(each.name, each.outcome) for each in told] == [
        (traced.prefix + name, "success") for name in ("model", "model", "researcher", "tools")
    ]
    (outer,) = [each.step_id for each in told if each.name.endswith("researcher")]
    assert {each.step_id.partition("|")[0] for each in told} == {outer}
    assert len({each.step_id for each in told}) == 4
