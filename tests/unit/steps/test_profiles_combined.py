"""A user's profiles beside those of frameworks, with the same scope or without scopes, and unreadable spans."""

import gc
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from emitting import CANCELLED, ERROR, FAILED, SUCCESS, Ending, Framework, end, ended, in_flight, recorded
from opentelemetry.sdk.trace import SpanLimits
from profile_examples import ELSEWHERE

from otel_step_hook import ConfigurationError, Outcome, Profile
from otel_step_hook.steps.event import MAX_STEP_ID
from otel_step_hook.steps.frameworks import GENERIC, PROFILES
from otel_step_hook.steps.profile import FrameworkProfile, has_attribute, inside, name_matches, not_below

_STRANDS = "strands.telemetry.tracer"
_CANCELLED_AGENT = Ending(attributes={"strands.cancellation.type": "CancelledError"})


def _beside(scope: str) -> Framework:
    """Return a framework for whose scope the user has a profile, too."""
    mine = Profile(name="mine", scopes=(scope,), is_step=has_attribute("my.id"))
    return Framework(scope, (mine, *PROFILES))


# A user's profile for the scope of a framework


def test_a_tool_in_a_node_stays_a_part_of_it() -> None:
    """The framework's rule for parts of steps still applies."""
    adk = _beside("gcp.vertex.agent")
    node = adk.start("invoke_node fetch", {"gen_ai.operation.name": "invoke_node"})
    adk.emit("execute_tool x", later={"gen_ai.operation.name": "execute_tool"}, below=node)
    end(node)
    assert [step.name for step in adk.steps] == ["invoke_node fetch"]


@pytest.mark.parametrize("scope", ["traceloop.tracer", ELSEWHERE])
def test_a_tool_deep_inside_of_a_task_stays_a_part_of_it(scope: str) -> None:
    """The number of open spans between task and tool, or below the tool, does not matter."""
    framework = Framework("traceloop.tracer")
    spans = [framework.start("a.task", {"traceloop.span.kind": "task"})]
    for _ in range(250):
        spans.append(framework.start("between", below=spans[-1], scope=scope))
    spans.append(framework.start("b.tool", {"traceloop.span.kind": "tool"}, below=spans[-1]))
    for _ in range(150):
        spans.append(framework.start("below", below=spans[-1], scope=scope))
    for span in reversed(spans):
        end(span)
    assert [step.name for step in framework.steps] == ["a.task"]


@pytest.mark.parametrize(
    ("scope", "outer", "attributes", "inner"),
    [
        ("agent_framework", "executor.process x", {"executor.id": "x"}, "execute_tool y"),
        ("gcp.vertex.agent", "invoke_node x", {"gen_ai.operation.name": "invoke_node"}, "execute_tool y"),
    ],
)
def test_a_tool_stays_a_part_of_a_node_that_has_lost_its_attributes(
    scope: str, outer: str, attributes: dict[str, str], inner: str
) -> None:
    """A tool is still a part of a node whose first attributes the SDK has evicted."""
    framework = Framework(scope, limits=SpanLimits(max_span_attributes=4))
    node = framework.start(outer, attributes, later={f"key.{number}": "value" for number in range(5)})
    framework.emit(inner, {"gen_ai.operation.name": "execute_tool"}, below=node)
    end(node)
    assert [step.name for step in framework.steps] == [outer]


def test_a_step_below_a_run_is_still_recognised() -> None:
    """The framework's rule about the parent span still applies."""
    llama = _beside("openinference.instrumentation.llama_index")
    run = llama.start("Flow.run")
    llama.emit("Flow.write", later={"openinference.span.kind": "CHAIN"}, below=run)
    assert [step.name for step in llama.steps] == ["Flow.write"]


