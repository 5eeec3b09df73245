"""Registration without code, by OpenTelemetry's auto-instrumentation: in real processes, then in this one."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NoOpTracerProvider
from processes import INSTRUMENT, Ended, Program, StepReceiver

from otel_step_hook import StepHookProcessor, StepHookSettings, auto
from otel_step_hook.testing import ScriptedReceiver

DELIVERED = ["POST", "run", "step", "step_hook.deliver"]


def run(**environment: str) -> Ended:
    """Run `uninstrumented.py` under `opentelemetry-instrument`, with an exporter that prints the spans."""
    quiet = {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    return Program(INSTRUMENT, sys.executable, "uninstrumented.py", **(quiet | environment)).ended()


def test_one_variable_registers_the_hook(receiver: StepReceiver) -> None:
    """STEP_COMPLETE_WEBHOOK is enough; delivery spans are exported, although the hook is added last."""
    ended = run(STEP_COMPLETE_WEBHOOK=receiver.url)
    assert (ended.code, ended.err) == (0, "")
    assert ended.spans == DELIVERED
    assert receiver.steps == ["step-1"]


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, {"STEP_COMPLETE_WEBHOOK": " "}, {"STEP_COMPLETE_TIMEOUT": "soon"}])
def test_without_a_webhook_nothing_is_registered(environment: dict[str, str]) -> None:
    """Without a webhook nothing is sent or logged, not even about a wrong setting."""
    ended = run(**environment)
    assert (ended.code, ended.err, ended.spans) == (0, "", ["run", "step"])


@pytest.mark.slow
def test_a_wrong_setting_is_logged_and_the_application_goes_on(receiver: StepReceiver) -> None:
    """One line says what to do; the application runs and exports its spans as without the hook."""
    ended = run(STEP_COMPLETE_WEBHOOK=receiver.url, STEP_COMPLETE_TIMEOUT="soon")
    assert (ended.code, ended.spans, receiver.steps) == (0, ["run", "step"], [])
    assert (
        "otel-step-hook is not registered: STEP_COMPLETE_TIMEOUT is 'soon'; expected a number of seconds" in ended.err
    )
    assert ended.err.count("otel-step-hook is not registered") == 1
    assert "Traceback" not in ended.err


@pytest.mark.slow
@pytest.mark.parametrize("disabled", ["httpx, step_hook", "*"])
def test_it_can_be_switched_off_as_an_instrumentation(receiver: StepReceiver, disabled: str) -> None:
    """OTEL_PYTHON_DISABLED_INSTRUMENTATIONS keeps the hook from being registered, by its name or with all others."""
    ended = run(STEP_COMPLETE_WEBHOOK=receiver.url, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=disabled)
    assert (ended.code, ended.err, ended.spans, receiver.steps) == (0, "", ["run", "step"], [])


@pytest.mark.slow
def test_it_can_be_switched_off_with_the_sdk(receiver: StepReceiver) -> None:
    """With OTEL_SDK_DISABLED no span is recorded, and no step is sent."""
    ended = run(STEP_COMPLETE_WEBHOOK=receiver.url, OTEL_SDK_DISABLED="true")
    assert (ended.code, receiver.steps) == (0, [])
    assert ended.out == ["recording: False"]


@pytest.mark.slow
def test_steps_that_a_sampler_would_drop_are_sent(receiver: StepReceiver) -> None:
    """`StepSampler` can be chosen by OTEL_TRACES_SAMPLER: unsampled steps are sent and not exported."""
    ended = run(STEP_COMPLETE_WEBHOOK=receiver.url, OTEL_TRACES_SAMPLER="step_hook", OTEL_TRACES_SAMPLER_ARG="0")
    assert (ended.code, ended.err, ended.spans, receiver.steps) == (0, "", [], ["step-1"])


# In this process. Each test has its own provider, because the global one can be set only once


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[TracerProvider]:
    """A provider that takes the place of the global one for `auto`."""
    provider = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr(auto, "get_tracer_provider", lambda: provider)
    yield provider
    provider.shutdown()


def _end_step(provider: TracerProvider) -> None:
    provider.get_tracer("tests").start_span("step", attributes={"step_id": "step-1"}).end()
    assert provider.force_flush()


def _registered(provider: TracerProvider) -> int:
    return len(provider._active_span_processor._span_processors)


def test_the_hook_is_registered_once(
    provider: TracerProvider, receiver: StepReceiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All entry points together register one hook; the settings of later calls are ignored with a warning."""
    monkeypatch.setenv("STEP_COMPLETE_WEBHOOK", receiver.url)
    auto.pre_instrument()
    auto.StepHookInstrumentor().instrument(skip_dep_check=True)
    auto.StepHookInstrumentor().instrument(webhook="http://127.0.0.1:9/")
    auto.pre_instrument()
    assert _registered(provider) == 1
    _end_step(provider)
    assert receiver.steps == ["step-1"]
    assert "otel-step-hook is registered already: the settings webhook are ignored" in caplog.messages


