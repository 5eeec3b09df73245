"""Profiles whose rules raise: no step of another profile is lost, and the error is logged."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import Span, TracerProvider
from support import log_lines

from otel_step_hook import ConfigurationError, Profile, StepHookProcessor, StepHookSettings
from otel_step_hook.steps.profile import FrameworkProfile
from otel_step_hook.steps.reader import StepReader
from otel_step_hook.testing import ScriptedReceiver

_FAULT = "a fault of otel-step-hook: LookupError"
_DROP = "dropped a step (unreadable, endpoint default): LookupError"
_CALL = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.id": "call-1"}


Provided = Callable[..., TracerProvider]  # the type of the fixture `provided`


def _fail(*_: object) -> Any:
    raise LookupError("raised by a rule")


@pytest.fixture
def provided(step_receiver: ScriptedReceiver) -> Iterator[Callable[..., TracerProvider]]:
    """Make providers whose hooks get these options; they are shut down after the test."""
    made: list[TracerProvider] = []

    def provider(**options: Any) -> TracerProvider:
        made.append(TracerProvider(shutdown_on_exit=False))
        settings = StepHookSettings(webhook=step_receiver.url, shutdown_timeout=5)
        made[-1].add_span_processor(StepHookProcessor(settings, **options))
        return made[-1]

    yield provider
    for one in made:
        one.shutdown()


def _theirs(**rules: Any) -> Profile:
    """Return a profile for a scope that also has a row in the table."""
    return FrameworkProfile(name="theirs", scopes=("pydantic-ai",), **rules)


@pytest.mark.parametrize(
    "profile",
    [
        _theirs(is_step=_fail),
        _theirs(is_step=lambda _: True, is_part=_fail),
        _theirs(ends_children=_fail),
        _theirs(at_start=_fail),
        _theirs(details=_fail),
        _theirs(details=lambda *_: ("one", "two", "three")),
    ],
)
def test_a_rule_that_raises_loses_no_step_of_another_profile(
    profile: Profile, provided: Provided, step_receiver: ScriptedReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """The next profile for the same scope is asked, too."""
    provider = provided(extra_profiles=[profile])
    with provider.get_tracer("pydantic-ai").start_as_current_span("run"):
        provider.get_tracer("pydantic-ai").start_span("execute_tool x", attributes=_CALL).end()
    provider.shutdown()
    assert "a fault of otel-step-hook: " in caplog.text
    assert [webhook.step_id for webhook in step_receiver.received] == ["call-1"]


def test_a_profile_without_scopes_that_raises_loses_no_step_with_a_step_id(
    provided: Provided, step_receiver: ScriptedReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """A profile without scopes is asked about spans whose attributes it does not expect."""
    provider = provided(extra_profiles=[Profile(name="theirs", is_step=_fail)])
    provider.get_tracer("tests").start_span("step", attributes={"step_id": "step-1"}).end()
    provider.shutdown()
    assert _FAULT in caplog.text
    assert [webhook.step_id for webhook in step_receiver.received] == ["step-1"]


@pytest.mark.parametrize("given", ["pydantic-ai", [int], [None], None, 5])
def test_extra_profiles_without_profiles_are_refused(given: Any) -> None:
    """The constructor raises an error that says what was expected, and where names of profiles belong."""
    with pytest.raises(
        ConfigurationError, match=r"extra_profiles holds .*; expected Profile values; their names go into"
    ):
        StepHookProcessor(StepHookSettings(webhook="http://127.0.0.1:9/"), extra_profiles=given)


def test_a_span_that_may_have_been_a_step_is_counted_as_dropped(
    provided: Provided, step_receiver: ScriptedReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """If the only matching rule raises, the span may have been a step, so it is logged and counted as dropped."""
    provider = provided(extra_profiles=[_theirs(is_step=_fail)])
    provider.get_tracer("pydantic-ai").start_span("run").end()
    provider.shutdown()
    assert [line for line in log_lines(caplog) if line.startswith(f"ERROR {_DROP}")]
    assert step_receiver.received == []


def test_a_step_id_rule_that_raises_is_logged_when_the_step_ends(
    provided: Provided, step_receiver: ScriptedReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """A step without a readable id is logged and counted as dropped, once."""
    profile = Profile(name="theirs", scopes=("theirs",), is_step=lambda *_: True, step_id=_fail)
    provider = provided(extra_profiles=[profile])
    provider.get_tracer("theirs").start_span("unit").end()
    provider.shutdown()
    (line,) = log_lines(caplog)
    assert line.startswith(f"ERROR {_DROP}")
    assert step_receiver.received == []


def test_the_users_is_step_works_although_a_profile_raises(provided: Provided, step_receiver: ScriptedReceiver) -> None:
    """*is_step* of the hook replaces the rules of all profiles."""
    options = {"extra_profiles": [_theirs(is_step=_fail)], "is_step": lambda span: span.name == "mine"}
    provider = provided(**options)
    provider.get_tracer("pydantic-ai").start_span("mine", attributes={"step_id": "step-1"}).end()
    assert provider.force_flush()
    assert [webhook.step_id for webhook in step_receiver.received] == ["step-1"]


def test_the_users_is_step_makes_a_step_of_another_span_of_letta(
    provided: Provided, step_receiver: ScriptedReceiver
) -> None:
    """Letta's outcome rule, which is written for the spans that save a step, does not suppress it."""
    provider = provided(is_step=lambda span: span.name == "agent_step")
    provider.get_tracer("letta.otel.tracing").start_span("agent_step", attributes={"step_id": "step-1"}).end()
    assert provider.force_flush()
    assert [webhook.step_id for webhook in step_receiver.received] == ["step-1"]


@pytest.mark.parametrize("scope", ["theirs", "tests"])
def test_no_rule_is_asked_about_a_span_without_required_attributes(scope: str) -> None:
    """The look-up by scope already shows that the span is no step."""
    reader = StepReader(
        [
            Profile(name="theirs", scopes=("theirs",), required_attributes=("their.kind",), is_step=_fail),
            Profile(name="any scope's", required_attributes=("kind",), is_step=_fail),
        ]
    )
    span = TracerProvider(shutdown_on_exit=False).get_tracer(scope).start_span("run", attributes={"other": 1})
    assert isinstance(span, Span)
    reader.on_start(span, None)
    assert reader.on_end(span, lambda: None) == ()