def test_an_open_cycle_still_ends_with_its_agent() -> None:
    """The framework's rule for children without an end of their own still applies."""
    strands = _beside(_STRANDS)
    agent = strands.start("invoke_agent x")
    strands.start("execute_event_loop_cycle", later={"event_loop.cycle_id": "cycle-1"}, below=agent)
    end(agent, _CANCELLED_AGENT)
    assert strands.steps == ended("execute_event_loop_cycle", "cycle-1", CANCELLED)


# A user's profile without a scope


def test_a_profile_without_a_scope_may_ask_about_parents() -> None:
    """Its rules apply to the spans of all scopes that are in no profile."""
    mine = FrameworkProfile(name="mine", is_step=name_matches("my .*"), is_part=not_below(name_matches("run")))
    own = Framework("app", (mine, *PROFILES))
    run = own.start("run")
    own.emit("my step", below=run)
    own.emit("my other")
    assert [step.name for step in own.steps] == ["my step"]


def test_a_profile_without_a_scope_may_ask_about_ancestors() -> None:
    """A tool inside a step, and a step below a step of the same name, are parts."""
    mine = FrameworkProfile(
        name="mine", is_step=name_matches("(step|tool) .*"), is_part=inside(name_matches("step .*"))
    )
    own = Framework("app", (mine, *PROFILES))
    step = own.start("step 1", {"my.id": "1"})
    own.emit("tool 1", below=step)
    own.emit("step 1", {"my.id": "1"}, below=step)
    end(step)
    own.emit("tool 2")
    assert [span.name for span in own.steps] == ["step 1", "tool 2"]


def test_a_span_whose_checkpoint_was_cut_is_a_part() -> None:
    """If the metadata is cut within the checkpoint, a parent of the same name makes the span a part."""
    framework = Framework("openinference.instrumentation.langchain")
    outer = framework.start("plan")
    framework.emit("plan", later={"metadata": '{"langgraph_node": "plan", "langgraph_ch'}, below=outer)
    end(outer, Ending(attributes={"metadata": '{"langgraph_node": "plan"}'}))
    assert [span.name for span in framework.steps] == ["plan"]


# Attributes that the user sets on a framework's spans


def test_a_part_with_the_users_step_id_is_a_step() -> None:
    """A span that is a part by the framework's rule is a step if the user has set ``step_id``."""
    graph = Framework("openinference.instrumentation.langchain")
    node = graph.start("plan")
    graph.emit("plan", later={"step_id": "mine"}, below=node)
    assert graph.steps == ended("plan", "mine", SUCCESS)


def test_a_step_id_that_is_too_long_loses_only_its_own_step() -> None:
    """The step is lost with one error, and the next node of LangGraph is reported."""
    graph = Framework(_GRAPH)
    attributes = {"step_id": "x" * (MAX_STEP_ID + 1), **_metadata("plan", "plan:1")}
    with pytest.raises(ValueError, match="a step id has"):
        graph.emit("plan", later=attributes)
    graph.emit("plan", later=_metadata("plan", "plan:2"))
    assert graph.steps == ended("plan", "plan:2", SUCCESS)


def test_an_evicted_step_id_of_the_user_still_replaces_the_frameworks() -> None:
    """The user's step id is known from the start of the span."""
    agent = Framework("pydantic-ai", limits=SpanLimits(max_span_attributes=3))
    at_start = {"step_id": "mine", "gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.id": "call-1"}
    agent.emit("execute_tool x", at_start, later={"another": "1"})
    assert agent.steps == ended("execute_tool x", "mine", SUCCESS)


def test_step_status_decides_the_outcome_of_an_open_cycle() -> None:
    """``step.status`` on the cycle overrules the outcome of its agent."""
    strands = Framework(_STRANDS)
    agent = strands.start("invoke_agent x")
    cycle = {"event_loop.cycle_id": "cycle-1", "step.status": "success"}
    strands.start("execute_event_loop_cycle", later=cycle, below=agent)
    end(agent, _CANCELLED_AGENT)
    assert strands.steps == ended("execute_event_loop_cycle", "cycle-1", SUCCESS)


