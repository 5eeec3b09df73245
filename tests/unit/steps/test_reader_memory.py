"""What a reader keeps of spans is bounded, whatever becomes of them."""

import gc
import weakref
from collections.abc import Callable
from functools import partial
from itertools import count

import pytest
from emitting import IS_OK, Ending, Framework, StepRecorder, end, size_of
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Span, set_span_in_context
from profile_examples import ELSEWHERE, EXAMPLES, Example

from otel_step_hook.steps import reader

_STRANDS, _GRAPH = "strands.telemetry.tracer", "openinference.instrumentation.langchain"
_STOPPED = Ending(attributes={"strands.cancellation.type": "CancelledError"})
_NUMBERS = count()


class _Fixed(RandomIdGenerator):
    """Gives the first and the third span the same id."""

    def __init__(self) -> None:
        self._ids = iter((77, 78, 77))

    def generate_span_id(self) -> int:
        return next(self._ids)


def growth(framework: Framework, live: Callable[[Framework], object], rounds: int = 200) -> int:
    """How many objects more the reader keeps when *live* has been called so often for the second time."""
    sizes = []
    for _ in range(2):
        for _ in range(rounds):
            live(framework)
        framework.recorder.events.clear()
        sizes.append(size_of(framework.recorder.reader))
    return sizes[1] - sizes[0]


# Lives of spans


def _hand_on(*, is_named_alike: bool) -> Callable[[Framework], None]:
    """Each span begins below the one before it, which then ends; one is always open."""
    last: list[Span] = []

    def live(framework: Framework) -> None:
        name = "span" if is_named_alike else f"span {next(_NUMBERS)}"
        last.append(framework.start(name, below=last[-1] if last else None, scope=_GRAPH))
        if len(last) > 1:
            end(last.pop(0))

    return live


def _agent(framework: Framework, ending: Ending | None, cycle_ends: str) -> None:
    """An agent of Strands with a cycle and a tool; without an *ending* it is never ended."""
    agent = framework.start("invoke_agent x", scope=_STRANDS)
    cycle = framework.start("execute_event_loop_cycle", {"event_loop.cycle_id": "1"}, below=agent, scope=_STRANDS)
    framework.start("execute_tool x", below=cycle, scope=_STRANDS)
    if cycle_ends == "first":
        end(cycle)
    if ending is not None:
        end(agent, ending)
    if cycle_ends == "last":
        end(cycle)


def _node(framework: Framework, *, has_end: bool) -> None:
    """A node of LangGraph, around another of its name that waits for it."""
    outer = framework.start("team", scope=_GRAPH)
    inner = {"metadata": f'{{"langgraph_node": "team", "langgraph_checkpoint_ns": "team:{next(_NUMBERS)}"}}'}
    framework.emit("team", later=inner, below=outer, scope=_GRAPH)
    if has_end:
        end(outer)


_LIVES: dict[str, Callable[[Framework], object]] = {
    "no step": lambda framework: framework.emit("GET /"),
    "step": lambda framework: framework.emit("work", {"step_id": str(next(_NUMBERS))}),
    "step without end": lambda framework: framework.start("work", {"step_id": str(next(_NUMBERS))}),
    "handed on": _hand_on(is_named_alike=False),
    "handed on under one name": _hand_on(is_named_alike=True),
    "cycle, then agent": lambda framework: _agent(framework, _STOPPED, "first"),
    "agent, then cycle": lambda framework: _agent(framework, _STOPPED, "last"),
    "agent with a cycle without end": lambda framework: _agent(framework, _STOPPED, "never"),
    "cycle with an agent without end": lambda framework: _agent(framework, None, "first"),
    "agent and cycle without end": lambda framework: _agent(framework, None, "never"),
    "node around its like": lambda framework: _node(framework, has_end=True),
    "node without end around its like": lambda framework: _node(framework, has_end=False),
}


