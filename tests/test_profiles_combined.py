"""Profiles that meet: of the user's beside a framework's on the same scope, without a scope, and on hostile spans."""

import pytest
from emitting import CANCELLED, SUCCESS, Ending, Framework, end, told
from opentelemetry.sdk.trace import SpanLimits

from otel_step_hook import Profile
from otel_step_hook.steps.event import MAX_STEP_ID
from otel_step_hook.steps.profiles import GENERIC, PROFILES
from otel_step_hook.steps.rules import has, named

_STRANDS = "strands.telemetry.tracer"
_CANCELLED_AGENT = Ending(attributes={"strands.cancellation.type": "CancelledError"})


def _beside(scope: str) -> Framework:
    """A framework whose scope the user has a profile for as well."""
    mine = Profile(name="mine", scopes=(scope,), is_step=has("my.id"))
    return Framework(scope, (mine, *PROFILES))


# A user's profile before the framework's


def test_a_tool_in_a_node_stays_a_part_of_it() -> None:
    """The framework's row still knows what is inside of what."""
    adk = _beside("gcp.vertex.agent")
    node = adk.start("invoke_node fetch", {"gen_ai.operation.name": "invoke_node"})
    adk.emit("execute_tool x", later={"gen_ai.operation.name": "execute_tool"}, below=node)
    end(node)
    assert [step.name for step in adk.told] == ["invoke_node fetch"]


def test_a_step_below_a_run_is_still_known() -> None:
    """The framework's row still asks for the parent."""
    llama = _beside("openinference.instrumentation.llama_index")
    run = llama.start("Flow.run")
    llama.emit("Flow.write", later={"openinference.span.kind": "CHAIN"}, below=run)
    assert [step.name for step in llama.told] == ["Flow.write"]


def test_an_open_cycle_still_ends_with_its_agent() -> None:
    """The framework's row still looks on."""
    strands = _beside(_STRANDS)
    agent = strands.start("invoke_agent x")
    strands.start("execute_event_loop_cycle", later={"event_loop.cycle_id": "cycle-1"}, below=agent)
    end(agent, _CANCELLED_AGENT)
    assert strands.told == told("execute_event_loop_cycle", "cycle-1", CANCELLED)


# A user's profile without a scope


def test_a_profile_without_a_scope_knows_parents() -> None:
    """Each of its rules holds among the spans of all scopes that no profile names."""
    mine = Profile(name="mine", is_step=named("my .*"), below=named("run"))
    own = Framework("app", (mine, *PROFILES))
    run = own.start("run")
    own.emit("my step", below=run)
    own.emit("my other")
    assert [step.name for step in own.told] == ["my step"]


def test_a_profile_without_a_scope_knows_tools_and_namesakes() -> None:
    """A tool inside of a step, and a span below one of its name, are parts."""
    mine = Profile(name="mine", is_step=named("step .*"), is_tool=named("tool .*"), has_namesakes=True)
    own = Framework("app", (mine, *PROFILES))
    step = own.start("step 1")
    own.emit("tool 1", below=step)
    own.emit("step 1", below=step)
    end(step)
    own.emit("tool 2")
    assert [span.name for span in own.told] == ["step 1", "tool 2"]


# What the user says on a framework's spans


def test_a_namesake_with_an_id_of_the_users_is_a_step() -> None:
    """A span that is a part of its parent to the framework is a step to whoever says so."""
    graph = Framework("openinference.instrumentation.langchain")
    node = graph.start("plan")
    graph.emit("plan", later={"step_id": "mine"}, below=node)
    assert graph.told == told("plan", "mine", SUCCESS)


def test_an_evicted_id_of_the_users_is_stronger_than_the_frameworks() -> None:
    """It was there when the span began."""
    agent = Framework("pydantic-ai", limits=SpanLimits(max_span_attributes=3))
    begins = {"step_id": "mine", "gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.id": "call-1"}
    agent.emit("execute_tool x", begins, later={"another": "1"})
    assert agent.told == told("execute_tool x", "mine", SUCCESS)


def test_the_users_word_on_an_open_cycle_counts() -> None:
    """Whatever has ended its agent."""
    strands = Framework(_STRANDS)
    agent = strands.start("invoke_agent x")
    cycle = {"event_loop.cycle_id": "cycle-1", "step.status": "success"}
    strands.start("execute_event_loop_cycle", later=cycle, below=agent)
    end(agent, _CANCELLED_AGENT)
    assert strands.told == told("execute_event_loop_cycle", "cycle-1", SUCCESS)


def test_an_agent_that_is_a_step_itself_still_tells_its_open_cycles() -> None:
    """Both are told: whoever gives an agent a step id wants it so."""
    strands = Framework(_STRANDS)
    agent = strands.start("invoke_agent x", {"step_id": "mine"})
    strands.start("execute_event_loop_cycle", later={"event_loop.cycle_id": "cycle-1"}, below=agent)
    end(agent, _CANCELLED_AGENT)
    assert [step.step_id for step in strands.told] == ["cycle-1", "mine"]


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
    assert strands.told == told("execute_event_loop_cycle", "cycle-1", CANCELLED)


@pytest.mark.parametrize("key", ["langgraph_node", "langgraph_checkpoint_ns"])
def test_an_escape_that_json_does_not_know_is_survived(key: str) -> None:
    """Metadata that nobody can read makes no step, or one without an id of its own."""
    graph = Framework("openinference.instrumentation.langchain")
    other = {"langgraph_node": '"langgraph_checkpoint_ns": "x"', "langgraph_checkpoint_ns": '"langgraph_node": "x"'}[
        key
    ]
    graph.emit("x", later={"metadata": f'{{{other}, "{key}": "\\q"}}'})
    assert [step.step_id[:5] for step in graph.told] == ([] if key == "langgraph_node" else ["step-"])


def test_without_the_generic_row_an_id_makes_no_step() -> None:
    """Whoever selects rows gets those, and no other."""
    some = tuple(profile for profile in PROFILES if profile is not GENERIC)
    for scope in ("app", "pydantic-ai"):
        framework = Framework(scope, some)
        framework.emit("step", {"step_id": "1"})
        assert framework.told == []
