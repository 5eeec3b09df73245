"""Selected rows of the table, and a user's profiles beside the table."""

import pytest
from emitting import (
    CANCELLED,
    ERROR,
    FAILED,
    IS_OK,
    RETURNED,
    SUCCESS,
    Ending,
    Framework,
    Step,
    end,
    ended,
    generated_id,
)
from opentelemetry.sdk.trace import SpanLimits
from profile_examples import ELSEWHERE, EXAMPLES

from otel_step_hook.steps.event import Outcome
from otel_step_hook.steps.frameworks import GENERIC, PROFILES
from otel_step_hook.steps.profile import (
    NOT_TERMINAL,
    FrameworkProfile,
    Profile,
    Verdict,
    attribute_is,
    first_attribute,
    has_attribute,
    name_matches,
    outcome_from,
)
from otel_step_hook.steps.spans import StartedSpan

_CALL = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.id": "call-1"}


# Selecting


def test_only_the_selected_rows_report() -> None:
    """Only the steps of the selected framework are reported, and ``step_id`` alone makes no step."""
    expected, found = {}, {}
    for selected in {profile.name for profile in PROFILES if profile.scopes}:
        framework = Framework(ELSEWHERE, [profile for profile in PROFILES if profile.name == selected])
        for example in EXAMPLES:
            example.emit(framework)
        framework.emit("work", {"step_id": "mine"})
        expected[selected] = [example.name for example in EXAMPLES if example.profile == selected]
        found[selected] = [step.name for step in framework.steps]
    assert found == expected


def test_several_rows_may_be_selected() -> None:
    """Selected rows without scopes are asked about the spans of frameworks that are not selected."""
    framework = Framework("pydantic-ai", [row for row in PROFILES if row.name in {"prefect", "gen-ai"}])
    framework.emit("execute_tool x", _CALL)
    framework.emit("x-0", {"prefect.run.type": "task", "prefect.run.id": "run-1"}, scope="prefect")
    framework.emit("execute_tool x", _CALL, scope="prefect")
    assert framework.steps == [*ended("execute_tool x", "call-1", SUCCESS), *ended("x-0", "run-1", SUCCESS)]


def test_the_generic_row_alone_reports_steps_of_all_scopes() -> None:
    """Only ``step_id`` and ``step.id`` make a step then, under any scope."""
    framework = Framework("pydantic-ai", [GENERIC])
    framework.emit("execute_tool x", _CALL)
    for scope in ("pydantic-ai", "letta.otel.tracing", ELSEWHERE):
        framework.emit("work", {"step_id": "mine"}, scope=scope)
    assert framework.steps == ended("work", "mine", SUCCESS) * 3


def test_without_rows_nothing_is_reported() -> None:
    """Without profiles no span is a step."""
    framework = Framework(ELSEWHERE, ())
    framework.emit("work", {"step_id": "mine", **_CALL})
    assert framework.steps == []


# A user's profiles


def _with(profile: Profile, scope: str = ELSEWHERE) -> Framework:
    return Framework(scope, (profile, *PROFILES))


def test_a_users_profile_decides_about_its_own_scope() -> None:
    """Its rules decide which spans of its scopes are steps, their ids and their outcomes."""
    mine = Profile(
        name="mine",
        scopes=("mine", "mine.too"),
        is_step=name_matches("job .*"),
        step_id=first_attribute("job.id"),
        outcome=outcome_from("job.state", {"lost": FAILED, "aborted": CANCELLED, "parked": NOT_TERMINAL}),
    )
    framework = _with(mine)
    for scope in ("mine", "mine.too", "mine.not"):
        for state in ("done", "lost", "aborted", "parked"):
            framework.emit("job 1", {"job.id": scope}, later={"job.state": state}, scope=scope)
        framework.emit("task 1", {"job.id": scope}, scope=scope)
        framework.emit("execute_tool x", _CALL, scope=scope)
        framework.emit("work", {"step_id": "generic"}, scope=scope)
    outcomes = (SUCCESS, FAILED, CANCELLED)
    assert framework.steps == [
        *(Step("job 1", "mine", outcome) for outcome in outcomes),
        *ended("work", "generic", SUCCESS),
        *(Step("job 1", "mine.too", outcome) for outcome in outcomes),
        *ended("work", "generic", SUCCESS),
        *ended("execute_tool x", "call-1", SUCCESS),
        *ended("work", "generic", SUCCESS),
    ]


