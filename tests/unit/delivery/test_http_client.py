"""Which HTTP library sends: aiohttp where it can be used, and what says so."""

import importlib.metadata
import logging
import sys
from pathlib import Path

import pytest
from sending import endpoint_to

from otel_step_hook import ConfigurationError, StepHookProcessor
from otel_step_hook.delivery.aiohttp_transport import AiohttpTransport
from otel_step_hook.delivery.http_client import client_label, connector
from otel_step_hook.delivery.model import HttpClient
from otel_step_hook.delivery.transport import HttpxTransport
from otel_step_hook.testing import ScriptedReceiver

_URL = "http://receiver.test/hook"


def _version(name: str) -> str:
    return f"{name} {importlib.metadata.version(name)}"


@pytest.fixture
def no_aiohttp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `import aiohttp` fail, as where it is not installed."""
    monkeypatch.setitem(sys.modules, "aiohttp", None)


@pytest.fixture(params=["3.11.18", "2.9"])
def old_aiohttp(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes aiohttp older than it is: it cannot be installed beside the one that the other tests need."""
    real, old = importlib.metadata.version, str(request.param)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: old if name == "aiohttp" else real(name))
    return old


@pytest.mark.parametrize(
    ("wanted", "library", "transport"),
    [
        ("auto", "aiohttp", AiohttpTransport),
        ("aiohttp", "aiohttp", AiohttpTransport),
        ("httpx", "httpx", HttpxTransport),
    ],
)
def test_aiohttp_is_used_unless_httpx_is_wanted(
    wanted: HttpClient, library: str, transport: type[object], caplog: pytest.LogCaptureFixture
) -> None:
    """The transport is that of the library, whose version a line says at start-up."""
    caplog.set_level(logging.INFO, "otel_step_hook")
    assert type(connector(endpoint_to(_URL, http_client=wanted))()) is transport
    StepHookProcessor(_URL, http_client=wanted).shutdown()
    assert caplog.messages == [f"webhooks for endpoint default are sent by {_version(library)}"]


@pytest.mark.usefixtures("no_aiohttp")
def test_httpx_is_used_where_aiohttp_is_not_installed() -> None:
    """A plain installation sends by httpx."""
    assert type(connector(endpoint_to(_URL, http_client="auto"))()) is HttpxTransport
    assert client_label("auto") == _version("httpx")


def test_httpx_is_used_where_aiohttp_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An aiohttp that raises when it is imported, as beside a wrong multidict, does not keep the application down."""
    (tmp_path / "aiohttp.py").write_text("raise AttributeError('module multidict has no attribute istr')")
    monkeypatch.delitem(sys.modules, "aiohttp")
    monkeypatch.syspath_prepend(tmp_path)
    assert client_label("auto") == _version("httpx")
    with pytest.raises(ConfigurationError, match=r"needs aiohttp 3.12 or newer, which cannot be imported \(Attribute"):
        client_label("aiohttp")


@pytest.mark.usefixtures("old_aiohttp")
def test_httpx_is_used_where_aiohttp_is_old() -> None:
    """An aiohttp that the application has for other reasons is used only if it is recent enough."""
    assert type(connector(endpoint_to(_URL, http_client="auto"))()) is HttpxTransport


@pytest.mark.usefixtures("no_aiohttp")
def test_aiohttp_that_is_wanted_and_not_there_is_refused() -> None:
    """The message at start-up says what to install."""
    with pytest.raises(ConfigurationError) as raised:
        StepHookProcessor(_URL, http_client="aiohttp")
    assert str(raised.value) == (
        "STEP_COMPLETE_HTTP_CLIENT=aiohttp needs aiohttp 3.12 or newer, which is not there (aiohttp); "
        "install it with: pip install 'otel-step-hook[fast]'"
    )


def test_aiohttp_that_is_wanted_and_old_is_refused(old_aiohttp: str) -> None:
    """The message says which version is there."""
    with pytest.raises(ConfigurationError, match=f"needs aiohttp 3.12 or newer, and this is {old_aiohttp}; "):
        StepHookProcessor(_URL, http_client="aiohttp")


def test_an_endpoint_may_have_another_library(step_receiver: ScriptedReceiver) -> None:
    """A receiver that one of the libraries cannot talk to is sent to by the other."""
    hook = StepHookProcessor(endpoints=[{"webhook": step_receiver.url, "http_client": "httpx"}], http_client="aiohttp")
    assert [worker.endpoint.http_client for worker in hook._workers] == ["httpx"]
    hook.shutdown()
