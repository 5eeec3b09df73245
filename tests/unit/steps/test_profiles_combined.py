"""Profiles that meet: of the user's beside a framework's on the same scope, without a scope, and on hostile spans."""

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
    """A framework whose scope the user has a profile for as well."""
    mine = Profile(name="mine", scopes=(scope,), is_step=has_attribute("my.id"))
    return Framework(scope, (mine, *PROFILES))


# A user's profile before the framework's


def test_a_tool_in_a_node_stays_a_part_of_it() -> None:
    """The framework's row still knows what is inside of what."""
    adk = _beside("gcp.vertex.agent")
    node = adk.start("invoke_node fetch", {"gen_ai.operation.name": "invoke_node"})
    adk.emit("execute_tool x", later={"gen_ai.operation.name": "execute_tool"}, below=node)
    end(node)
    assert [step.name for step in adk.steps] == ["invoke_node fetch"]


@pytest.mark.parametrize("scope", ["traceloop.tracer", ELSEWHERE])
def test_a_tool_deep_inside_of_a_task_stays_a_part_of_it(scope: str) -> None:
    """However many running spans are between the two, or below."""
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
    """The SDK evicts the oldest attributes of a span first."""
    framework = Framework(scope, limits=SpanLimits(max_span_attributes=4))
    node = framework.start(outer, attributes, later={f"key.{number}": "value" for number in range(5)})
    framework.emit(inner, {"gen_ai.operation.name": "execute_tool"}, below=node)
    end(node)
    assert [step.name for step in framework.steps] == [outer]


def test_a_step_below_a_run_is_still_known() -> None:
    """The framework's row still asks for the parent."""
    llama = _beside("openinference.instrumentation.llama_index")
    run = llama.start("Flow.run")
    llama.emit("Flow.write", later={"openinference.span.kind": "CHAIN"}, below=run)
    assert [step.name for step in llama.steps] == ["Flow.write"]


def test_an_open_cycle_still_ends_with_its_agent() -> None:
    """The framework's row still looks on."""
    strands = _beside(_STRANDS)
    agent = strands.start("invoke_agent x")
    strands.start("execute_event_loop_cycle", later={"event_loop.cycle_id": "cycle-1"}, below=agent)
    end(agent, _CANCELLED_AGENT)
    assert strands.steps == ended("execute_event_loop_cycle", "cycle-1", CANCELLED)


# A user's profile without a scope


def test_a_profile_without_a_scope_knows_parents() -> None:
    """Each of its rules holds among the spans of all scopes that no profile names."""
    mine = FrameworkProfile(name="mine", is_step=name_matches("my .*"), is_part=not_below(name_matches("run")))
    own = Framework("app", (mine, *PROFILES))
    run = own.start("run")
    own.emit("my step", below=run)
    own.emit("my other")
    assert [step.name for step in own.steps] == ["my step"]


def test_a_profile_without_a_scope_knows_tools_and_pieces() -> None:
    """A tool inside of a step, and a step below one of its name, are parts."""
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


def test_a_piece_whose_checkpoint_was_cut_short_is_a_part() -> None:
    """Of a span that says too little the name above it decides."""
    framework = Framework("openinference.instrumentation.langchain")
    outer = framework.start("plan")
    framework.emit("plan", later={"metadata": '{"langgraph_node": "plan", "langgraph_ch'}, below=outer)
    end(outer, Ending(attributes={"metadata": '{"langgraph_node": "plan"}'}))
    assert [span.name for span in framework.steps] == ["plan"]


# What the user says on a framework's spans


def test_a_piece_with_an_id_of_the_users_is_a_step() -> None:
    """A span that is a part of its parent to the framework is a step to whoever says so."""
    graph = Framework("openinference.instrumentation.langchain")
    node = graph.start("plan")
    graph.emit("plan", later={"step_id": "mine"}, below=node)
    assert graph.steps == ended("plan", "mine", SUCCESS)


