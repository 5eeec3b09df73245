"""Profiles whose rules raise: they cost nobody else's steps, and the log tells of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from lines import Lines
from opentelemetry.sdk.trace import Span, TracerProvider

from otel_step_hook import ConfigurationError, Profile, StepHookProcessor, StepHookSettings
from otel_step_hook.steps.reader import StepReader
from otel_step_hook.testing import ScriptedReceiver

_FAULT = "a fault of otel-step-hook: LookupError"
_DROP = "dropped a step (unreadable): LookupError"
_CALL = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.id": "call-1"}


def _fail(*_: object) -> Any:
    raise LookupError("not of ours")


@contextmanager
def _provider(receiver: ScriptedReceiver, **options: Any) -> Iterator[TracerProvider]:
    hook = StepHookProcessor(StepHookSettings(webhook=receiver.url, shutdown_timeout=5), **options)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(hook)
    try:
        yield provider
    finally:
        provider.shutdown()


_Make = Callable[..., Profile]


def _theirs(**rules: Any) -> Profile:
    """Of the scope of a framework that has a row of its own."""
    return Profile(name="theirs", scopes=("pydantic-ai",), **rules)


@pytest.mark.parametrize(
    "profile",
    [
        _theirs(is_step=_fail),
        _theirs(is_tool=_fail),
        _theirs(is_tool=lambda *_: False, encloses=_fail),
        _theirs(below=_fail),
        _theirs(ends=_fail),
        _theirs(step_number=_fail),
        _theirs(tells=_fail),
        _theirs(tells=lambda *_: ("one", "two", "three")),
    ],
)
def test_a_rule_that_raises_costs_no_step_of_the_row_beside_it(
    profile: Profile, step_receiver: ScriptedReceiver
) -> None:
    """Another profile for the same scope is asked all the same."""
    with Lines() as lines, _provider(step_receiver, profiles=[profile]) as provider:
        with provider.get_tracer("pydantic-ai").start_as_current_span("run"):
            provider.get_tracer("pydantic-ai").start_span("execute_tool x", attributes=_CALL).end()
        lines.wait_for("a fault of otel-step-hook: ")
        assert provider.force_flush()
        assert [webhook.step_id for webhook in step_receiver.received] == ["call-1"]


def test_a_profile_without_scopes_that_raises_costs_no_step_that_has_an_id(step_receiver: ScriptedReceiver) -> None:
    """It is asked about the spans of everybody, and knows the attributes of few."""
    everybodys = Profile(name="theirs", is_step=_fail)
    with Lines() as lines, _provider(step_receiver, profiles=[everybodys]) as provider:
        provider.get_tracer("tests").start_span("step", attributes={"step_id": "step-1"}).end()
        lines.wait_for(_FAULT)
        assert provider.force_flush()
        assert [webhook.step_id for webhook in step_receiver.received] == ["step-1"]


@pytest.mark.parametrize("given", ["pydantic-ai", [int], [None], None, 5])
def test_what_is_no_profile_is_refused_at_the_start(given: Any) -> None:
    """With what was expected, and where names go."""
    with pytest.raises(
        ConfigurationError, match=r"profiles holds .*; expected Profile values; names of profiles go into"
    ):
        StepHookProcessor(StepHookSettings(webhook="http://127.0.0.1:9/"), profiles=given)


def test_a_span_that_may_have_been_a_step_is_counted_as_dropped(step_receiver: ScriptedReceiver) -> None:
    """Nobody else takes it, and whether the rule would have cannot be known."""
    with Lines() as lines, _provider(step_receiver, profiles=[_theirs(is_step=_fail)]) as provider:
        provider.get_tracer("pydantic-ai").start_span("run").end()
        assert lines.wait_for(_DROP).levelname == "ERROR"
    assert step_receiver.received == []


def test_a_source_of_ids_that_raises_is_told_when_the_step_ends(step_receiver: ScriptedReceiver) -> None:
    """The step began as one, and cannot be named: it is dropped, and counted once."""
    profile = Profile(name="theirs", scopes=("theirs",), is_step=lambda *_: True, step_id=_fail)
    with Lines() as lines, _provider(step_receiver, profiles=[profile]) as provider:
        provider.get_tracer("theirs").start_span("unit").end()
        lines.wait_for(_DROP)
    assert step_receiver.received == []


def test_a_rule_of_the_users_is_not_stopped_by_a_profile_that_raises(step_receiver: ScriptedReceiver) -> None:
    """It replaces the rules of all profiles for what a step is."""
    options = {"profiles": [_theirs(is_step=_fail)], "is_step": lambda span: span.name == "mine"}
    with _provider(step_receiver, **options) as provider:
        provider.get_tracer("pydantic-ai").start_span("mine", attributes={"step_id": "step-1"}).end()
        assert provider.force_flush()
        assert [webhook.step_id for webhook in step_receiver.received] == ["step-1"]


def test_a_rule_of_the_users_makes_a_step_of_any_span_of_lettas(step_receiver: ScriptedReceiver) -> None:
    """What Letta's row says of the end of a step is about the spans that save one."""
    with _provider(step_receiver, is_step=lambda span: span.name == "agent_step") as provider:
        provider.get_tracer("letta.otel.tracing").start_span("agent_step", attributes={"step_id": "step-1"}).end()
        assert provider.force_flush()
        assert [webhook.step_id for webhook in step_receiver.received] == ["step-1"]


@pytest.mark.parametrize("scope", ["theirs", "tests"])
def test_a_span_without_any_of_the_marks_is_asked_nothing(scope: str) -> None:
    """One look-up for its scope tells that it is no step: no rule is asked, nor which exception is in flight."""
    reader = StepReader(
        [
            Profile(name="theirs", scopes=("theirs",), marks=("their.kind",), is_step=_fail, is_tool=_fail),
            Profile(name="everybody's", marks=("kind",), is_step=_fail),
        ]
    )
    span = TracerProvider(shutdown_on_exit=False).get_tracer(scope).start_span("run", attributes={"other": 1})
    assert isinstance(span, Span)
    assert list(reader.end(span, _fail)) == []