def test_an_agent_that_is_a_step_itself_still_reports_its_open_cycles() -> None:
    """If the user sets ``step_id`` on an agent, the agent and its cycles are reported."""
    strands = Framework(_STRANDS)
    agent = strands.start("invoke_agent x", {"step_id": "mine"})
    strands.start("execute_event_loop_cycle", later={"event_loop.cycle_id": "cycle-1"}, below=agent)
    end(agent, _CANCELLED_AGENT)
    assert [step.step_id for step in strands.steps] == ["cycle-1", "mine"]


# Attributes that cannot be read


@pytest.mark.parametrize("position", [0, 1])
def test_a_cycle_that_cannot_be_reported_loses_no_other(position: int) -> None:
    """The error of an id that is too long is raised after all other cycles have been reported."""
    strands = Framework(_STRANDS)
    agent = strands.start("invoke_agent x")
    ids = ["cycle-1", "cycle-1"]
    ids[position] = "x" * (MAX_STEP_ID + 1)
    for cycle_id in ids:
        strands.start("execute_event_loop_cycle", later={"event_loop.cycle_id": cycle_id}, below=agent)
    with pytest.raises(ValueError, match="a step id has"):
        end(agent, _CANCELLED_AGENT)
    assert strands.steps == ended("execute_event_loop_cycle", "cycle-1", CANCELLED)


@pytest.mark.parametrize("key", ["langgraph_node", "langgraph_checkpoint_ns"])
def test_an_invalid_escape_in_json_raises_nothing(key: str) -> None:
    """A node whose name cannot be read is no step; if only its checkpoint cannot be read, its id is generated."""
    graph = Framework("openinference.instrumentation.langchain")
    other = {"langgraph_node": '"langgraph_checkpoint_ns": "x"', "langgraph_checkpoint_ns": '"langgraph_node": "x"'}[
        key
    ]
    graph.emit("x", later={"metadata": f'{{{other}, "{key}": "\\q"}}'})
    assert [step.step_id[:5] for step in graph.steps] == ([] if key == "langgraph_node" else ["step-"])


def test_without_the_generic_row_a_step_id_makes_no_step() -> None:
    """If the generic row is not selected, ``step_id`` alone makes no step."""
    some = tuple(profile for profile in PROFILES if profile is not GENERIC)
    for scope in ("app", "pydantic-ai"):
        framework = Framework(scope, some)
        framework.emit("step", {"step_id": "1"})
        assert framework.steps == []


# LangGraph's nested spans of the same name


def _metadata(node: str, namespace: str) -> dict[str, str]:
    return {"metadata": json.dumps({"langgraph_node": node, "langgraph_checkpoint_ns": namespace})}


_GRAPH = "openinference.instrumentation.langchain"


def _nested(framework: Framework, depth: int, *, has_named_graph: bool) -> list[str]:
    """Run a node inside *depth* nodes of its name, each with a subgraph; return the checkpoint namespaces."""
    parent, nodes = None, []
    for level in range(depth + 1):
        node = framework.start("team", below=parent)
        sequence = framework.start("RunnableSequence", below=node)
        namespace = "|".join(f"team:{number}" for number in range(level + 1))
        framework.emit("team", later=_metadata("team", namespace), below=sequence)
        graph = framework.start("team" if has_named_graph else "LangGraph", below=node)
        nodes += [(graph, node, namespace)]
        parent = graph
    for graph, node, namespace in reversed(nodes):
        end(graph, Ending(attributes=_metadata("team", namespace) if has_named_graph else {}))
        end(node, Ending(attributes=_metadata("team", namespace)))
    return [namespace for _, _, namespace in nodes]


@pytest.mark.parametrize("has_named_graph", [True, False])
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_a_node_inside_a_node_of_its_name_is_a_step(depth: int, *, has_named_graph: bool) -> None:
    """If each graph has the name of its node, each node is reported once, and graphs and parts of nodes are not.

    If graphs have another name, parts of a nested node may be reported as well; a node is never lost.
    """
    framework = Framework(_GRAPH)
    namespaces = _nested(framework, depth, has_named_graph=has_named_graph)
    reported = [step.step_id for step in framework.steps]
    if has_named_graph or depth == 0:
        assert sorted(reported) == sorted(namespaces)
    assert set(reported) == set(namespaces)


