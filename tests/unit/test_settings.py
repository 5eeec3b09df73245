"""Values that settings accept, from variables and from arguments. For wrong values see test_settings_refused.py."""

import base64
import copy
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from otel_step_hook import ConfigurationError, EndpointSettings, StepHookProcessor, StepHookSettings
from otel_step_hook.delivery.model import Endpoint
from otel_step_hook.settings import effective_settings, endpoints_of, setting_rows, unknown_variables
from otel_step_hook.steps.event import Outcome

_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # from the tests of the Standard Webhooks libraries
_FILE = Path(__file__).with_name("endpoints.toml")  # has one endpoint, equal to `_ENDPOINT`
_ENDPOINT = EndpointSettings(name="billing", webhook="https://example.com/billing", timeout=5)
_WHOLE_URL = "https://user:pa%20ss@example.com:8443/hooks/T0/B0?token=x#part"
# For each setting: a text for its variable, the same as an argument, and the value that both give.
_GIVEN: dict[str, tuple[str, object, object]] = {
    "webhook": (f" {_WHOLE_URL}\thttp://b/\n", f"{_WHOLE_URL} http://b/", f"{_WHOLE_URL} http://b/"),
    "key": ("k ey", "k ey", SecretStr("k ey")),
    "signing_secret": (_SECRET, SecretStr(_SECRET), SecretStr(_SECRET)),
    "payload": ("full", "full", "full"),
    "outcomes": ("Failed, CANCELLED", ["failed", Outcome.CANCELLED], {Outcome.FAILED, Outcome.CANCELLED}),
    "headers": (" X-Env = a%20b , x-empty=,", {"X-Env": "a b", "x-empty": ""}, (("x-env", "a b"), ("x-empty", ""))),
    "timeout": ("2.5", 2.5, 2.5),
    "certificate": ("ca.0", Path("ca.0"), "ca.0"),
    "client_certificate": ("client.pem", "client.pem", "client.pem"),
    "client_key": ("client.key", "client.key", "client.key"),
    "proxy": ("http://proxy:3128", "http://proxy:3128", "http://proxy:3128"),
    "http_client": ("httpx", "httpx", "httpx"),
    "public_only": ("true", True, True),
    "endpoints": (str(_FILE), [_ENDPOINT], (_ENDPOINT,)),
    "profiles": ("generic auto", ["generic", "auto"], ("generic", "auto")),
    "give_up_after": ("86400", 86400, 86400.0),
    "initial_backoff": ("1e-3", 0.001, 0.001),
    "max_backoff": ("60", 60, 60.0),
    "backoff_multiplier": ("1", 1, 1.0),
    "concurrency": ("1000", 1000, 1000),
    "max_queue_size": ("1", 1, 1),
    "shutdown_timeout": ("315360000", 315360000, 315360000.0),
    "outbox": ("steps.db", Path("steps.db"), "steps.db"),
    "outbox_keep": ("60", 60, 60.0),
    "outbox_max_rows": ("1", 1, 1),
    "drain_on_sigterm": ("yes", True, True),
    "engine": ("temporal", "temporal", "temporal"),
    "task_queue": ("webhooks", "webhooks", "webhooks"),
    "schedule_to_close": ("3600", 3600, 3600.0),
}
_NEEDS = {"client_key": {"client_certificate": "client.pem"}}  # settings that need another


def _variable(name: str) -> str:
    return f"STEP_COMPLETE_{name.upper()}"


def test_every_setting_is_tried_here() -> None:
    """`_GIVEN` has every setting, so a new one must be added to these tests."""
    assert list(_GIVEN) == list(StepHookSettings.model_fields)


def _read(name: str, variable: str, **arguments: object) -> object:
    """The value of setting *name* with the text *variable* in the environment, or the error that refuses it."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(_variable(name), variable)
        try:
            return getattr(StepHookSettings(**arguments, **_NEEDS.get(name, {})), name)
        except ConfigurationError as error:
            return error


def test_a_setting_is_read_from_the_environment() -> None:
    """Each setting is read from its variable."""
    read = {name: _read(name, text) for name, (text, _, _) in _GIVEN.items()}
    wrong = {name: value for name, value in read.items() if value != _GIVEN[name][2]}
    assert not wrong, str(wrong)


def test_a_setting_is_read_from_an_argument() -> None:
    """Each setting is read from its argument, even when its variable holds a wrong value."""
    read = {name: _read(name, "\x80", **{name: argument}) for name, (_, argument, _) in _GIVEN.items()}
    wrong = {name: value for name, value in read.items() if value != _GIVEN[name][2]}
    assert not wrong, str(wrong)


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable, such as ``STEP_COMPLETE_KEY=`` in YAML, gives the default of its setting."""
    for name in _GIVEN:
        monkeypatch.setenv(_variable(name), "")
    assert StepHookSettings() == StepHookSettings.model_construct()
    assert StepHookSettings().model_fields_set == set()