@pytest.mark.parametrize("is_first", [True, False])
def test_a_users_profile_adds_steps_to_a_framework(*, is_first: bool) -> None:
    """With a scope of the table, both profiles are asked, and each reports its steps under its own ids."""
    mine = Profile(
        name="mine",
        scopes=("pydantic-ai",),
        is_step=attribute_is("gen_ai.operation.name", "chat"),
        step_id=first_attribute("gen_ai.response.id"),
    )
    agent = Framework("pydantic-ai", (mine, *PROFILES) if is_first else (*PROFILES, mine))
    agent.emit("chat test", {"gen_ai.operation.name": "chat"}, later={"gen_ai.response.id": "response-1"})
    agent.emit("execute_tool x", _CALL)
    agent.emit("execute_tool x", {**_CALL, "pydantic_ai.tool.deferral.name": "CallDeferred"})
    agent.emit("invoke_agent demo", {"gen_ai.operation.name": "invoke_agent"})
    assert agent.steps == [
        *ended("chat test", "response-1", SUCCESS),
        *ended("execute_tool x", "call-1", SUCCESS),
    ]


def test_the_first_matching_profile_decides() -> None:
    """A profile before the table replaces id and outcome of the table's row."""
    mine = Profile(
        name="mine",
        scopes=("pydantic-ai",),
        is_step=attribute_is("gen_ai.operation.name", "execute_tool"),
        outcome=_always_failed,
    )
    agent = _with(mine, "pydantic-ai")
    tool = agent.emit("execute_tool x", _CALL)
    assert agent.steps == ended("execute_tool x", generated_id(tool), FAILED)


def _always_failed(_span: StartedSpan, _exception: BaseException | None) -> Outcome | Verdict:
    return FAILED


@pytest.mark.parametrize("required", [(), ("job.id",)])
def test_a_profile_without_scopes_is_asked_about_all_scopes_that_are_in_no_row(required: tuple[str, ...]) -> None:
    """It is asked before the table's rows without scopes; required attributes only make it cheaper."""
    mine = Profile(
        name="mine", required_attributes=required, is_step=name_matches("job .*"), step_id=first_attribute("job.id")
    )
    framework = _with(mine)
    for scope in ("one", "another", "pydantic-ai"):
        framework.emit("job 1", {"job.id": scope, **_CALL}, scope=scope)
        framework.emit("job 2", {"step_id": "mine", "job.id": scope}, scope=scope)
    assert framework.steps == [
        *ended("job 1", "one", SUCCESS),
        *ended("job 2", "mine", SUCCESS),
        *ended("job 1", "another", SUCCESS),
        *ended("job 2", "mine", SUCCESS),
        *ended("job 1", "call-1", SUCCESS),
        *ended("job 2", "mine", SUCCESS),
    ]


def test_a_profile_with_required_attributes_is_not_asked_about_spans_without_them() -> None:
    """A profile without required attributes is asked about every span."""
    by_attribute = _with(Profile(name="mine", required_attributes=("job.id",), is_step=name_matches("job .*")))
    by_name = _with(Profile(name="mine", is_step=name_matches("job .*")))
    for framework in (by_attribute, by_name):
        framework.emit("job 1")
        framework.emit("task 1")
        framework.emit("execute_tool x", _CALL)
    assert [step.name for step in by_attribute.steps] == ["execute_tool x"]
    assert [step.name for step in by_name.steps] == ["job 1", "execute_tool x"]


def test_a_step_of_a_users_profile_is_known_from_its_start() -> None:
    """A step that was renamed, and whose id the SDK has evicted, is reported under the id of its start."""
    mine = Profile(name="mine", is_step=name_matches("job .*"), step_id=first_attribute("job.id"))
    framework = Framework(ELSEWHERE, (mine,), SpanLimits(max_span_attributes=1))
    span = framework.start("job 1", {"job.id": "1"}, later={"other": "x"})
    span.update_name("renamed")
    end(span, Ending(status=ERROR))
    assert framework.steps == ended("renamed", "1", FAILED)


def test_a_profile_with_report_once_reports_a_step_once_with_each_outcome() -> None:
    """Of several spans with the same step id and outcome, the first one is reported."""
    mine = FrameworkProfile(
        name="mine", is_step=has_attribute("job.id"), step_id=first_attribute("job.id"), report_once=True
    )
    framework = _with(mine)
    for job, ending in (("1", RETURNED), ("1", Ending(status=ERROR)), ("1", IS_OK), ("2", IS_OK), ("1", IS_OK)):
        framework.emit("job", {"job.id": job}, ending=ending)
    assert framework.steps == [
        *ended("job", "1", SUCCESS),
        *ended("job", "1", FAILED),
        *ended("job", "2", SUCCESS),
    ]
