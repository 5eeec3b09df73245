"""Registration without code, by OpenTelemetry's auto-instrumentation, in real processes, and what it never does."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NoOpTracerProvider
from processes import PROGRAMS, Ledger

from otel_step_hook import StepHookProcessor, StepHookSettings, auto

COMMAND = Path(sys.executable).with_name("opentelemetry-instrument")
DELIVERED = ["POST", "run", "step", "step_hook.deliver"]


@dataclass
class Run:
    """What is left of an application that ran under ``opentelemetry-instrument``."""

    code: int
    out: str
    err: str

    @property
    def exported(self) -> list[str]:
        """The names of the spans on its console."""
        return sorted(line.partition(": ")[2].strip('",') for line in self.out.splitlines() if '  "name": ' in line)


def run(**environment: str) -> Run:
    """Run the application, whose spans are printed."""
    quiet = {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    done = subprocess.run(
        [str(COMMAND), sys.executable, str(PROGRAMS / "uninstrumented.py")],
        env=os.environ | quiet | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Run(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """A receiver that is running."""
    with Ledger() as ledger:
        yield ledger


def test_an_application_that_knows_nothing_tells_its_steps(ledger: Ledger) -> None:
    """One variable is enough; the delivery's spans are exported, although the hook comes last."""
    ended = run(STEP_COMPLETE_WEBHOOK=ledger.url)
    assert (ended.code, ended.err) == (0, "")
    assert ended.exported == DELIVERED
    assert ledger.steps == ["step-1"]


@pytest.mark.parametrize("environment", [{}, {"STEP_COMPLETE_WEBHOOK": " "}, {"STEP_COMPLETE_TIMEOUT": "soon"}])
def test_without_a_webhook_nothing_happens(environment: dict[str, str]) -> None:
    """The package may be installed everywhere: not even a setting that cannot be used is spoken of."""
    ended = run(**environment)
    assert (ended.code, ended.err, ended.exported) == (0, "", ["run", "step"])


def test_a_setting_that_cannot_be_used_is_told_and_harms_nothing_else(ledger: Ledger) -> None:
    """One line says what to do; the application, its spans and the other instrumentations go on."""
    ended = run(STEP_COMPLETE_WEBHOOK=ledger.url, STEP_COMPLETE_TIMEOUT="soon")
    assert (ended.code, ended.exported, ledger.steps) == (0, ["run", "step"], [])
    assert (
        "otel-step-hook is not registered: STEP_COMPLETE_TIMEOUT is 'soon'; expected a number of seconds" in ended.err
    )
    assert ended.err.count("otel-step-hook is not registered") == 1
    assert "Traceback" not in ended.err


def test_it_can_be_switched_off_as_an_instrumentation(ledger: Ledger) -> None:
    """By the variable that switches off any other."""
    ended = run(STEP_COMPLETE_WEBHOOK=ledger.url, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="httpx, step_hook")
    assert (ended.code, ended.err, ended.exported, ledger.steps) == (0, "", ["run", "step"], [])


def test_it_can_be_switched_off_with_the_sdk(ledger: Ledger) -> None:
    """Without the SDK there are no spans to end; one line says so."""
    ended = run(STEP_COMPLETE_WEBHOOK=ledger.url, OTEL_SDK_DISABLED="true")
    assert (ended.code, ledger.steps) == (0, [])
    assert "recording: False" in ended.out


def test_steps_that_a_sampler_would_drop_are_told(ledger: Ledger) -> None:
    """The sampler is chosen by the environment as well."""
    ended = run(STEP_COMPLETE_WEBHOOK=ledger.url, OTEL_TRACES_SAMPLER="step_hook", OTEL_TRACES_SAMPLER_ARG="0")
    assert (ended.code, ended.err, ended.exported, ledger.steps) == (0, "", [], ["step-1"])


# In this process, with a provider of its own instead of the global one, which can be set only once


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[TracerProvider]:
    """What `get_tracer_provider` returns."""
    provider = TracerProvider(shutdown_on_exit=False)
    monkeypatch.setattr(auto, "get_tracer_provider", lambda: provider)
    yield provider
    provider.shutdown()


def _end_step(provider: TracerProvider) -> None:
    provider.get_tracer("tests").start_span("step", attributes={"step_id": "step-1"}).end()
    assert provider.force_flush()