def test_an_id_that_is_too_long_to_be_sent_costs_its_own_step_alone() -> None:
    """It is the user's on a node of LangGraph: the step is lost, and said to be, by the one fault."""
    graph = Framework(_GRAPH)
    attributes = {"step_id": "x" * (MAX_STEP_ID + 1), **_metadata("plan", "plan:1")}
    with pytest.raises(ValueError, match="a step id has"):
        graph.emit("plan", later=attributes)
    graph.emit("plan", later=_metadata("plan", "plan:2"))
    assert graph.steps == ended("plan", "plan:2", SUCCESS)


def test_an_evicted_id_of_the_users_is_stronger_than_the_frameworks() -> None:
    """It was there when the span began."""
    agent = Framework("pydantic-ai", limits=SpanLimits(max_span_attributes=3))
    begins = {"step_id": "mine", "gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.id": "call-1"}
    agent.emit("execute_tool x", begins, later={"another": "1"})
    assert agent.steps == ended("execute_tool x", "mine", SUCCESS)


def test_the_users_word_on_an_open_cycle_counts() -> None:
    """Whatever has ended its agent."""
    strands = Framework(_STRANDS)
    agent = strands.start("invoke_agent x")
    cycle = {"event_loop.cycle_id": "cycle-1", "step.status": "success"}
    strands.start("execute_event_loop_cycle", later=cycle, below=agent)
    end(agent, _CANCELLED_AGENT)
    assert strands.steps == ended("execute_event_loop_cycle", "cycle-1", SUCCESS)


def test_an_agent_that_is_a_step_itself_still_tells_its_open_cycles() -> None:
    """Both are told: whoever gives an agent a step id wants it so."""
    strands = Framework(_STRANDS)
    agent = strands.start("invoke_agent x", {"step_id": "mine"})
    strands.start("execute_event_loop_cycle", later={"event_loop.cycle_id": "cycle-1"}, below=agent)
    end(agent, _CANCELLED_AGENT)
    assert [step.step_id for step in strands.steps] == ["cycle-1", "mine"]


# What cannot be read


@pytest.mark.parametrize("place", [0, 1])
def test_a_cycle_that_cannot_be_told_costs_no_other(place: int) -> None:
    """An id that is too long is raised when everything else has been told."""
    strands = Framework(_STRANDS)
    agent = strands.start("invoke_agent x")
    ids = ["cycle-1", "cycle-1"]
    ids[place] = "x" * (MAX_STEP_ID + 1)
    for cycle_id in ids:
        strands.start("execute_event_loop_cycle", later={"event_loop.cycle_id": cycle_id}, below=agent)
    with pytest.raises(ValueError, match="a step id has"):
        end(agent, _CANCELLED_AGENT)
    assert strands.steps == ended("execute_event_loop_cycle", "cycle-1", CANCELLED)


@pytest.mark.parametrize("key", ["langgraph_node", "langgraph_checkpoint_ns"])
def test_an_escape_that_json_does_not_know_is_survived(key: str) -> None:
    """Metadata that nobody can read makes no step, or one without an id of its own."""
    graph = Framework("openinference.instrumentation.langchain")
    other = {"langgraph_node": '"langgraph_checkpoint_ns": "x"', "langgraph_checkpoint_ns": '"langgraph_node": "x"'}[
        key
    ]
    graph.emit("x", later={"metadata": f'{{{other}, "{key}": "\\q"}}'})
    assert [step.step_id[:5] for step in graph.steps] == ([] if key == "langgraph_node" else ["step-"])


def test_without_the_generic_row_an_id_makes_no_step() -> None:
    """Whoever selects rows gets those, and no other."""
    some = tuple(profile for profile in PROFILES if profile is not GENERIC)
    for scope in ("app", "pydantic-ai"):
        framework = Framework(scope, some)
        framework.emit("step", {"step_id": "1"})
        assert framework.steps == []


