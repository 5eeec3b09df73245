"""Settings of several receivers. For wrong ones see test_settings_endpoints_refused.py."""

import base64
import hashlib
import importlib.metadata
import re
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_step_hook import EndpointSettings, StepHookSettings
from otel_step_hook.cli.display import settings_table
from otel_step_hook.delivery.model import Endpoint, TlsFiles
from otel_step_hook.settings import effective_settings, endpoints_of
from otel_step_hook.steps.event import Outcome

_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # from the tests of the Standard Webhooks libraries
_KEY = base64.b64decode(_SECRET.removeprefix("whsec_"))


def _from_file(path: Path, text: str, **others: object) -> tuple[Endpoint, ...]:
    """The endpoints for a TOML file with *text*, and for the *others* among the settings."""
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("STEP_COMPLETE_ENDPOINTS", str(path))
        return endpoints_of(StepHookSettings(**others))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the TOML file with the endpoints of a test."""
    return tmp_path / "endpoints.toml"


# One receiver, and several that share all settings


@pytest.mark.parametrize("webhook", [None, "", " \n"])
def test_without_a_webhook_there_is_no_endpoint(webhook: str | None) -> None:
    """None and a blank, as webhook or as endpoints, give no endpoint."""
    assert endpoints_of(StepHookSettings(webhook=webhook, endpoints=[])) == ()
    assert endpoints_of(StepHookSettings(webhook=webhook, endpoints=webhook)) == ()


def test_one_webhook_is_the_default_endpoint() -> None:
    """The only webhook gives one endpoint named default, with all settings of a receiver."""
    settings = StepHookSettings(
        webhook="https://example.com/hook?",
        key="a key",
        signing_secret=_SECRET,
        payload="full",
        outcomes="failed",
        headers="x-a=1",
        timeout=3,
        certificate="ca.pem",
        client_certificate="client.pem",
        client_key="client.key",
        proxy="http://proxy:3128",
    )
    assert endpoints_of(settings) == (
        Endpoint(
            name="default",
            url="https://example.com/hook?",
            headers=(("authorization", "Bearer a key"), ("x-a", "1")),
            signing_keys=(_KEY,),
            payload="full",
            outcomes=frozenset({Outcome.FAILED}),
            timeout=3.0,
            tls=TlsFiles("ca.pem", "client.pem", "client.key"),
            proxy="http://proxy:3128",
        ),
    )


def test_the_defaults_of_an_endpoint_are_those_of_the_settings() -> None:
    """An endpoint with only a name and a URL has the defaults of `StepHookSettings`."""
    assert endpoints_of(StepHookSettings(webhook="http://a/")) == (Endpoint(name="default", url="http://a/"),)
    one = EndpointSettings(name="billing", webhook="http://a/")
    assert endpoints_of(StepHookSettings(endpoints=[one])) == (Endpoint(name="billing", url="http://a/"),)


def test_several_webhooks_share_the_other_settings() -> None:
    """Each of several URLs is an endpoint, named by its host and a short hash that hides a secret path."""
    urls = ["https://hooks.example.com/SEKRET", "http://[::1]:8080/SEKRET"]
    endpoints = endpoints_of(StepHookSettings(webhook=f"{urls[0]}\n {urls[1]} {urls[0]}", key="k", timeout=3))
    assert [endpoint.url for endpoint in endpoints] == urls  # without repetitions
    hashes = [hashlib.sha256(url.encode()).hexdigest()[:6] for url in urls]
    assert [endpoint.name for endpoint in endpoints] == [f"hooks.example.com-{hashes[0]}", f"--1-{hashes[1]}"]
    assert {(endpoint.headers, endpoint.timeout) for endpoint in endpoints} == {
        ((("authorization", "Bearer k"),), 3.0),
    }


@pytest.mark.parametrize(
    ("url", "plain", "pair"),
    [
        ("https://user:pa%20ss@example.com:8443/x?a=b@c#part", "https://example.com:8443/x?a=b@c", b"user:pa ss"),
        ("https://user@example.com", "https://example.com", b"user:"),
        ("https://a%40b:c%3Ad@example.com?x", "https://example.com?x", b"a@b:c:d"),
        ("https://a@b:c@example.com/", "https://example.com/", b"a@b:c"),
        ("HTTPS://%C3%A9:@Example.com/#", "HTTPS://Example.com/", "é:".encode()),
        ("https://@example.com/", "https://example.com/", b":"),
        ("https://example.com/@a:b@c/", "https://example.com/@a:b@c/", None),
    ],
)
def test_user_information_becomes_a_header(url: str, plain: str, pair: bytes | None) -> None:
    """User name and password become Basic authorization (RFC 7617); they and the fragment leave the URL."""
    (endpoint,) = endpoints_of(StepHookSettings(webhook=url, headers="x-a=1"))
    basic = [] if pair is None else [("authorization", f"Basic {base64.b64encode(pair).decode()}")]
    assert (endpoint.url, endpoint.headers) == (plain, (*basic, ("x-a", "1")))


@given(st.from_regex(r"https?://[a-z]([a-z0-9.]{0,200}[a-z0-9])?(/[ -~]{0,20})?", fullmatch=True))
def test_a_default_name_is_valid_and_stable(url: str) -> None:
    """The default name for any URL is one that may be set, and the same with and without a fragment."""
    url = re.sub(r"[\s\\]", "", url)
    one, other = EndpointSettings(webhook=url), EndpointSettings(webhook=f"{url}#fragment")
    assert EndpointSettings(webhook=url, name=one.display_name).name == other.display_name


# A file


def test_each_table_of_a_file_is_a_receiver(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each table may have all settings of a receiver, and may name the variables of its secrets instead."""
    monkeypatch.setenv("AUDIT_KEY", "audit key")
    monkeypatch.setenv("AUDIT_SECRET", _SECRET)
    first, second, third = _from_file(
        path,
        f"""
        [[endpoint]]
        name = "billing-1.eu_a"
        webhook = "https://example.com/billing"
        key = "billing key"
        signing_secret = "{_SECRET}"
        payload = "full"
        outcomes = ["success", "failed"]
        headers = {{ X-Env = "a b" }}
        timeout = 5
        certificate = "ca.pem"
        client_certificate = "client.pem"
        client_key = "client.key"
        proxy = "http://proxy:3128"

        [[endpoint]]
        name = "audit"
        webhook = "https://user@audit.example.com/#part"
        headers = "x-a=1"
        signing_secret_env = "AUDIT_SECRET"

        [[endpoint]]
        webhook = "https://audit.example.com/"
        key_env = "AUDIT_KEY"
        outcomes = "cancelled"
        """,
    )
    assert first == Endpoint(
        name="billing-1.eu_a",
        url="https://example.com/billing",
        headers=(("authorization", "Bearer billing key"), ("x-env", "a b")),
        signing_keys=(_KEY,),
        payload="full",
        outcomes=frozenset({Outcome.SUCCESS, Outcome.FAILED}),
        timeout=5.0,
        tls=TlsFiles("ca.pem", "client.pem", "client.key"),
        proxy="http://proxy:3128",
    )
    user = base64.b64encode(b"user:").decode()
    assert second == Endpoint(
        name="audit",
        url="https://audit.example.com/",
        headers=(("authorization", f"Basic {user}"), ("x-a", "1")),
        signing_keys=(_KEY,),
    )
    assert third == Endpoint(
        name=f"audit.example.com-{hashlib.sha256(b'https://audit.example.com/').hexdigest()[:6]}",
        url="https://audit.example.com/",
        headers=(("authorization", "Bearer audit key"),),
        outcomes=frozenset({Outcome.CANCELLED}),
    )