def test_the_defaults_are_those_of_the_specification() -> None:
    """By default there is no webhook; all outcomes are sent, with the step id alone, within 15 and 30 seconds."""
    settings = StepHookSettings()
    assert (settings.webhook, settings.key, settings.signing_keys) == (None, None, ())
    assert settings.payload == "step_id"
    assert settings.outcomes == set(Outcome)
    assert (settings.timeout, settings.give_up_after) == (15, 30)


def test_none_replaces_a_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """With None as argument, a second hook does not send the first receiver's secrets to another receiver."""
    for name, value in {"key": "k", "signing_secret": _SECRET, "headers": "x-a=1"}.items():
        monkeypatch.setenv(_variable(name), value)
    settings = StepHookSettings(webhook="https://other/", key=None, signing_secret=None, headers=None)
    assert endpoints_of(settings) == (Endpoint(name="default", url="https://other/"),)


def test_a_switch_is_read_in_the_usual_spellings() -> None:
    """True and false in words and numbers, in upper or lower case."""
    on, off = ("true", "1", "yes", "on", "TRUE", "On"), ("false", "0", "no", "off", "FALSE", "Off")
    assert {text: _read("drain_on_sigterm", text) for text in on + off} == dict.fromkeys(on, True) | dict.fromkeys(
        off, False
    )


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_a_blank_webhook_is_none(blank: str) -> None:
    """A blank argument disables the hook, as an empty variable does."""
    assert StepHookSettings(webhook=blank, proxy=blank).webhook is None


def test_white_space_around_a_url_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL with spaces or a line break around it, as from a file, is accepted."""
    monkeypatch.setenv("STEP_COMPLETE_WEBHOOK", " http://localhost:8000/hook\r\n")
    assert StepHookSettings().webhook == "http://localhost:8000/hook"


@pytest.mark.parametrize("blanks", [(" ", ""), ("", "\n"), ("\t", "\r\n"), ("\n ", " \n\n")])
def test_blanks_around_a_value_are_removed(blanks: tuple[str, str]) -> None:
    """Spaces, tabs and line breaks around a value, as from Kubernetes or a file, make no difference to any setting."""
    before, after = blanks
    around = {name: f"{before}{text}{after}" for name, (text, _, _) in _GIVEN.items()}
    expected = {name: value for name, (_, _, value) in _GIVEN.items()}
    assert {name: _read(name, text) for name, text in around.items()} == expected
    assert {name: _read(name, "\x80", **{name: text}) for name, text in around.items()} == expected


@given(
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1)
    .filter(lambda key: key == key.strip())
    .filter(lambda key: len(key) == 1 or key[0] != key[-1] or key[0] not in "\"'")
)
def test_a_key_that_http_can_carry_is_kept_as_it_is(key: str) -> None:
    """A key of any visible ASCII characters, with spaces only inside, is kept unchanged."""
    accepted = StepHookSettings(key=key).key
    assert accepted is not None
    assert accepted.get_secret_value() == key


def test_signing_secrets_are_decoded_in_their_order() -> None:
    """Several signing secrets, as during a rotation, are separated by spaces and decoded in order."""
    keys = (b"a" * 24, b"b" * 64)
    text = " ".join(f"whsec_{base64.b64encode(key).decode()}" for key in keys)
    assert StepHookSettings(signing_secret=text).signing_keys == keys


@pytest.mark.parametrize(
    "headers",
    [
        "x-a=1,x-a=2",
        (("x-a", "1"), ("X-A", "2")),
        [["x-a", "1"], ["x-a", "2"]],
    ],
)
def test_headers_may_be_given_as_text_and_as_pairs(headers: object) -> None:
    """A text in the format of OpenTelemetry's exporters and pairs give the same headers, repeated names included."""
    assert StepHookSettings(headers=headers).headers == (("x-a", "1"), ("x-a", "2"))


def test_another_authorization_scheme_is_a_header() -> None:
    """An authorization with another scheme than Bearer is set as a header, without a key."""
    settings = StepHookSettings(webhook="https://example.com", headers="Authorization=Token%20x")
    assert settings.headers == (("authorization", "Token x"),)


def test_settings_are_frozen() -> None:
    """Settings cannot be changed after they were checked."""
    settings = StepHookSettings(key="sekret")
    with pytest.raises(ValidationError, match="frozen"):
        settings.key = SecretStr("other")  # type: ignore[misc]  # -- the field is read-only
    assert settings.key == SecretStr("sekret")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_settings_can_be_copied(copied: Callable[[StepHookSettings], StepHookSettings]) -> None:
    """A copy and a deep copy equal the settings."""
    settings = StepHookSettings(key="sekret", outcomes="failed", timeout=3)
    assert copied(settings) == settings