# LangGraph's spans of one name


def _metadata(node: str, namespace: str) -> dict[str, str]:
    return {"metadata": json.dumps({"langgraph_node": node, "langgraph_checkpoint_ns": namespace})}


_GRAPH = "openinference.instrumentation.langchain"


def _nested(framework: Framework, depth: int, *, has_named_graph: bool) -> list[str]:
    """Run a node that is nested in *depth* nodes of its name, each with a graph; return the names of its pieces."""
    above, pieces = None, []
    for level in range(depth + 1):
        node = framework.start("team", below=above)
        piece = framework.start("RunnableSequence", below=node)
        namespace = "|".join(f"team:{number}" for number in range(level + 1))
        framework.emit("team", later=_metadata("team", namespace), below=piece)
        graph = framework.start("team" if has_named_graph else "LangGraph", below=node)
        pieces += [(graph, node, namespace)]
        above = graph
    for graph, node, namespace in reversed(pieces):
        end(graph, Ending(attributes=_metadata("team", namespace) if has_named_graph else {}))
        end(node, Ending(attributes=_metadata("team", namespace)))
    return [namespace for _, _, namespace in pieces]


@pytest.mark.parametrize("has_named_graph", [True, False])
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_a_node_of_a_node_of_its_name_is_a_step_of_its_own(depth: int, *, has_named_graph: bool) -> None:
    """Once, however deep, and its graph and its pieces never, where each graph has its node's name.

    Where graphs have another name, pieces of a nested node may be reported as well; a node is never lost.
    """
    framework = Framework(_GRAPH)
    namespaces = _nested(framework, depth, has_named_graph=has_named_graph)
    reported = [step.step_id for step in framework.steps]
    if has_named_graph or depth == 0:
        assert sorted(reported) == sorted(namespaces)
    assert set(reported) == set(namespaces)


def test_a_piece_of_a_node_with_its_name_is_a_part_of_it_however_deep() -> None:
    """Also where the node only pauses, and its piece has succeeded."""
    framework = Framework(_GRAPH)
    for ending in (Ending(), recorded("langgraph.errors.GraphInterrupt")):
        node = framework.start("search")
        sequence = framework.start("RunnableSequence", below=node)
        framework.emit("search", later=_metadata("search", "search:1"), below=sequence)
        end(sequence)
        end(node, replace(ending, attributes=_metadata("search", "search:1")))
    assert framework.steps == ended("search", "search:1", SUCCESS)


def test_a_loop_inside_of_a_node_of_its_name_is_reported_at_once() -> None:
    """No step waits for the end of another span."""
    framework = Framework(_GRAPH)
    outer = framework.start("team")
    for number in range(250):
        framework.emit("team", later=_metadata("team", f"team:1|team:{number}"), below=outer)
    assert [step.step_id for step in framework.steps] == [f"team:1|team:{number}" for number in range(250)]
    end(outer, Ending(attributes=_metadata("team", "team:1")))
    assert len(framework.steps) == 251


@pytest.mark.parametrize("taken", ["first", "last"])
def test_an_open_cycle_is_reported_by_the_first_end(taken: str) -> None:
    """By its own end or by its agent's, also where both come at the same moment."""
    strands = Framework(_STRANDS)
    agent = strands.start("invoke_agent x")
    cycle = strands.start("execute_event_loop_cycle", later={"event_loop.cycle_id": "cycle-1"}, below=agent)
    ends = [(cycle, Ending()), (agent, _CANCELLED_AGENT)]
    for span, ending in ends if taken == "first" else reversed(ends):
        end(span, ending)
    assert strands.steps == ended("execute_event_loop_cycle", "cycle-1", SUCCESS if taken == "first" else CANCELLED)


