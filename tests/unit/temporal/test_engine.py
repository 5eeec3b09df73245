"""The engine Temporal, as far as it needs no server: settings, their faults, and a server that is not there."""

import sys
from pathlib import Path

import pytest
import support
from rich.console import Console
from support import NewPipeline
from temporalio.worker import UnsandboxedWorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from otel_step_hook import ConfigurationError, StepHookProcessor, StepHookSettings, temporal
from otel_step_hook.cli.worker import check_temporal
from otel_step_hook.temporal.client import connect_config, runtime
from otel_step_hook.temporal.plugin import StepHookPlugin

_WEBHOOK = "https://example.com/hook"


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Temporal's SDK a start-up error says how to install it."""
    for name in ("client", "sender"):
        monkeypatch.delitem(sys.modules, f"otel_step_hook.temporal.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "temporalio.client", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'otel-step-hook\[temporal\]'"):
        StepHookProcessor(_WEBHOOK, engine="temporal")


def test_the_commands_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """So does the command that asks the server."""
    monkeypatch.delitem(sys.modules, "otel_step_hook.temporal.client", raising=False)
    monkeypatch.setitem(sys.modules, "temporalio.client", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'otel-step-hook\[cli,temporal\]'"):
        check_temporal(Console(), StepHookSettings(engine="temporal"))


def test_temporal_s_own_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Address, namespace, API key and TLS come from Temporal's variables and its file; by default: this host."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert connect_config() == {"target_host": "localhost:7233"}
    monkeypatch.setenv("TEMPORAL_ADDRESS", "temporal.example.com:7233")
    monkeypatch.setenv("TEMPORAL_NAMESPACE", "agents")
    monkeypatch.setenv("TEMPORAL_API_KEY", "sekret")
    found = connect_config()
    assert (found["target_host"], found["namespace"]) == ("temporal.example.com:7233", "agents")
    assert (found["api_key"], found["tls"]) == ("sekret", True)


def test_a_configuration_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A broken file is a start-up error, which shows none of its lines: one of them may be a secret."""
    file = tmp_path / "temporal.toml"
    file.write_text("[profile.default]\napi_key = sekret\n")
    monkeypatch.setenv("TEMPORAL_CONFIG_FILE", str(file))
    with pytest.raises(ConfigurationError, match="Temporal's configuration cannot be read") as caught:
        StepHookProcessor(_WEBHOOK, engine="temporal")
    assert "sekret" not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"


def test_no_server(
    pipeline: NewPipeline, closed_port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While Temporal cannot be reached, the application goes on; what is given up is discarded, visibly."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", f"127.0.0.1:{closed_port}")
    hooked = pipeline(engine="temporal", initial_backoff=100.0, max_backoff=100.0)  # one attempt
    hooked.end_step()
    (delivery,) = hooked.named("step_hook.deliver")
    attributes = dict(delivery.attributes or {})
    assert (attributes["step_hook.result"], attributes["error.type"]) == ("discarded", "UNAVAILABLE")
    assert hooked.named("POST") == []
    assert support.log_lines(caplog)[0].startswith(
        "ERROR Temporal could not be reached: UNAVAILABLE; to find out why, run: otel-step-hook check (step step-1, "
    )


def test_public_names() -> None:
    """The package has two public names, imported at their first use."""
    assert {name: getattr(temporal, name).__name__ for name in temporal.__all__} == {
        "StepHookPlugin": "StepHookPlugin",
        "notify_step_complete": "notify_step_complete",
    }
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        getattr(temporal, "nothing")  # noqa: B009 -- a type checker knows that it raises


def test_the_plugin() -> None:
    """The plugin adds one activity and one workflow, and lets a sandbox use this package as it is."""
    config = StepHookPlugin(webhook=_WEBHOOK).configure_worker({"workflow_runner": SandboxedWorkflowRunner()})
    assert len(config["activities"]) == len(config["workflows"]) == 1
    runner = config["workflow_runner"]
    assert isinstance(runner, SandboxedWorkflowRunner)
    assert "otel_step_hook" in runner.restrictions.passthrough_modules
    unsandboxed = UnsandboxedWorkflowRunner()
    other = StepHookPlugin(StepHookSettings()).configure_replayer({"workflow_runner": unsandboxed})
    assert other["workflow_runner"] is unsandboxed
    with pytest.raises(ConfigurationError, match="STEP_COMPLETE_WEBHOOK"):
        StepHookPlugin(webhook="no url")


def test_settings_are_given_once() -> None:
    """Settings by name and a `StepHookSettings` together are refused."""
    with pytest.raises(ConfigurationError, match="put all into one"):
        StepHookPlugin(StepHookSettings(), timeout=5)


def test_another_engine_is_not_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """The command `check` asks Temporal only where it is the engine."""
    check_temporal(Console(), StepHookSettings())
    assert capsys.readouterr().out == ""


def test_a_process_has_one_runtime() -> None:
    """Each client of a process uses the same threads of Temporal's SDK."""
    assert runtime() is runtime()
