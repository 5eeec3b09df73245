"""LangGraph with openinference and with traceloop: each node is a step, under its checkpoint namespace."""

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
from observing import LIMIT, Gate, Observed, Reported, cancel_inside
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
    """The exception of a node."""


class State(TypedDict, total=False):
    """The state of a graph: the names of the nodes that have run, and an agent's messages."""

    trail: Annotated[list[str], operator.add]
    messages: Annotated[list[AnyMessage], operator.add]


@dataclass
class Traced:
    """LangGraph with one of the two instrumentations, called by `invoke` or by `ainvoke`."""

    observed: Observed
    prefix: str  # of the names of nodes' spans
    is_async: bool
    namespaces: list[str] = field(default_factory=list)  # of the nodes that have run, in this order

    async def run(self, graph: Graph, given: object = None, config: RunnableConfig | None = None) -> dict[str, Any]:
        start = State(trail=[], messages=[]) if given is None else given
        return await graph.ainvoke(start, config) if self.is_async else graph.invoke(start, config)

    def visited(self, name: str) -> Node:
        """Return a node that records its namespace, and adds its name to the state."""

        def node(_: State, config: RunnableConfig) -> State:
            self.note(config)
            return {"trail": [name]}

        return node

    def note(self, config: RunnableConfig) -> None:
        self.namespaces.append(config["configurable"]["checkpoint_ns"])

    def expected(self, *ended: tuple[str, str]) -> list[Reported]:
        """Return the expected webhooks for these names and outcomes, under the namespaces that the nodes recorded."""
        pairs = zip(ended, self.namespaces, strict=True)
        return sorted(Reported(self.prefix + name, space, outcome) for (name, outcome), space in pairs)


