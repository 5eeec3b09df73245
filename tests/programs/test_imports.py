"""What is imported when, in interpreters of their own: where nothing is configured, next to nothing."""

import sys

import pytest
from processes import Program

import otel_step_hook

_HEAVY = {"pydantic", "pydantic_settings", "opentelemetry.sdk", "httpx", "asyncio"}
_CODE = """
import sys
{before}
known = set(sys.modules)
{code}
print(*sorted(set(sys.modules) - known), sep="\\n")
"""
_AUTO = """
from otel_step_hook import auto
auto.pre_instrument()
auto.StepHookInstrumentor().instrument(skip_dep_check=True)
"""
_HOOK = """
from otel_step_hook import StepHookProcessor, StepHookSettings
StepHookProcessor(StepHookSettings(webhook="http://127.0.0.1:9/"))
"""


def _imported(code: str, *, before: str = "", **environment: str) -> set[str]:
    """The modules that *code* has imported, and *before* had not."""
    ended = Program(sys.executable, "-c", _CODE.format(before=before, code=code), **environment).ended()
    assert (ended.code, ended.err) == (0, "")
    return set(ended.out)


def test_the_package_is_imported_without_what_is_heavy() -> None:
    """Names are imported at their first use; the errors, which a receiver catches, bring nothing else along."""
    errors = "from otel_step_hook import ConfigurationError, VerificationError"
    imported = _imported(f"import otel_step_hook\n{errors}")
    assert "otel_step_hook.errors" in imported
    assert imported & _HEAVY == set()


@pytest.mark.parametrize("environment", [{}, {"STEP_COMPLETE_WEBHOOK": " "}, {"STEP_COMPLETE_KEY": "a key"}])
def test_an_instrumented_process_pays_nothing_where_nothing_is_configured(environment: dict[str, str]) -> None:
    """Beside OpenTelemetry's API, which it has imported anyway, there are a few small modules of our own."""
    imported = _imported(_AUTO, before="import opentelemetry.trace", **environment)
    ours = {f"otel_step_hook{name}" for name in ("", ".auto", ".errors", ".version")}
    assert {name for name in imported if name.startswith("otel_step_hook")} == ours
    assert imported & _HEAVY == set()


def test_a_hook_that_is_made_has_imported_all_it_needs() -> None:
    """What were imported later, by its thread, a fork or the exit might find half done."""
    imported = _imported(_HOOK)
    assert imported >= {"otel_step_hook.delivery.worker", "otel_step_hook.delivery.transport", *_HEAVY}


def test_every_public_name_is_there_and_listed() -> None:
    """Though none of them is imported before it is used."""
    public = otel_step_hook.__all__
    assert set(public) <= set(dir(otel_step_hook))
    for name in public:
        assert getattr(otel_step_hook, name) is getattr(otel_step_hook, name)
    assert set(public) <= vars(otel_step_hook).keys()


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    """As for any module."""
    with pytest.raises(AttributeError, match="module 'otel_step_hook' has no attribute 'StepHook'"):
        getattr(otel_step_hook, "StepHook")  # noqa: B009 -- mypy knows that it is not there