def test_a_span_deep_inside_a_node_of_its_name_is_a_part() -> None:
    """The span is a part also if it succeeds and the node only pauses."""
    framework = Framework(_GRAPH)
    for ending in (Ending(), recorded("langgraph.errors.GraphInterrupt")):
        node = framework.start("search")
        sequence = framework.start("RunnableSequence", below=node)
        framework.emit("search", later=_metadata("search", "search:1"), below=sequence)
        end(sequence)
        end(node, replace(ending, attributes=_metadata("search", "search:1")))
    assert framework.steps == ended("search", "search:1", SUCCESS)


def test_nodes_inside_an_open_node_of_their_name_are_reported_at_once() -> None:
    """No step is held back until another span ends."""
    framework = Framework(_GRAPH)
    outer = framework.start("team")
    for number in range(250):
        framework.emit("team", later=_metadata("team", f"team:1|team:{number}"), below=outer)
    assert [step.step_id for step in framework.steps] == [f"team:1|team:{number}" for number in range(250)]
    end(outer, Ending(attributes=_metadata("team", "team:1")))
    assert len(framework.steps) == 251


@pytest.mark.parametrize("ends_first", ["cycle", "agent"])
def test_the_first_end_reports_an_open_cycle(ends_first: str) -> None:
    """The end of the cycle or the end of its agent reports the cycle, whichever comes first."""
    strands = Framework(_STRANDS)
    agent = strands.start("invoke_agent x")
    cycle = strands.start("execute_event_loop_cycle", later={"event_loop.cycle_id": "cycle-1"}, below=agent)
    ends = [(cycle, Ending()), (agent, _CANCELLED_AGENT)]
    for span, ending in ends if ends_first == "cycle" else reversed(ends):
        end(span, ending)
    assert strands.steps == ended(
        "execute_event_loop_cycle", "cycle-1", SUCCESS if ends_first == "cycle" else CANCELLED
    )


def test_an_agent_that_only_pauses_ends_no_cycle() -> None:
    """The open cycles of a paused agent are not reported."""
    strands = Framework(_STRANDS)
    agent = strands.start("invoke_agent x")
    strands.start("execute_event_loop_cycle", later={"event_loop.cycle_id": "cycle-1"}, below=agent)
    end(agent, recorded("langgraph.errors.GraphInterrupt"))
    assert strands.steps == []


def test_a_cycle_whose_agent_never_ends_is_reported_at_its_own_end() -> None:
    """The agent's span has been collected without an end."""
    strands = Framework(_STRANDS)
    agent = strands.start("invoke_agent x")
    cycle = strands.start("execute_event_loop_cycle", later={"event_loop.cycle_id": "cycle-1"}, below=agent)
    del agent
    gc.collect()
    end(cycle)
    assert strands.steps == ended("execute_event_loop_cycle", "cycle-1", SUCCESS)


# Invalid profiles


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scopes": "my.scope"}, "scopes of profile 'mine' is 'my.scope'; expected a tuple of names"),
        ({"required_attributes": ("key", 5)}, "required_attributes of profile 'mine' is "),
        ({"is_step": True}, "is_step of profile 'mine' is True; expected a function"),
        ({"step_id": "unit.id"}, "step_id of profile 'mine' is 'unit.id'; expected a function"),
        ({"outcome": None}, "outcome of profile 'mine' is None; expected a function"),
        ({"sampled_names": "(unit"}, "sampled_names of profile 'mine' is '\\(unit' .*; expected a regular expression"),
        ({"sampled_names": None}, "sampled_names of profile 'mine' is None .*; expected a regular expression"),
    ],
)
def test_an_invalid_profile_is_refused(fields: dict[str, object], message: str) -> None:
    """The constructor raises an error that says what was expected."""
    with pytest.raises(ConfigurationError, match=message):
        Profile(name="mine", **fields)  # type: ignore[arg-type]  # -- on purpose