def test_a_relative_path_starts_at_the_working_directory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path of the file is resolved against the working directory."""
    path.write_text('[[endpoint]]\nwebhook = "http://a/"\nname = "a"')
    monkeypatch.chdir(path.parent)
    for given_path in (path.name, f" {path.name}\n", Path(path.name)):
        assert endpoints_of(StepHookSettings(endpoints=given_path)) == (Endpoint(name="a", url="http://a/"),)


def test_endpoints_may_be_given_as_mappings() -> None:
    """Endpoints may be mappings, as the declarative configuration has them; None counts as not set."""
    mapping = {"name": "a", "webhook": "http://a/", "key_env": None, "signing_secret_env": None}
    assert endpoints_of(StepHookSettings(endpoints=(mapping,))) == (Endpoint(name="a", url="http://a/"),)


def test_an_endpoint_inherits_the_settings_that_it_does_not_set(path: Path) -> None:
    """Each missing setting is inherited by itself; client certificate and key are inherited together."""
    for_all = {
        "payload": "full",
        "outcomes": "failed",
        "timeout": 3,
        "certificate": "ca.pem",
        "client_certificate": "client.pem",
        "client_key": "client.key",
        "proxy": "http://proxy:3128",
    }
    text = """
        [[endpoint]]
        name = "inheriting"
        webhook = "http://a/"
        [[endpoint]]
        name = "own"
        webhook = "http://b/"
        payload = "step_id"
        outcomes = "success,failed,cancelled"
        timeout = 15
        client_certificate = "own.pem"
        proxy = ""
        """
    inheriting, own = _from_file(path, text, **for_all)
    assert inheriting == Endpoint(
        name="inheriting",
        url="http://a/",
        payload="full",
        outcomes=frozenset({Outcome.FAILED}),
        timeout=3.0,
        tls=TlsFiles("ca.pem", "client.pem", "client.key"),
        proxy="http://proxy:3128",
    )
    assert own == Endpoint(name="own", url="http://b/", tls=TlsFiles("ca.pem", "own.pem", None))


@pytest.mark.parametrize("name", ["key", "signing_secret", "headers"])
def test_a_secret_of_all_may_be_that_of_one_endpoint(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret that is set for all is accepted beside endpoints that have it, and is sent to no other."""
    value = {"key": "a key", "signing_secret": _SECRET, "headers": "x-a=1"}[name]
    monkeypatch.setenv(f"STEP_COMPLETE_{name.upper()}", value)
    owner = EndpointSettings(name="a", webhook="http://a/", **{name: value})
    first, second = endpoints_of(StepHookSettings(endpoints=[owner, {"webhook": "http://b/", "name": "b"}]))
    assert first.headers or first.signing_keys
    assert second == Endpoint(name="b", url="http://b/")


