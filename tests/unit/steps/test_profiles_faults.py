"""Profiles whose rules raise: they cost nobody else's steps, and the log tells of them."""

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
    raise LookupError("not of ours")


@pytest.fixture
def provided(step_receiver: ScriptedReceiver) -> Iterator[Callable[..., TracerProvider]]:
    """Makes providers whose hooks have these rules; they are shut down in the end, at the latest."""
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
    """Of the scope of a framework that has a row of its own."""
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
def test_a_rule_that_raises_costs_no_step_of_the_row_beside_it(
    profile: Profile, provided: Provided, step_receiver: ScriptedReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Another profile for the same scope is asked all the same."""
    provider = provided(extra_profiles=[profile])
    with provider.get_tracer("pydantic-ai").start_as_current_span("run"):
        provider.get_tracer("pydantic-ai").start_span("execute_tool x", attributes=_CALL).end()
    provider.shutdown()
    assert "a fault of otel-step-hook: " in caplog.text
    assert [webhook.step_id for webhook in step_receiver.received] == ["call-1"]


def test_a_profile_without_scopes_that_raises_costs_no_step_that_has_an_id(
    provided: Provided, step_receiver: ScriptedReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked about the spans of everybody, and knows the attributes of few."""
    provider = provided(extra_profiles=[Profile(name="theirs", is_step=_fail)])
    provider.get_tracer("tests").start_span("step", attributes={"step_id": "step-1"}).end()
    provider.shutdown()
    assert _FAULT in caplog.text
    assert [webhook.step_id for webhook in step_receiver.received] == ["step-1"]


@pytest.mark.parametrize("given", ["pydantic-ai", [int], [None], None, 5])
def test_what_is_no_profile_is_refused_at_the_start(given: Any) -> None:
    """With what was expected, and where names go."""
    with pytest.raises(
        ConfigurationError, match=r"extra_profiles holds .*; expected Profile values; their names go into"
    ):
        StepHookProcessor(StepHookSettings(webhook="http://127.0.0.1:9/"), extra_profiles=given)


def test_a_span_that_may_have_been_a_step_is_counted_as_dropped(
    provided: Provided, step_receiver: ScriptedReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody else takes it, and whether the rule would have cannot be known."""
    provider = provided(extra_profiles=[_theirs(is_step=_fail)])
    provider.get_tracer("pydantic-ai").start_span("run").end()
    provider.shutdown()
    assert [line for line in log_lines(caplog) if line.startswith(f"ERROR {_DROP}")]
    assert step_receiver.received == []


def test_a_source_of_ids_that_raises_is_logged_when_the_step_ends(
    provided: Provided, step_receiver: ScriptedReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """The step began as one, and cannot be named: it is dropped, and counted once."""
    profile = Profile(name="theirs", scopes=("theirs",), is_step=lambda *_: True, step_id=_fail)
    provider = provided(extra_profiles=[profile])
    provider.get_tracer("theirs").start_span("unit").end()
    provider.shutdown()
    (line,) = log_lines(caplog)
    assert line.startswith(f"ERROR {_DROP}")
    assert step_receiver.received == []


def test_a_rule_of_the_users_is_not_stopped_by_a_profile_that_raises(
    provided: Provided, step_receiver: ScriptedReceiver
) -> None:
    """It replaces the rules of all profiles for what a step is."""
    options = {"extra_profiles": [_theirs(is_step=_fail)], "is_step": lambda span: span.name == "mine"}
    provider = provided(**options)
    provider.get_tracer("pydantic-ai").start_span("mine", attributes={"step_id": "step-1"}).end()
    assert provider.force_flush()
    assert [webhook.step_id for webhook in step_receiver.received] == ["step-1"]


def test_a_rule_of_the_users_makes_a_step_of_any_span_of_lettas(
    provided: Provided, step_receiver: ScriptedReceiver
) -> None:
    """What Letta's row says of the end of a step is about the spans that save one."""
    provider = provided(is_step=lambda span: span.name == "agent_step")
    provider.get_tracer("letta.otel.tracing").start_span("agent_step", attributes={"step_id": "step-1"}).end()
    assert provider.force_flush()
    assert [webhook.step_id for webhook in step_receiver.received] == ["step-1"]


@pytest.mark.parametrize("scope", ["theirs", "tests"])
def test_a_span_without_required_attributes_is_asked_nothing(scope: str) -> None:
    """One look-up for its scope tells that it is no step: no rule is asked."""
    reader = StepReader(
        [
            Profile(name="theirs", scopes=("theirs",), required_attributes=("their.kind",), is_step=_fail),
            Profile(name="everybody's", required_attributes=("kind",), is_step=_fail),
        ]
    )
    span = TracerProvider(shutdown_on_exit=False).get_tracer(scope).start_span("run", attributes={"other": 1})
    assert isinstance(span, Span)
    reader.on_start(span, None)
    assert reader.on_end(span, lambda: None) == ()
