"""Which rows of the table are asked, and profiles of the user's beside them."""

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
    """Of the steps of all frameworks those of the selected one are reported, and no span is a step by its id alone."""
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
    """Those that name no scope are asked about the spans of the frameworks that have not been selected."""
    framework = Framework("pydantic-ai", [row for row in PROFILES if row.name in {"prefect", "gen-ai"}])
    framework.emit("execute_tool x", _CALL)
    framework.emit("x-0", {"prefect.run.type": "task", "prefect.run.id": "run-1"}, scope="prefect")
    framework.emit("execute_tool x", _CALL, scope="prefect")
    assert framework.steps == [*ended("execute_tool x", "call-1", SUCCESS), *ended("x-0", "run-1", SUCCESS)]


def test_the_generic_row_alone_tells_steps_of_all_scopes() -> None:
    """Only ``step_id`` and ``step.id`` make a step then, whosever the span is."""
    framework = Framework("pydantic-ai", [GENERIC])
    framework.emit("execute_tool x", _CALL)
    for scope in ("pydantic-ai", "letta.otel.tracing", ELSEWHERE):
        framework.emit("work", {"step_id": "mine"}, scope=scope)
    assert framework.steps == ended("work", "mine", SUCCESS) * 3


def test_no_row_tells_nothing() -> None:
    """Without profiles no span is a step."""
    framework = Framework(ELSEWHERE, ())
    framework.emit("work", {"step_id": "mine", **_CALL})
    assert framework.steps == []


# Profiles of the user's


def _with(profile: Profile, scope: str = ELSEWHERE) -> Framework:
    return Framework(scope, (profile, *PROFILES))


def test_a_profile_of_the_users_reads_a_scope_of_its_own() -> None:
    """Its rules say what is a step of its scope, under which id, and how it ended."""
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
def test_a_profile_of_the_users_adds_steps_to_a_framework(*, is_first: bool) -> None:
    """Under a scope that the table knows both are asked; each tells what it knows, by its own id."""
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


def test_the_first_profile_that_knows_a_step_reads_it() -> None:
    """A profile before the table takes a step over from the row below."""
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
def test_a_profile_without_scopes_is_asked_about_all_scopes_that_no_row_names(required: tuple[str, ...]) -> None:
    """It is asked before the rows below it; required attributes make it cheaper, and change nothing else."""
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


def test_a_step_without_required_attributes_is_known_only_where_all_spans_are_looked_at() -> None:
    """A profile with required attributes is not asked about spans without any; another is asked about every span."""
    by_mark = _with(Profile(name="mine", required_attributes=("job.id",), is_step=name_matches("job .*")))
    by_name = _with(Profile(name="mine", is_step=name_matches("job .*")))
    for framework in (by_mark, by_name):
        framework.emit("job 1")
        framework.emit("task 1")
        framework.emit("execute_tool x", _CALL)
    assert [step.name for step in by_mark.steps] == ["execute_tool x"]
    assert [step.name for step in by_name.steps] == ["job 1", "execute_tool x"]


def test_a_step_of_a_profile_of_the_users_is_remembered_from_its_start() -> None:
    """A step that has another name at its end, and has lost its id, is still that step."""
    mine = Profile(name="mine", is_step=name_matches("job .*"), step_id=first_attribute("job.id"))
    framework = Framework(ELSEWHERE, (mine,), SpanLimits(max_span_attributes=1))
    span = framework.start("job 1", {"job.id": "1"}, later={"other": "x"})
    span.update_name("renamed")
    end(span, Ending(status=ERROR))
    assert framework.steps == ended("renamed", "1", FAILED)


def test_a_profile_that_is_asked_to_tells_a_step_once_with_each_outcome() -> None:
    """Of the spans of one step with the same outcome the first is told."""
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