def test_no_representation_shows_a_secret() -> None:
    """Neither `repr` nor `str` nor the table of settings shows a secret."""
    settings = StepHookSettings(
        webhook="https://example.com/T0SEKRET?token=SEKRET",
        key="SEKRET",
        signing_secret=_SECRET,
        headers="x-api-key=SEKRET",
        proxy="http://user:SEKRET@proxy",
    )
    for shown in (repr(settings), str(settings), f"{effective_settings(settings)}"):
        assert "SEKRET" not in shown
        assert _SECRET not in shown


# Variables with the prefix that are no settings


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("STEP_COMPLETE_WEBHOK", "; did you mean STEP_COMPLETE_WEBHOOK?"),
        ("STEP_COMPLETE_WEBHOOK_URL", "; did you mean STEP_COMPLETE_WEBHOOK?"),
        ("step_complete_time_out", "; did you mean STEP_COMPLETE_TIMEOUT?"),
        ("STEP_COMPLETE_GIVEUP_AFTER", "; did you mean STEP_COMPLETE_GIVE_UP_AFTER?"),
        ("STEP_COMPLETE_", ""),
        ("STEP_COMPLETE_XYZZY", ""),  # similar to none, except for the prefix
    ],
)
def test_a_misspelt_variable_is_reported_with_the_nearest(
    name: str, meant: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A processor warns once of each unknown variable, without showing its value."""
    monkeypatch.setenv(name, "SEKRET")
    StepHookProcessor(StepHookSettings(payload="full"))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"{name} is not a setting of otel-step-hook{meant}"] == unknown_variables()


def test_known_and_unrelated_variables_are_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of settings, in upper or lower case, and variables without the prefix are not reported."""
    for name in ("STEP_COMPLETE_KEY", "step_complete_timeout", "STEP_COMPLETENESS", "OTEL_STEP_COMPLETE_KEY"):
        monkeypatch.setenv(name, "1")
    assert unknown_variables() == []


# What users are shown


def test_every_setting_has_a_row() -> None:
    """The table has a row for each setting, with its variable, its default and its meaning."""
    rows = {row.name: row for row in setting_rows()}
    assert list(rows) == list(_GIVEN)
    assert all(row.variable == _variable(name) and row.meaning for name, row in rows.items())
    shown = {name: row.default for name, row in rows.items() if row.default != "unset"}
    assert shown == {
        "payload": "step_id",
        "outcomes": "success,failed,cancelled",
        "profiles": "auto",
        "timeout": "15",
        "http_client": "auto",
        "public_only": "false",
        "give_up_after": "30",
        "initial_backoff": "1",
        "max_backoff": "3600",
        "backoff_multiplier": "2",
        "concurrency": "8",
        "max_queue_size": "2048",
        "shutdown_timeout": "10",
        "outbox_keep": "604800",
        "outbox_max_rows": "10000000",
        "drain_on_sigterm": "false",
        "engine": "local",
        "task_queue": "step-webhooks",
        "schedule_to_close": "30",
    }
    hidden = {name for name, row in rows.items() if row.is_secret}
    assert hidden == {"webhook", "key", "signing_secret", "headers", "proxy"}


def test_an_outbox_gives_up_after_a_day() -> None:
    """With an outbox the default of give_up_after is a day, and is shown as a default; a value that is set stays."""
    assert StepHookSettings().give_up_after == 30.0
    durable = StepHookSettings(outbox="steps.db")
    assert effective_settings(durable)["give_up_after"] == ("86400", "default")
    assert StepHookSettings(outbox="steps.db", give_up_after=5).give_up_after == 5.0


def test_settings_in_force_are_shown_with_their_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value is shown with its source; a secret as stars, a missing value as unset."""
    monkeypatch.setenv("STEP_COMPLETE_KEY", "sekret")
    monkeypatch.setenv("STEP_COMPLETE_OUTCOMES", "cancelled,failed")
    monkeypatch.setenv("STEP_COMPLETE_TIMEOUT", "3")
    monkeypatch.setenv("STEP_COMPLETE_CERTIFICATE", "ca.0")
    monkeypatch.setenv("STEP_COMPLETE_PAYLOAD", "")
    shown = effective_settings(StepHookSettings(timeout=1234567.5, webhook=None, max_backoff=10_000_000))
    assert shown["key"] == ("***", "environment")
    assert shown["outcomes"] == ("failed,cancelled", "environment")
    assert shown["certificate"] == ("ca.0", "environment")
    assert shown["timeout"] == ("1234567.5", "argument")
    assert shown["max_backoff"] == ("10000000", "argument")
    assert shown["webhook"] == ("unset", "argument")
    assert shown["payload"] == ("step_id", "default")
    assert shown["headers"] == ("unset", "default")