def _registered(provider: TracerProvider) -> int:
    return len(provider._active_span_processor._span_processors)


def test_registered_twice_means_once(
    provider: TracerProvider, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The entry points run one after the other, in any order and any number of times."""
    monkeypatch.setenv("STEP_COMPLETE_WEBHOOK", ledger.url)
    auto.pre_instrument()
    auto.StepHookInstrumentor().instrument(skip_dep_check=True)
    auto.StepHookInstrumentor().instrument(webhook="http://127.0.0.1:9/")
    auto.pre_instrument()
    assert _registered(provider) == 1
    _end_step(provider)
    assert ledger.steps == ["step-1"]
    assert "otel-step-hook is registered already: the settings webhook are ignored" in caplog.messages


class _Unhashable(TracerProvider):
    """A provider that compares by value, as a dataclass does."""

    __hash__ = None  # type: ignore[assignment]  # -- which is how Python marks it


def test_a_provider_needs_no_hash(monkeypatch: pytest.MonkeyPatch, ledger: Ledger) -> None:
    """It is known again by what it is."""
    provider = _Unhashable(shutdown_on_exit=False)
    monkeypatch.setattr(auto, "get_tracer_provider", lambda: provider)
    first = auto.register(webhook=ledger.url)
    assert first is not None
    assert auto.register() is first
    _end_step(provider)
    assert ledger.steps == ["step-1"]
    provider.shutdown()


def test_registered_by_hand_as_well_means_once(provider: TracerProvider, ledger: Ledger) -> None:
    """Two processors with the same webhook tell it of a step once; one with another webhook tells that one."""
    with Ledger() as other:
        auto.register(webhook=ledger.url)
        provider.add_span_processor(StepHookProcessor(StepHookSettings(webhook=ledger.url)))
        provider.add_span_processor(StepHookProcessor(StepHookSettings(webhook=other.url)))
        _end_step(provider)
        assert (ledger.steps, other.steps) == (["step-1"], ["step-1"])


def test_the_instrumentor_takes_settings(provider: TracerProvider, ledger: Ledger) -> None:
    """As a file of the declarative configuration has them."""
    auto.StepHookInstrumentor().instrument(webhook=ledger.url, key="a key", outcomes="failed", timeout=3)
    _end_step(provider)
    assert ledger.steps == []
    with pytest.raises(LookupError), provider.get_tracer("tests").start_as_current_span("s", attributes={"step_id": 2}):
        raise LookupError
    assert provider.force_flush()
    assert ledger.steps == ["2"]
    auto.StepHookInstrumentor().uninstrument()
    assert _registered(provider) == 1


@pytest.mark.parametrize("options", [{}, {"skip_dep_check": True}, {"key": "a key"}])
def test_the_instrumentor_does_nothing_without_a_webhook(provider: TracerProvider, options: dict[str, object]) -> None:
    """Neither in the file nor in the environment."""
    auto.StepHookInstrumentor().instrument(**options)
    assert _registered(provider) == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"webhook": "ftp://example.com"}, "has a scheme that is neither https nor http"),
        ({"webhook": "http://127.0.0.1:9/", "wehbook": "x"}, "wehbook is not a setting; did you mean webhook?"),
        ({"webhook": "http://127.0.0.1:9/", "key": "sekret\nkey"}, "STEP_COMPLETE_KEY"),
        ({"webhook": "http://127.0.0.1:9/", "certificate": "/nowhere"}, "STEP_COMPLETE_CERTIFICATE cannot be used"),
    ],
)
def test_no_setting_makes_it_raise(
    provider: TracerProvider, options: dict[str, object], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception would keep other instrumentations from being loaded: it is told instead, without a secret."""
    auto.StepHookInstrumentor().instrument(**options)
    assert _registered(provider) == 0
    assert caplog.messages[-1].startswith("otel-step-hook is not registered: ")
    assert told in caplog.text
    assert "sekret" not in caplog.text


def test_without_an_sdk_it_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The API alone has no processors."""
    monkeypatch.setattr(auto, "get_tracer_provider", NoOpTracerProvider)
    assert auto.register(webhook="http://127.0.0.1:9/") is None
    assert (
        "expected a TracerProvider of the OpenTelemetry SDK, and the global one is a NoOpTracerProvider" in caplog.text
    )
