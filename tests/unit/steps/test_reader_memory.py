"""The memory of a reader is bounded, whether spans end or not."""

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
    """Generates the same id for the first and the third span."""

    def __init__(self) -> None:
        self._ids = iter((77, 78, 77))

    def generate_span_id(self) -> int:
        return next(self._ids)


def growth(framework: Framework, scenario: Callable[[Framework], object], rounds: int = 200) -> int:
    """Return how many objects the reader gains in the second *rounds* calls of *scenario*."""
    sizes = []
    for _ in range(2):
        for _ in range(rounds):
            scenario(framework)
        framework.recorder.events.clear()
        sizes.append(size_of(framework.recorder.reader))
    return sizes[1] - sizes[0]


# Scenarios


def _chain(*, has_one_name: bool) -> Callable[[Framework], None]:
    """Return a scenario that starts a span below the previous one, and then ends the previous one."""
    last: list[Span] = []

    def scenario(framework: Framework) -> None:
        name = "span" if has_one_name else f"span {next(_NUMBERS)}"
        last.append(framework.start(name, below=last[-1] if last else None, scope=_GRAPH))
        if len(last) > 1:
            end(last.pop(0))

    return scenario


def _agent(framework: Framework, ending: Ending | None, cycle_ends: str) -> None:
    """Make an agent of Strands with a cycle and a tool; None: the agent never ends."""
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
    """Make a node of LangGraph around another node of its name."""
    outer = framework.start("team", scope=_GRAPH)
    inner = {"metadata": f'{{"langgraph_node": "team", "langgraph_checkpoint_ns": "team:{next(_NUMBERS)}"}}'}
    framework.emit("team", later=inner, below=outer, scope=_GRAPH)
    if has_end:
        end(outer)


_SCENARIOS: dict[str, Callable[[Framework], object]] = {
    "no step": lambda framework: framework.emit("GET /"),
    "step": lambda framework: framework.emit("work", {"step_id": str(next(_NUMBERS))}),
    "step without end": lambda framework: framework.start("work", {"step_id": str(next(_NUMBERS))}),
    "chain": _chain(has_one_name=False),
    "chain under one name": _chain(has_one_name=True),
    "cycle, then agent": lambda framework: _agent(framework, _STOPPED, "first"),
    "agent, then cycle": lambda framework: _agent(framework, _STOPPED, "last"),
    "agent with a cycle without end": lambda framework: _agent(framework, _STOPPED, "never"),
    "cycle with an agent without end": lambda framework: _agent(framework, None, "first"),
    "agent and cycle without end": lambda framework: _agent(framework, None, "never"),
    "node around a node of its name": lambda framework: _node(framework, has_end=True),
    "node without end around a node of its name": lambda framework: _node(framework, has_end=False),
}


def test_a_reader_does_not_grow_with_the_number_of_spans() -> None:
    """Neither spans that have ended nor spans that were collected without an end are kept."""
    grown = {name: growth(Framework(ELSEWHERE), scenario) for name, scenario in _SCENARIOS.items()}
    assert {name: by for name, by in grown.items() if by > 0} == {}


def test_a_reader_does_not_grow_with_the_steps_of_any_profile() -> None:
    """Neither steps that have ended nor steps without an end are kept."""

    def scenario(framework: Framework, example: Example) -> None:
        example.emit(framework)
        framework.start(example.name, example.attributes, scope=example.scope or ELSEWHERE)

    framework = Framework(ELSEWHERE)
    grown = {(one.profile, one.scope): growth(framework, partial(scenario, example=one), 110) for one in EXAMPLES}
    assert {profile: by for profile, by in grown.items() if by > 0} == {}


def test_a_reader_keeps_nothing_of_a_span_that_is_no_step() -> None:
    """The reader does not grow at all, with profiles and without."""
    for framework in (Framework(ELSEWHERE), Framework(ELSEWHERE, ())):
        framework.emit("GET /")  # the reader keeps the scope from now on
        empty = size_of(framework.recorder.reader)
        framework.emit("GET /", {"step": "1"})
        assert size_of(framework.recorder.reader) == empty


def test_a_span_that_has_ended_is_not_kept_by_its_open_relatives() -> None:
    """Neither a child that starts in each step of a chain, nor an open agent around them, keeps ended spans."""
    framework = Framework(_STRANDS)
    agent = framework.start("invoke_agent x")
    ended, last = [], framework.start("step", {"step_id": "first"}, scope=ELSEWHERE)
    for number in range(50):
        following = framework.start("step", {"step_id": str(number)}, below=last, scope=ELSEWHERE)
        inner = framework.start("invoke_agent y", below=agent)
        ended += [weakref.ref(last), weakref.ref(inner)]
        end(last)
        end(inner)
        last = following
        del inner
    gc.collect()
    assert sum(ref() is not None for ref in ended) == 0
    end(agent)


def test_a_collected_span_does_not_remove_another_span_of_the_same_id() -> None:
    """Span ids may repeat in one process if an id generator is deterministic."""
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
    """The counts help to find out why no webhook was sent."""
    framework = Framework(ELSEWHERE)
    for number in range(3):
        framework.emit("GET /")
        framework.emit("work", {"step_id": str(number)})
    assert (framework.recorder.reader.seen, framework.recorder.reader.recognised) == (6, 3)


def test_a_reader_knows_a_bounded_number_of_scopes() -> None:
    """The number of scopes that the reader keeps is bounded, and steps of further scopes are still recognised."""
    framework = Framework(ELSEWHERE)
    grown = growth(framework, lambda one: one.emit("GET /", scope=f"scope {next(_NUMBERS)}"), rounds=1100)
    assert grown <= 0
    framework.emit("work", {"step_id": "1"}, scope="another")
    assert [step.step_id for step in framework.steps] == ["1"]


def test_a_reader_keeps_only_the_last_step_ids_of_letta(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step ids that are reported once, and the details of steps, are bounded."""
    monkeypatch.setattr(reader, "_MAX_REMEMBERED", 10)  # instead of ten thousand

    def step(framework: Framework) -> None:
        step_id = {"parameter.step_id": f"step-{next(_NUMBERS)}", "parameter.agent_id": "agent-1"}
        framework.emit("StepManager.log_step_async", step_id)
        framework.emit("StepManager.update_step_success_async", step_id, ending=IS_OK)

    assert growth(Framework("letta.otel.tracing"), step, 20) == 0
