"""The table of profiles as a whole: which rows are asked, and which of them decides.

The tests of the single rows are in test_profiles_*.py, spans with arbitrary content in test_profiles_of_anything.py.
"""

from itertools import product

import pytest
from emitting import (
    CANCELLED,
    FAILED,
    IS_OK,
    SUCCESS,
    Attributes,
    Ending,
    Framework,
    end,
    ended,
    generated_id,
    in_flight,
    recorded,
)
from opentelemetry.sdk.trace import SpanLimits
from profile_examples import ELSEWHERE, EXAMPLES

from otel_step_hook.steps.event import SCOPE
from otel_step_hook.steps.frameworks import PROFILES
from otel_step_hook.steps.profile import Profile

_CALL = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.id": "call-1"}


# Each row


def test_each_row_has_an_example() -> None:
    """Each row of the table, and each scope of a row, is tested with an example."""
    rows = [(profile.name, scope) for profile in PROFILES for scope in profile.scopes or ("",)]
    assert sorted(rows) == sorted((example.profile, example.scope) for example in EXAMPLES)


def _own_rows(profile: str) -> list[Profile]:
    return [row for row in PROFILES if row.name == profile]


def test_a_step_of_each_row_is_reported_once() -> None:
    """One event is reported, both with the whole table and with the rows of the framework alone."""
    expected, found = {}, {}
    for example in EXAMPLES:
        for which, profiles in (("all", PROFILES), ("own", _own_rows(example.profile))):
            framework = Framework(ELSEWHERE, profiles)
            example.emit(framework)
            expected[example.profile, example.scope, which] = [(example.name, SUCCESS)]
            found[example.profile, example.scope, which] = [(step.name, step.outcome) for step in framework.steps]
    assert found == expected


def test_the_rows_of_a_scope_are_asked_about_that_scope_alone() -> None:
    """A span like a step of a framework is no step if it has another scope."""
    found = {}
    for example in EXAMPLES:
        framework = Framework(ELSEWHERE, [row for row in _own_rows(example.profile) if row.scopes])
        example.emit(framework, scope=f"{example.scope}.more")
        if framework.steps:
            found[example.profile, example.scope] = framework.steps
    assert found == {}


# Precedence


def test_the_users_step_id_replaces_the_frameworks() -> None:
    """``step_id`` on the step of a framework is reported instead of the framework's own id, except for Letta."""
    expected, found = {}, {}
    for example, key in product(EXAMPLES, ("step_id", "step.id")):
        framework = Framework(ELSEWHERE)
        example.emit(framework, {"step_id": "", key: "mine"})
        step_id = "step-1" if example.profile == "letta" else "mine"
        expected[example.profile, example.scope, key] = ended(example.name, step_id, SUCCESS)
        found[example.profile, example.scope, key] = framework.steps
    assert found == expected


def test_the_users_step_id_makes_a_step() -> None:
    """``step_id`` on another span of a framework makes it a step, except for Letta."""
    both = [*ended("something else", "mine", SUCCESS), *ended("something else", "mine", CANCELLED)]
    expected, found = {}, {}
    for example, key in product(EXAMPLES, ("step_id", "step.id")):
        if example.scope:
            framework = Framework(example.scope)
            framework.emit("something else", {key: "mine"}, ending=IS_OK)
            framework.emit("something else", later={key: "mine"}, ending=recorded("CancelledError"))
            expected[example.profile, example.scope, key] = [] if example.profile == "letta" else both
            found[example.profile, example.scope, key] = framework.steps
    assert found == expected


def test_the_users_step_id_makes_a_tool_inside_a_step_a_step() -> None:
    """A span that is only a part of a step is a step of its own if the user has given it a step id."""
    adk = Framework("gcp.vertex.agent")
    node = adk.start("invoke_node plan", {"gen_ai.operation.name": "invoke_node"})
    adk.emit("execute_tool weather", later={**_CALL, "step_id": "mine"}, below=node)
    end(node)
    assert adk.steps == [
        *ended("execute_tool weather", "mine", SUCCESS),
        *ended("invoke_node plan", generated_id(node), SUCCESS),
    ]


_ID_KEYS = (
    *("step_id", "step.id", "gen_ai.tool.call.id", "gen_ai.task.id", "event_id", "crewai.task.id", "prefect.run.id"),
    *("event_loop.cycle_id", "airflow.task_instance.id", "cicd.pipeline.task.run.id", "temporalRunID"),
    *("temporalActivityID", "traceloop.association.properties.langgraph_checkpoint_ns"),
)


@pytest.mark.parametrize("placeholder", ["<not specified>", "unknown", "Unknown", " None\n", "null"])
def test_a_placeholder_is_the_id_of_no_step(placeholder: str) -> None:
    """Where a framework writes a placeholder instead of an id, an id is generated; Letta's steps always have one."""
    found = {}
    for example in EXAMPLES:
        framework = Framework(ELSEWHERE)
        example.emit(framework, dict.fromkeys(_ID_KEYS, placeholder))
        found[example.profile, example.scope] = [len(step.step_id) for step in framework.steps]
    expected = {row: [len("step-") + 36] for row in found}  # characters of a generated id
    assert found == {**expected, ("letta", "letta.otel.tracing"): [len("step-1")]}


def test_the_first_id_that_is_no_placeholder_is_reported() -> None:
    """A framework's second choice is used where the first is a placeholder."""
    graph = Framework("opentelemetry.instrumentation.langchain")
    prefix = "traceloop.association.properties.langgraph"
    node = {f"{prefix}_node": "plan", "traceloop.entity.name": "plan", "traceloop.span.kind": "task"}
    graph.emit("execute_task plan", {**node, f"{prefix}_checkpoint_ns": "unknown", "gen_ai.task.id": "task-1"})
    assert graph.steps == ended("execute_task plan", "task-1", SUCCESS)


