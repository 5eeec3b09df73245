"""The profiles that a setting selects by name, from the built-in ones and from packages that are really installed."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider

from otel_step_hook import ConfigurationError, StepHookProcessor, StepHookSettings
from otel_step_hook.steps.frameworks import GENERIC, PROFILES
from otel_step_hook.steps.plugins import profile_names, selected_profiles
from otel_step_hook.testing import ScriptedReceiver

_MODULE = """
from otel_step_hook import Outcome, Profile

ONE = Profile(
    name="their-agent",
    scopes=("their_agent",),
    is_step=lambda span: span.name == "unit",
    step_id=lambda span: span.attributes.get("unit.id"),
    outcome=lambda span, _: Outcome.CANCELLED if "unit.stopped" in span.attributes else None,
)
TWO = [ONE, Profile(name="their-agent", scopes=("their_other",), is_step=lambda span: True)]
NONE = ["no profile"]
"""

Install = Callable[[str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a package that has these entry points."""

    def install(entry_points: str) -> None:
        (tmp_path / "their_agent_profiles.py").write_text(_MODULE)
        (tmp_path / "their_agent_exits.py").write_text("raise SystemExit('no license')")
        metadata = tmp_path / "their_agent-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-agent\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[otel_step_hook_profiles]\n{entry_points}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "their_agent_profiles", raising=False)

    return install


def _reported(receiver: ScriptedReceiver, **settings: str) -> list[tuple[str, object]]:
    """The step ids and outcomes of an installed framework's step, a built-in framework's, and a generic one."""
    hook = StepHookProcessor(StepHookSettings(webhook=receiver.url, payload="full", shutdown_timeout=5, **settings))
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(hook)
    unit: dict[str, str | bool] = {"unit.id": "unit-1", "unit.stopped": True}
    provider.get_tracer("their_agent").start_span("unit", attributes=unit).end()
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.id": "call-1"}
    provider.get_tracer("pydantic-ai").start_span("execute_tool x", attributes=tool).end()
    provider.get_tracer("mine").start_span("step", attributes={"step_id": "step-1"}).end()
    provider.shutdown()
    return sorted((webhook.step_id, webhook.data["outcome"]) for webhook in receiver.received)


_ALL = [("call-1", "success"), ("step-1", "success"), ("unit-1", "cancelled")]


@pytest.mark.parametrize("value", ["ONE", "TWO"])
def test_a_framework_ships_its_own_profile(value: str, install: Install, step_receiver: ScriptedReceiver) -> None:
    """Steps of an installed framework are recognised under ``auto``, by one profile or by several."""
    install(f"their-agent = their_agent_profiles:{value}")
    assert _reported(step_receiver) == _ALL


@pytest.mark.parametrize(
    ("names", "step_ids"),
    [
        ("their-agent", ["unit-1"]),
        ("Their-Agent, generic", ["step-1", "unit-1"]),
        ("pydantic-ai", ["call-1"]),
        ("generic", ["step-1"]),
        ("auto", ["call-1", "step-1", "unit-1"]),
    ],
)
def test_names_select_profiles(
    names: str, step_ids: list[str], install: Install, step_receiver: ScriptedReceiver
) -> None:
    """Steps of the named profiles are reported, and no others, built-in or installed."""
    install("Their-Agent = their_agent_profiles:ONE")
    assert [step_id for step_id, _ in _reported(step_receiver, profiles=names)] == step_ids


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("their_agent_profiles:NONE", "what is there is none"),
        ("their_agent_profiles:Outcome", "what is there is none"),
        ("their_agent_profiles:MISSING", "AttributeError: "),
        ("not_there:ONE", "ModuleNotFoundError: No module named 'not_there'"),
        ("builtins:None", "TypeError: 'NoneType' object is not iterable"),
        ("their_agent_exits:ONE", "SystemExit: no license"),
    ],
)
def test_a_profile_that_cannot_be_loaded_is_logged_and_costs_no_other(
    value: str, problem: str, install: Install, step_receiver: ScriptedReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """One line names it and says what was expected; steps of other profiles are reported."""
    install(f"their-agent = {value}")
    assert _reported(step_receiver) == _ALL[:2]
    (line,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert line.getMessage().startswith(f"the profile 'their-agent' cannot be loaded from {value} ({problem}")
    assert "expected an otel_step_hook.Profile, or several, under that name" in line.getMessage()


def test_the_name_of_an_installed_profile_is_known(install: Install) -> None:
    """The name is accepted once the package is installed, and not before."""
    with pytest.raises(ConfigurationError, match="STEP_COMPLETE_PROFILES names 'their-agent', which is no profile"):
        StepHookSettings(profiles="their-agent")
    install("their-agent = their_agent_profiles:ONE")
    assert StepHookSettings(profiles="their-agent").profiles == ("their-agent",)
    assert "their-agent" in profile_names()
    assert "their_agent_profiles" not in sys.modules  # settings load no plugins


def test_installed_profiles_come_first(install: Install) -> None:
    """A framework's own profile takes precedence over the built-in ones."""
    install("their-agent = their_agent_profiles:ONE")
    first, *rest = selected_profiles(["auto"])
    assert first.name == "their-agent"
    assert tuple(rest) == PROFILES
    assert selected_profiles(["generic"]) == (GENERIC,)