@pytest.fixture(params=["openinference", "traceloop"])
def prefix(request: pytest.FixtureRequest, observed: Observed, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Activate the instrumentation under test; its value is the prefix of the names of nodes' spans."""
    for owner, name in _WRAPPED:
        # Sets the current value, so that monkeypatch restores it: traceloop's uninstrument() leaves most wrappers.
        monkeypatch.setattr(owner, name, vars(owner)[name])
    instrumentor = Openinference() if request.param == "openinference" else Traceloop()
    instrumentor.instrument(tracer_provider=observed.provider)
    yield "" if request.param == "openinference" else "execute_task "
    instrumentor.uninstrument()


@pytest.fixture(params=["invoke", "ainvoke"])
def traced(request: pytest.FixtureRequest, observed: Observed, prefix: str) -> Traced:
    """LangGraph with each instrumentation, called synchronously and asynchronously."""
    return Traced(observed, prefix, is_async=request.param == "ainvoke")


def line(*nodes: tuple[str, Node | Graph], retry: RetryPolicy | None = None) -> StateGraph[Any, Any, Any, Any]:
    """Return a graph that runs *nodes* one after the other."""
    graph: StateGraph[Any, Any, Any, Any] = StateGraph(State)
    for name, node in nodes:
        graph.add_node(name, node, retry_policy=retry)
    path = [START, *(name for name, _ in nodes), END]
    for one, other in itertools.pairwise(path):
        graph.add_edge(one, other)
    return graph


async def test_nodes_that_return_are_successes(traced: Traced) -> None:
    """Each node of a graph is reported once, under its namespace; the graph is not reported."""
    graph = line(("plan", traced.visited("plan")), ("act", traced.visited("act"))).compile()
    assert (await traced.run(graph))["trail"] == ["plan", "act"]
    assert traced.observed.reported() == traced.expected(("plan", "success"), ("act", "success"))


async def test_edges_and_chains_are_no_steps(traced: Traced) -> None:
    """The conditional edge behind a node and the chain that the node runs are not reported."""
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
    assert traced.observed.reported() == traced.expected(("plan", "success"), ("act", "success"))


@pytest.mark.parametrize("is_tool", [False, True])
async def test_a_part_of_a_node_with_its_name_is_no_step(traced: Traced, *, is_tool: bool) -> None:
    """If a tool or a runnable has the name of its node, only the node is reported."""

    def search(text: str) -> str:
        """Search for *text*."""
        return f"found {text}"

    first: Runnable[Any, Any] = RunnableLambda(lambda given: given)
    chain = first | (tool(search) if is_tool else RunnableLambda(search))

    def node(_: State, config: RunnableConfig) -> State:
        traced.note(config)
        return {"trail": [chain.invoke({"text": "it"})]}

    await traced.run(line(("search", node)).compile())
    assert traced.observed.reported() == traced.expected(("search", "success"))


async def test_a_conditional_edge_from_start_is_no_step(traced: Traced) -> None:
    """`__start__` is no node of the application, and is not reported."""
    graph: StateGraph[Any, Any, Any, Any] = StateGraph(State)
    graph.add_node("act", traced.visited("act"))
    graph.add_conditional_edges(START, lambda _: "act", ["act"])
    await traced.run(graph.compile())
    assert traced.observed.reported() == traced.expected(("act", "success"))


async def test_concurrent_runs_of_a_node_have_different_ids(traced: Traced) -> None:
    """A node to which two `Send`s go has two namespaces, and gives two webhooks."""
    graph = line(("plan", traced.visited("plan")))
    graph.add_node("act", traced.visited("act"))
    graph.add_conditional_edges("plan", lambda _: [Send("act", {}), Send("act", {})], ["act"])
    await traced.run(graph.compile())
    assert len(set(traced.namespaces)) == 3
    assert traced.observed.reported() == traced.expected(("plan", "success"), ("act", "success"), ("act", "success"))


async def test_a_node_that_raises_has_failed(traced: Traced) -> None:
    """An exception that ends the graph is reported as the failure of the node that raised it, and of no other."""

    def act(_: State, config: RunnableConfig) -> State:
        traced.note(config)
        raise NodeError

    with pytest.raises(NodeError):
        await traced.run(line(("plan", traced.visited("plan")), ("act", act)).compile())
    assert traced.observed.reported() == traced.expected(("plan", "success"), ("act", "failed"))


async def test_each_attempt_of_a_node_is_reported_under_one_id(traced: Traced) -> None:
    """No span shows that LangGraph will retry: the last webhook with a step id has the final outcome."""
    errors = iter([NodeError(), NodeError()])

    def act(_: State, config: RunnableConfig) -> State:
        traced.note(config)
        for error in errors:
            raise error
        return {"trail": ["act"]}

    policy = RetryPolicy(initial_interval=0.01, max_attempts=3, jitter=False, retry_on=NodeError)
    await traced.run(line(("act", act), retry=policy).compile())
    assert len(set(traced.namespaces)) == 1
    assert traced.observed.reported() == traced.expected(("act", "failed"), ("act", "failed"), ("act", "success"))


async def test_a_node_whose_graph_is_cancelled_is_reported_as_cancelled(observed: Observed, prefix: str) -> None:
    """Cancelling the task of a graph cancels its running node."""
    traced, gate = Traced(observed, prefix, is_async=True), Gate()

    async def act(_: State, config: RunnableConfig) -> State:
        traced.note(config)
        return {"trail": [await gate.wait()]}

    await cancel_inside(traced.run(line(("plan", traced.visited("plan")), ("act", act)).compile()), gate)
    assert observed.reported() == traced.expected(("plan", "success"), ("act", "cancelled"))


async def test_a_node_beside_a_failing_node_is_reported_as_cancelled(observed: Observed, prefix: str) -> None:
    """LangGraph cancels the nodes that run concurrently with a node that raises."""
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
    assert observed.reported() == traced.expected(("waits", "cancelled"), ("breaks", "failed"))


async def test_a_stream_that_is_closed_early_fails_no_node(observed: Observed, prefix: str) -> None:
    """The node that has ended is a success, and the next one never starts."""
    traced = Traced(observed, prefix, is_async=True)
    graph = line(("plan", traced.visited("plan")), ("act", traced.visited("act"))).compile()
    stream = graph.astream(State(trail=[]), stream_mode="updates")
    assert isinstance(stream, AsyncGenerator)
    async with contextlib.aclosing(stream) as updates:
        async for update in updates:
            assert update == {"plan": {"trail": ["plan"]}}
            break
    assert observed.reported() == traced.expected(("plan", "success"))


def _asks(traced: Traced) -> Node:
    def ask(_: State, config: RunnableConfig) -> State:
        answer = interrupt("go on?")
        traced.note(config)
        return {"trail": [answer]}

    return ask


async def test_an_interrupted_node_is_reported_when_it_has_ended(traced: Traced) -> None:
    """An interrupt is not reported; when the graph is resumed, one success is, under the same id."""
    graph = line(("ask", _asks(traced))).compile(checkpointer=InMemorySaver())
    paused = await traced.run(graph, config=_THREAD)
    assert isinstance(paused["__interrupt__"][0], Interrupt)
    assert traced.observed.hooked.named(f"{traced.prefix}ask")
    assert traced.observed.reported() == []
    assert (await traced.run(graph, Command(resume="yes"), _THREAD))["trail"] == ["yes"]
    assert traced.observed.reported() == traced.expected(("ask", "success"))


async def test_an_interrupted_subgraph_is_reported_when_it_has_ended(traced: Traced) -> None:
    """An interrupt inside a subgraph does not end the node that contains the subgraph either."""
    graph = line(("team", line(("ask", _asks(traced))).compile())).compile(checkpointer=InMemorySaver())
    await traced.run(graph, config=_THREAD)
    assert traced.observed.reported() == []
    await traced.run(graph, Command(resume="yes"), _THREAD)
    traced.namespaces.append(traced.namespaces[0].partition("|")[0])
    assert traced.observed.reported() == traced.expected(("ask", "success"), ("team", "success"))


@pytest.mark.parametrize("name", [None, "team", "squad"])
async def test_the_nodes_of_a_subgraph_are_steps(traced: Traced, name: str | None) -> None:
    """A subgraph is reported once, as a node, and so is each of its nodes, whatever name the subgraph has."""
    graph = line(("team", line(("act", traced.visited("act"))).compile(name=name))).compile()
    await traced.run(graph)
    traced.namespaces.append(traced.namespaces[0].partition("|")[0])
    assert traced.observed.reported() == traced.expected(("act", "success"), ("team", "success"))


async def test_a_node_inside_a_graph_and_a_node_of_its_name_is_a_step(traced: Traced) -> None:
    """A node `team` of the graph `team` in the node `team` gives two webhooks, under two namespaces."""
    inner = line(("team", traced.visited("team"))).compile(name="team")
    await traced.run(line(("team", inner)).compile())
    traced.namespaces.append(traced.namespaces[0].partition("|")[0])
    assert traced.observed.reported() == traced.expected(("team", "success"), ("team", "success"))


async def test_tasks_of_the_functional_api_are_steps(traced: Traced) -> None:
    """The entrypoint, which is the only node of its graph, and the tasks inside it are reported."""

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
    reported = traced.observed.reported()
    names = ["act", "act", "awaited" if traced.is_async else "whole"]
    assert [(each.name, each.outcome) for each in reported] == [(traced.prefix + name, "success") for name in names]
    assert {each.step_id.partition("|")[0] for each in reported} == {reported[-1].step_id}
    assert len({each.step_id for each in reported}) == 3


async def test_a_failure_in_a_subgraph_fails_both_nodes(traced: Traced) -> None:
    """An exception in a subgraph is the failure of the node that raises, and of the node that contains the subgraph."""

    def act(_: State, config: RunnableConfig) -> State:
        traced.note(config)
        raise NodeError

    with pytest.raises(NodeError):
        await traced.run(line(("team", line(("act", act)).compile())).compile())
    traced.namespaces.append(traced.namespaces[0].partition("|")[0])
    assert traced.observed.reported() == traced.expected(("act", "failed"), ("team", "failed"))


class FakeModel(GenericFakeChatModel):
    """A model that returns the given messages, and accepts any tools."""

    def bind_tools(self, *_: object, **__: object) -> "FakeModel":
        return self


def _researcher() -> Graph:
    """Return an agent that calls its tool once."""

    def search(text: str) -> str:
        """Search for *text*."""
        return f"found {text}"

    call = {"name": "search", "args": {"text": "it"}, "id": "call-1"}
    messages = iter([AIMessage("", tool_calls=[call]), AIMessage("done")])
    return agents.create_agent(FakeModel(messages=messages), [search], name="researcher")


async def test_the_nodes_of_an_agent_are_steps(traced: Traced) -> None:
    """The nodes `model` and `tools` of an agent are steps; the agent, a model call and a single tool are none."""
    await traced.run(_researcher())
    reported = [(each.name, each.outcome) for each in traced.observed.reported()]
    assert reported == [(traced.prefix + name, "success") for name in ("model", "model", "tools")]


async def test_a_node_with_the_name_of_its_agent_is_reported_once(traced: Traced) -> None:
    """The agent `researcher` in the node `researcher` is one step, beside the nodes of the agent."""
    await traced.run(line(("researcher", _researcher())).compile())
    reported = traced.observed.reported()
    assert [(each.name, each.outcome) for each in reported] == [
        (traced.prefix + name, "success") for name in ("model", "model", "researcher", "tools")
    ]
    (outer,) = [each.step_id for each in reported if each.name.endswith("researcher")]
    assert {each.step_id.partition("|")[0] for each in reported} == {outer}
    assert len({each.step_id for each in reported}) == 4