def test_the_framework_decides_the_outcome_of_a_step_with_the_users_step_id() -> None:
    """If the user's ``step_id`` makes a span a step, the framework's rule for the outcome still applies."""
    llama = Framework("llamaindex.opentelemetry.tracer")
    llama.emit("work", {"step_id": "a"}, ending=Ending(events=(("SpanCancelledEvent", {}),)))
    agents = Framework("openinference.instrumentation.openai_agents")
    agents.emit("work", {"step_id": "b"}, ending=in_flight(ValueError, IS_OK.status))
    elsewhere = Framework(ELSEWHERE)
    elsewhere.emit("work", {"step_id": "c"}, ending=in_flight(ValueError, IS_OK.status))
    assert llama.steps == ended("work", "a", CANCELLED)
    assert agents.steps == ended("work", "b", FAILED)
    assert elsewhere.steps == ended("work", "c", SUCCESS)


@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_a_blank_step_id_is_ignored(blank: str) -> None:
    """After a blank ``step_id``, ``step.id`` is used, then the framework's id, and last a generated one."""
    agent = Framework("pydantic-ai")
    agent.emit("work", {"step_id": blank, "step.id": "second"})
    agent.emit("execute_tool x", {"step_id": blank, "step.id": blank, **_CALL})
    without_id = agent.emit("work", {"step_id": blank})
    assert [step.step_id for step in agent.steps] == ["second", "call-1", generated_id(without_id)]


def test_step_status_decides() -> None:
    """``step.status`` on the step of any framework decides its outcome."""
    outcomes = {"failed": FAILED, "cancelled": CANCELLED, "completed": SUCCESS}
    expected, found = {}, {}
    for example, status in product(EXAMPLES, outcomes):
        framework = Framework(ELSEWHERE)
        for ending in (IS_OK, recorded("ValueError", ValueError), in_flight(KeyboardInterrupt)):
            example.emit(framework, {"step.status": status}, ending=ending)
        times = 1 if example.profile == "letta" else 3  # Letta's steps are reported once with each outcome
        expected[example.profile, example.scope, status] = [outcomes[status]] * times
        found[example.profile, example.scope, status] = [step.outcome for step in framework.steps]
    assert found == expected


def test_step_status_overrules_a_pause_of_the_framework() -> None:
    """With a known ``step.status``, a step has ended although it is paused by the rule of its framework."""
    agent = Framework("pydantic-ai")
    deferred = {**_CALL, "pydantic_ai.tool.deferral.name": "CallDeferred"}
    agent.emit("execute_tool x", {**deferred, "step.status": "completed"})
    agent.emit("execute_tool x", {**deferred, "step.status": "perhaps"})
    assert agent.steps == ended("execute_tool x", "call-1", SUCCESS)


@pytest.mark.parametrize("profiles", [PROFILES, [Profile(name="all", scopes=(SCOPE,), is_step=lambda *_: True)]])
def test_a_span_of_the_hook_itself_is_never_a_step(profiles: list[Profile]) -> None:
    """No attribute or profile makes a delivery span a step, which would cause deliveries without end."""
    framework = Framework(SCOPE, profiles)
    framework.emit("step_hook.deliver", {"step_id": "mine", **_CALL})
    assert framework.steps == []


def test_logfires_pending_spans_and_logs_are_no_steps() -> None:
    """A pending span has the attributes of the real span that follows, and only the real one is reported."""
    times = {"pending_span": 0, "log": 0, "span": 1, "": 1}
    both = [*ended("execute_tool x", "call-1", SUCCESS), *ended("work", "mine", SUCCESS)]
    expected, found = {}, {}
    for scope, kind in product(("pydantic-ai", "logfire", ELSEWHERE), times):
        framework = Framework(scope)
        framework.emit("execute_tool x", {"logfire.span_type": kind, **_CALL})
        framework.emit("work", {"logfire.span_type": kind, "step_id": "mine"})
        expected[scope, kind] = both * times[kind]
        found[scope, kind] = framework.steps
    assert found == expected


@pytest.mark.parametrize(
    ("scope", "name", "attributes", "step_id"),
    [
        ("pydantic-ai", "execute_tool x", _CALL, "call-1"),
        ("temporal", "RunActivity:x", {"temporalRunID": "run-1", "temporalActivityID": "7"}, "run-1/7"),
        ("prefect", "x-0", {"prefect.run.type": "task", "prefect.run.id": "run-1"}, "run-1"),
        (ELSEWHERE, "work", {"step_id": "mine"}, "mine"),
        (ELSEWHERE, "work", {"step.id": "mine"}, "mine"),
        (ELSEWHERE, "build", {"cicd.pipeline.task.run.id": "task-1"}, "task-1"),
    ],
)
def test_a_step_is_reported_although_the_sdk_has_evicted_its_attributes(
    scope: str, name: str, attributes: Attributes, step_id: str
) -> None:
    """The SDK evicts the oldest attributes beyond its limit; the step and its id are known from the start."""
    limits = SpanLimits(max_span_attributes=2)
    for evicting in range(1, 4):
        framework = Framework(scope, limits=limits)
        framework.emit(name, attributes, later={f"later.{number}": number for number in range(evicting)})
        assert framework.steps == ended(name, step_id, SUCCESS)