def test_an_invalid_outcome_of_a_profile_raises() -> None:
    """The text of an outcome is accepted; another text raises, so that the step is logged and counted as dropped."""
    for text, is_valid in (("failed", True), ("done", False)):
        mine = Profile(name="mine", is_step=name_matches("unit"), outcome=lambda *_, text=text: text)
        own = Framework("app", (mine, *PROFILES))
        if is_valid:
            own.emit("unit")
        else:
            with pytest.raises(ValueError, match="'done' is not a valid Outcome"):
                own.emit("unit")
        assert [str(step.outcome) for step in own.steps] == (["failed"] if is_valid else [])


@pytest.mark.parametrize(
    ("description", "outcome"),
    [
        ("Cancelled: by the user", CANCELLED),
        ("CancelledError()Traceback", CANCELLED),
        ("CancelledError", CANCELLED),
        ("Cancelled order cannot be refunded", FAILED),
        ("ApprovalRequired by a manager", FAILED),
    ],
)
def test_a_sentence_names_no_exception_type(description: str, outcome: Outcome) -> None:
    """The name at the start of a description is an exception type if nothing, a colon or a bracket follows it."""
    own = Framework("app")
    own.emit("step", {"step_id": "1"}, ending=Ending(status=ERROR, description=description))
    assert own.steps == ended("step", "1", outcome)


def test_a_node_that_outlives_the_node_around_it_is_reported() -> None:
    """Only open spans count as ancestors of the same name."""
    framework = Framework(_GRAPH)
    outer = framework.start("team")
    inner = framework.start("team", below=outer)
    end(outer, Ending(attributes=_metadata("team", "team:1")))
    end(inner, Ending(attributes=_metadata("team", "team:1|team:2")))
    assert [step.step_id for step in framework.steps] == ["team:1", "team:1|team:2"]


@pytest.mark.parametrize(
    ("scope", "name", "later"),
    [
        (_GRAPH, "__start__", _metadata("__start__", "__start__:1")),
        (
            "opentelemetry.instrumentation.langchain",
            "execute_task __start__",
            {
                "traceloop.span.kind": "task",
                "traceloop.entity.name": "__start__",
                "traceloop.association.properties.langgraph_node": "__start__",
            },
        ),
    ],
)
def test_langgraphs_own_nodes_are_no_steps(scope: str, name: str, later: dict[str, str]) -> None:
    """A conditional edge from START has a span like that of a node."""
    framework = Framework(scope)
    framework.emit(name, later=later)
    assert framework.steps == []


class DBOSWorkflowCancelledError(BaseException):
    """The exception by which DBOS interrupts a step."""


def test_a_step_that_cancel_workflow_interrupts_is_cancelled() -> None:
    """DBOS's own exception passes through the step, and its span has status ERROR."""
    dbos = Framework("dbos-tracer")
    step = dbos.start("step", later={"operationType": "step"})
    end(step, in_flight(DBOSWorkflowCancelledError, ERROR))
    assert [event.outcome for event in dbos.steps] == [CANCELLED]


# Garbage collection


def test_a_step_that_the_garbage_collector_ends_keeps_its_id() -> None:
    """The collector clears weak references to the span first, and then closes the generator that ends the span."""
    framework = Framework("app", limits=SpanLimits(max_span_attributes=1))

    def work() -> Iterator[None]:
        span = framework.start("step", {"step_id": "evicted"}, later={"another": "1"})
        try:
            yield
        finally:
            span.end()

    generator = work()
    next(generator)
    cycle: list[object] = [generator]
    cycle.append(cycle)
    del generator, cycle
    assert framework.steps == []
    gc.collect()
    assert framework.steps == ended("step", "evicted", SUCCESS)