def test_endpoints_may_share_a_url() -> None:
    """Endpoints with one URL need different names, and may be equal in everything else."""
    url, user = "https://example.com/", base64.b64encode(b"a:b").decode()
    endpoints = [
        EndpointSettings(name="plain", webhook=url),
        EndpointSettings(name="same", webhook=url),
        EndpointSettings(name="fragment", webhook=f"{url}#part"),
        EndpointSettings(name="user", webhook="https://a:b@example.com/"),
        EndpointSettings(name="key", webhook=url, key="k"),
        EndpointSettings(name="headers", webhook=url, headers="x-a=1"),
        EndpointSettings(webhook=url, payload="full"),  # one of them may have the default name
    ]
    default = f"example.com-{hashlib.sha256(url.encode()).hexdigest()[:6]}"
    assert endpoints_of(StepHookSettings(endpoints=endpoints)) == (
        Endpoint(name="plain", url=url),
        Endpoint(name="same", url=url),
        Endpoint(name="fragment", url=url),
        Endpoint(name="user", url=url, headers=(("authorization", f"Basic {user}"),)),
        Endpoint(name="key", url=url, headers=(("authorization", "Bearer k"),)),
        Endpoint(name="headers", url=url, headers=(("x-a", "1"),)),
        Endpoint(name=default, url=url, payload="full"),
    )


# What users are shown


def test_no_representation_of_an_endpoint_shows_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither `repr` nor `str` nor the table of settings shows a secret of an endpoint."""
    monkeypatch.setenv("A_KEY", "SEKRET")
    endpoint = EndpointSettings(
        webhook="https://example.com/T0SEKRET?token=SEKRET",
        key_env="A_KEY",
        signing_secret=_SECRET,
        headers="x-api-key=SEKRET",
        proxy="http://user:SEKRET@proxy",
    )
    settings = StepHookSettings(endpoints=[endpoint])
    for shown in (
        repr(endpoint),
        repr(settings),
        str(settings),
        f"{effective_settings(settings)}",
        f"{endpoints_of(settings)}",
    ):
        assert "SEKRET" not in shown
        assert _SECRET not in shown


def test_the_endpoints_in_force_are_shown_by_name() -> None:
    """The names of the endpoints are shown, with the source of the setting."""
    endpoints = [EndpointSettings(webhook="http://a/SEKRET"), EndpointSettings(name="audit", webhook="http://b/")]
    names = f"a-{hashlib.sha256(b'http://a/SEKRET').hexdigest()[:6]},audit"
    assert effective_settings(StepHookSettings(endpoints=endpoints))["endpoints"] == (names, "argument")
    assert effective_settings(StepHookSettings())["endpoints"] == ("unset", "default")


def test_the_table_of_settings_shows_each_of_several_webhooks() -> None:
    """Each URL is shown without user name, password and path, which may be secret."""
    table = settings_table(StepHookSettings(webhook="https://a/SEKRET http://user:SEKRET@b:8080/SEKRET"))
    assert str(next(iter(table.columns[1].cells))) == "https://a/REDACTED http://b:8080/REDACTED"


def test_the_table_of_settings_shows_the_library_that_sends() -> None:
    """It has the library that is used, and its version, in place of ``auto``."""
    names = StepHookSettings.known_names()
    for client, library in (("auto", "aiohttp"), ("httpx", "httpx")):
        cells = list(settings_table(StepHookSettings(http_client=client)).columns[1].cells)
        assert str(cells[names.index("http_client")]) == f"{library} {importlib.metadata.version(library)}"