def test_a_reader_keeps_nothing_more_of_spans_that_are_over() -> None:
    """Whether they have ended or are gone without an end."""
    grown = {name: growth(Framework(ELSEWHERE), live) for name, live in _LIVES.items()}
    assert {name: by for name, by in grown.items() if by > 0} == {}


def test_a_reader_keeps_nothing_more_of_the_steps_of_any_profile() -> None:
    """With an end of their own and without."""

    def live(framework: Framework, example: Example) -> None:
        example.emit(framework)
        framework.start(example.name, example.attributes, scope=example.scope or ELSEWHERE)

    framework = Framework(ELSEWHERE)
    grown = {(one.profile, one.scope): growth(framework, partial(live, example=one), 110) for one in EXAMPLES}
    assert {profile: by for profile, by in grown.items() if by > 0} == {}


def test_a_reader_keeps_nothing_of_a_span_that_is_no_step() -> None:
    """Nor of any while it has no profiles."""
    for framework in (Framework(ELSEWHERE), Framework(ELSEWHERE, ())):
        framework.emit("GET /")  # its scope is known from now on
        empty = size_of(framework.recorder.reader)
        framework.emit("GET /", {"step": "1"})
        assert size_of(framework.recorder.reader) == empty


def test_a_span_that_has_ended_is_not_kept_by_those_below_it() -> None:
    """Neither a step of a conversation whose turns are handed on, nor a part of an agent that goes on."""
    framework = Framework(_STRANDS)
    agent = framework.start("invoke_agent x")
    gone, last = [], framework.start("turn", {"step_id": "first"}, scope=ELSEWHERE)
    for number in range(50):
        following = framework.start("turn", {"step_id": str(number)}, below=last, scope=ELSEWHERE)
        inner = framework.start("invoke_agent y", below=agent)
        gone += [weakref.ref(last), weakref.ref(inner)]
        end(last)
        end(inner)
        last = following
        del inner
    gc.collect()
    assert sum(ref() is not None for ref in gone) == 0
    end(agent)


def test_a_span_that_is_collected_takes_none_of_the_same_id_along() -> None:
    """Ids repeat in one process where they are deterministic."""
    recorder = StepRecorder()
    provider = TracerProvider(id_generator=_Fixed(), shutdown_on_exit=False)
    provider.add_span_processor(recorder)
    tracer = provider.get_tracer(ELSEWHERE)
    first = tracer.start_span("first", attributes={"step_id": "first"})
    below = tracer.start_span("below", set_span_in_context(first))
    second = tracer.start_span("second", attributes={"step_id": "second"})
    del first
    gc.collect()
    second.end()
    below.end()
    assert [event.step_id for event in recorder.events] == ["second"]


def test_a_reader_counts_spans_and_steps() -> None:
    """So that it can be said why no webhook came."""
    framework = Framework(ELSEWHERE)
    for number in range(3):
        framework.emit("GET /")
        framework.emit("work", {"step_id": str(number)})
    assert (framework.recorder.reader.seen, framework.recorder.reader.recognised) == (6, 3)


def test_a_reader_knows_a_bounded_number_of_scopes() -> None:
    """However many instrumentation scopes an application makes up; their steps are recognised all the same."""
    framework = Framework(ELSEWHERE)
    grown = growth(framework, lambda one: one.emit("GET /", scope=f"scope {next(_NUMBERS)}"), rounds=1100)
    assert grown <= 0
    framework.emit("work", {"step_id": "1"}, scope="another")
    assert [step.step_id for step in framework.steps] == ["1"]


def test_a_reader_keeps_the_last_ids_of_letta_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the steps that it reports once, and of what other spans say of them."""
    monkeypatch.setattr(reader, "_MAX_REMEMBERED", 10)  # instead of ten thousand

    def step(framework: Framework) -> None:
        step_id = {"parameter.step_id": f"step-{next(_NUMBERS)}", "parameter.agent_id": "agent-1"}
        framework.emit("StepManager.log_step_async", step_id)
        framework.emit("StepManager.update_step_success_async", step_id, ending=IS_OK)

    assert growth(Framework("letta.otel.tracing"), step, 20) == 0