def test_an_agent_that_only_pauses_ends_no_cycle() -> None:
    """Its open cycles have not ended either."""
    strands = Framework(_STRANDS)
    agent = strands.start("invoke_agent x")
    strands.start("execute_event_loop_cycle", later={"event_loop.cycle_id": "cycle-1"}, below=agent)
    end(agent, recorded("langgraph.errors.GraphInterrupt"))
    assert strands.steps == []


def test_a_cycle_that_outlives_its_agent_is_told_by_its_own_end() -> None:
    """Where the agent's span is gone without an end."""
    strands = Framework(_STRANDS)
    agent = strands.start("invoke_agent x")
    cycle = strands.start("execute_event_loop_cycle", later={"event_loop.cycle_id": "cycle-1"}, below=agent)
    del agent
    gc.collect()
    end(cycle)
    assert strands.steps == ended("execute_event_loop_cycle", "cycle-1", SUCCESS)


# Profiles that cannot be meant


@pytest.mark.parametrize(
    ("fields", "said"),
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
def test_a_profile_that_could_never_fit_is_refused(fields: dict[str, object], said: str) -> None:
    """When it is made, with what was expected."""
    with pytest.raises(ConfigurationError, match=said):
        Profile(name="mine", **fields)  # type: ignore[arg-type]  # -- on purpose


def test_a_word_that_is_no_outcome_is_no_silence() -> None:
    """It is raised, so that the step is counted as dropped and the log says so; an outcome's own word is one."""
    for word, is_one in (("failed", True), ("done", False)):
        mine = Profile(name="mine", is_step=name_matches("unit"), outcome=lambda *_, word=word: word)
        own = Framework("app", (mine, *PROFILES))
        if is_one:
            own.emit("unit")
        else:
            with pytest.raises(ValueError, match="'done' is not a valid Outcome"):
                own.emit("unit")
        assert [str(step.outcome) for step in own.steps] == (["failed"] if is_one else [])


@pytest.mark.parametrize(
    ("description", "outcome"),
    [
        ("Cancelled: by somebody", CANCELLED),
        ("CancelledError()Traceback", CANCELLED),
        ("CancelledError", CANCELLED),
        ("Cancelled order cannot be refunded", FAILED),
        ("ApprovalRequired by a manager", FAILED),
    ],
)
def test_a_sentence_is_no_type_of_an_exception(description: str, outcome: Outcome) -> None:
    """A description names a type where nothing, a colon or a bracket follows."""
    own = Framework("app")
    own.emit("step", {"step_id": "1"}, ending=Ending(status=ERROR, description=description))
    assert own.steps == ended("step", "1", outcome)


def test_a_node_that_outlives_the_node_around_it_is_reported() -> None:
    """Only spans that are running are around it."""
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
    """A conditional edge that leads from the start has a span like a node's."""
    framework = Framework(scope)
    framework.emit(name, later=later)
    assert framework.steps == []


class DBOSWorkflowCancelledError(BaseException):
    """As DBOS has it."""


def test_a_step_that_cancel_workflow_has_interrupted_is_cancelled() -> None:
    """DBOS's own exception passes through it, and its span says ERROR."""
    dbos = Framework("dbos-tracer")
    step = dbos.start("step", later={"operationType": "step"})
    end(step, in_flight(DBOSWorkflowCancelledError, ERROR))
    assert [event.outcome for event in dbos.steps] == [CANCELLED]


# Garbage


def test_a_step_that_the_garbage_collector_ends_keeps_the_id_of_its_start() -> None:
    """It takes the span's weak references first, and then closes the generator that ends the span."""
    framework = Framework("app", limits=SpanLimits(max_span_attributes=1))

    def work() -> Iterator[None]:
        span = framework.start("step", {"step_id": "evicted"}, later={"another": "1"})
        try:
            yield
        finally:
            span.end()

    generator = work()
    next(generator)
    circle: list[object] = [generator]
    circle.append(circle)
    del generator, circle
    assert framework.steps == []
    gc.collect()
    assert framework.steps == ended("step", "evicted", SUCCESS)