def test_a_file_of_endpoints_is_enough(
    provider: TracerProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With STEP_COMPLETE_ENDPOINTS instead of a webhook, the hook is registered."""
    path = tmp_path / "endpoints.toml"
    path.write_text('[[endpoint]]\nwebhook = "http://127.0.0.1:9/"')
    monkeypatch.setenv("STEP_COMPLETE_ENDPOINTS", str(path))
    auto.pre_instrument()
    assert _registered(provider) == 1


def test_a_file_of_endpoints_that_cannot_be_used_is_logged(
    provider: TracerProvider, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file of endpoints that cannot be read is logged, and no exception is raised."""
    monkeypatch.setenv("STEP_COMPLETE_ENDPOINTS", "/nowhere.toml")
    auto.pre_instrument()
    assert _registered(provider) == 0
    assert "not registered: STEP_COMPLETE_ENDPOINTS names /nowhere.toml, which cannot be read" in caplog.text


class _Unhashable(TracerProvider):
    """A provider that compares by value, as a dataclass does."""

    __hash__ = None  # type: ignore[assignment]  # -- as Python marks unhashable classes


def test_a_provider_need_not_be_hashable(monkeypatch: pytest.MonkeyPatch, receiver: StepReceiver) -> None:
    """A provider that is not hashable is recognised by its identity."""
    provider = _Unhashable(shutdown_on_exit=False)
    monkeypatch.setattr(auto, "get_tracer_provider", lambda: provider)
    first = auto.register(webhook=receiver.url)
    assert first is not None
    assert auto.register() is first
    _end_step(provider)
    assert receiver.steps == ["step-1"]
    provider.shutdown()


def test_a_hook_added_by_hand_does_not_send_twice(
    provider: TracerProvider, receiver: StepReceiver, step_receiver: ScriptedReceiver
) -> None:
    """Two processors with the same webhook send a step once; one with another webhook sends it there."""
    auto.register(webhook=receiver.url)
    provider.add_span_processor(StepHookProcessor(StepHookSettings(webhook=receiver.url)))
    provider.add_span_processor(StepHookProcessor(StepHookSettings(webhook=step_receiver.url)))
    _end_step(provider)
    assert receiver.steps == [received.step_id for received in step_receiver.received] == ["step-1"]


def test_the_instrumentor_takes_settings(provider: TracerProvider, receiver: StepReceiver) -> None:
    """Options of the instrumentor, as the declarative configuration passes them, are settings."""
    auto.StepHookInstrumentor().instrument(webhook=receiver.url, key="a key", outcomes="failed", timeout=3)
    _end_step(provider)
    assert receiver.steps == []
    with pytest.raises(LookupError), provider.get_tracer("tests").start_as_current_span("s", attributes={"step_id": 2}):
        raise LookupError
    assert provider.force_flush()
    assert receiver.steps == ["2"]
    auto.StepHookInstrumentor().uninstrument()
    assert _registered(provider) == 1


@pytest.mark.parametrize("options", [{}, {"skip_dep_check": True}, {"key": "a key"}])
def test_the_instrumentor_does_nothing_without_a_webhook(provider: TracerProvider, options: dict[str, object]) -> None:
    """Without a webhook in the options or the environment, the instrumentor registers nothing."""
    auto.StepHookInstrumentor().instrument(**options)
    assert _registered(provider) == 0


@pytest.mark.parametrize("disabled", ["httpx, step_hook", "*"])
def test_a_disabled_instrumentor_does_nothing(
    provider: TracerProvider, monkeypatch: pytest.MonkeyPatch, disabled: str
) -> None:
    """The instrumentor reads OTEL_PYTHON_DISABLED_INSTRUMENTATIONS, too: older loaders do not know its ``*``."""
    monkeypatch.setenv("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", disabled)
    auto.StepHookInstrumentor().instrument(webhook="http://127.0.0.1:9/")
    assert _registered(provider) == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"webhook": "ftp://example.com"}, "has a scheme that is neither https nor http"),
        ({"webhook": "http://127.0.0.1:9/", "wehbook": "x"}, "wehbook is not a setting; did you mean webhook?"),
        ({"webhook": "http://127.0.0.1:9/", "key": "sekret\nkey"}, "STEP_COMPLETE_KEY"),
        ({"webhook": "http://127.0.0.1:9/", "certificate": "/nowhere"}, "STEP_COMPLETE_CERTIFICATE cannot be used"),
        ({"endpoints": "https://user:sekret@example.com/"}, "STEP_COMPLETE_ENDPOINTS holds a URL"),
    ],
)
def test_no_setting_makes_it_raise(
    provider: TracerProvider, options: dict[str, object], expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong option is logged without a secret. An exception would keep other instrumentations from loading."""
    auto.StepHookInstrumentor().instrument(**options)
    assert _registered(provider) == 0
    assert caplog.messages[-1].startswith("otel-step-hook is not registered: ")
    assert expected in caplog.text
    assert "sekret" not in caplog.text


def test_an_unexpected_exception_is_logged_by_type(provider: TracerProvider, caplog: pytest.LogCaptureFixture) -> None:
    """An exception that is no ConfigurationError is logged once, without its message, which may hold a secret."""
    for _ in range(2):
        assert auto.register(webhook="http://127.0.0.1:9/sekret", _env_file=5) is None
    assert _registered(provider) == 0
    assert caplog.messages == ["otel-step-hook is not registered: TypeError"]


def test_a_variable_that_is_not_utf_8_is_logged(
    provider: TracerProvider, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A URL with bytes that are not UTF-8 is logged as wrong, without its password."""
    monkeypatch.setenv("STEP_COMPLETE_WEBHOOK", os.fsdecode(b"https://us\xff:sekret@example.com/"))
    auto.pre_instrument()
    assert _registered(provider) == 0
    assert "not registered: STEP_COMPLETE_WEBHOOK holds what is no UTF-8; expected" in caplog.text
    assert "sekret" not in caplog.text


def test_a_provider_without_sdk_is_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A provider of the API alone, which has no processors, is logged."""
    monkeypatch.setattr(auto, "get_tracer_provider", NoOpTracerProvider)
    assert auto.register(webhook="http://127.0.0.1:9/") is None
    assert (
        "expected a TracerProvider of the OpenTelemetry SDK, and the global one is a NoOpTracerProvider" in caplog.text
    )
