"""Which modules are imported, in interpreters of their own. Without a configuration there are few."""

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
    """The modules that *code* imports and that *before* has not imported."""
    ended = Program(sys.executable, "-c", _CODE.format(before=before, code=code), **environment).ended()
    assert (ended.code, ended.err) == (0, "")
    return set(ended.out)


def test_the_package_imports_no_heavy_modules() -> None:
    """Importing the package and its exceptions, which receivers catch, imports no heavy module."""
    errors = "from otel_step_hook import ConfigurationError, VerificationError"
    imported = _imported(f"import otel_step_hook\n{errors}")
    assert "otel_step_hook.errors" in imported
    assert imported & _HEAVY == set()


@pytest.mark.parametrize("environment", [{}, {"STEP_COMPLETE_WEBHOOK": " "}, {"STEP_COMPLETE_KEY": "a key"}])
def test_auto_instrumentation_without_a_webhook_imports_no_heavy_modules(environment: dict[str, str]) -> None:
    """Without a webhook, auto-instrumentation imports a few small modules of this package and OpenTelemetry's API."""
    imported = _imported(_AUTO, before="import opentelemetry.trace", **environment)
    ours = {f"otel_step_hook{name}" for name in ("", ".auto", ".errors", ".lazy", ".version")}
    assert {name for name in imported if name.startswith("otel_step_hook")} == ours
    assert imported & _HEAVY == set()


@pytest.mark.parametrize(("client", "module"), [("httpx", "transport"), ("aiohttp", "aiohttp_transport")])
def test_the_constructor_imports_everything_the_worker_needs(client: str, module: str) -> None:
    """Constructing a hook imports all modules: a fork or exit could interrupt an import on the worker thread."""
    imported = _imported(_HOOK, STEP_COMPLETE_HTTP_CLIENT=client)
    assert imported >= {"otel_step_hook.delivery.worker", f"otel_step_hook.delivery.{module}", client, *_HEAVY}


def test_every_public_name_is_listed_and_can_be_imported() -> None:
    """Each name in `__all__` is in `dir()`, is imported at its first use, and is the same object afterwards."""
    public = otel_step_hook.__all__
    assert set(public) <= set(dir(otel_step_hook))
    for name in public:
        assert getattr(otel_step_hook, name) is getattr(otel_step_hook, name)
    assert set(public) <= vars(otel_step_hook).keys()


def test_an_unknown_name_raises_attribute_error() -> None:
    """An unknown attribute of the package raises the usual AttributeError."""
    with pytest.raises(AttributeError, match="module 'otel_step_hook' has no attribute 'StepHook'"):
        getattr(otel_step_hook, "StepHook")  # noqa: B009 -- mypy knows that it is not there
