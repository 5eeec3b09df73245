"""Errors leave the package without a secret in any local variable: error trackers send those of each frame."""

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pydantic
import pydantic_settings
import pytest

import otel_step_hook
from otel_step_hook import ConfigurationError, EndpointSettings, StepHookError, StepHookProcessor, StepHookSettings
from otel_step_hook.cli.listener import Listener
from otel_step_hook.delivery.http_client import connector
from otel_step_hook.delivery.signing import parse_secrets, sign
from otel_step_hook.errors import hide_arguments
from otel_step_hook.receiver import verify
from otel_step_hook.settings import endpoints_of
from otel_step_hook.temporal import StepHookPlugin

_FOLDERS = [Path(package.__file__ or "").parent for package in (otel_step_hook, pydantic, pydantic_settings)]
_URL = "https://user:SEKRET@example.test/SEKRET?SEKRET"
_PROXY = "http://user:SEKRET@proxy.test:3128"
_SIGNING = "whsec_SEKRET" + "A" * 26
_BODY = b'{"step_id": "SEKRET"}'
_NOW = 1_700_000_000


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001 -- objects that are half made
        return type(error).__name__


def _shown(error: BaseException) -> list[str]:
    """What of *error*, its causes and contexts shows a secret: a message, or a variable of our or pydantic's frames."""
    found: list[str] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None:
            continue
        waiting += [one.__cause__, one.__context__]
        found += [_repr(one)] if "SEKRET" in f"{one!r} {one} {vars(one)}" else []
        for frame, _ in traceback.walk_tb(one.__traceback__):
            code = frame.f_code
            if any(Path(code.co_filename).is_relative_to(folder) for folder in _FOLDERS):
                shown = [name for name, value in frame.f_locals.items() if "SEKRET" in _repr(value)]
                found += [f"{code.co_qualname}: {name}" for name in shown]
    return found


def _assert_hidden(fails: Callable[[], object]) -> None:
    with pytest.raises(StepHookError) as caught:
        fails()
    assert _shown(caught.value) == []


_WRONG: dict[str, Mapping[str, object]] = {
    "webhook": {"webhook": "ftp://user:SEKRET@example.test/SEKRET"},
    "one of two webhooks": {"webhook": f"{_URL} https://SEKRET:0/"},
    "webhooks": {"webhook": f"{_URL} {_URL}#SEKRET"},
    "key": {"key": "SEKRET\n\n"},
    "type of a key": {"key": [b"SEKRET"]},
    "signing secret": {"signing_secret": f"{_SIGNING} whsec_SEKRET"},
    "headers": {"headers": "x-a=SEKRET%00"},
    "pairs of headers": {"headers": (("x-a", "SEKRET\0"),)},
    "proxy": {"proxy": "http://user:SEKRET@proxy .test/"},
    "certificate": {"certificate": "-----BEGIN SEKRET"},
    "client key": {"client_key": "-----BEGIN PRIVATE KEY-----\nSEKRET"},
    "misspelt": {"kye": "SEKRET"},
    "timeout": {"timeout": "soon"},
    "two authorizations": {"key": "SEKRET", "headers": "authorization=SEKRET"},
    "endpoints": {"endpoints": [{"webhook": _URL, "key": "SEKRET\n\n"}]},
    "text of endpoints": {"endpoints": '[[endpoint]]\nkey = "SEKRET"'},
    "a secret beside endpoints": {"endpoints": [EndpointSettings(webhook="http://a/")], "key": "SEKRET"},
}
_RIGHT = {"webhook": _URL, "signing_secret": _SIGNING, "headers": "x-a=SEKRET", "proxy": _PROXY}


@pytest.mark.parametrize("wrong", _WRONG.values(), ids=_WRONG)
@pytest.mark.parametrize("make", [StepHookSettings, StepHookProcessor, StepHookPlugin])
def test_wrong_settings_show_no_secret(make: Callable[..., object], wrong: Mapping[str, object]) -> None:
    """Neither the wrong setting nor the right ones beside it are in a frame."""
    others = {} if "endpoints" in wrong else _RIGHT
    _assert_hidden(lambda: make(**{**others, **wrong}))


# Without what has no form as a variable, and a misspelt one, which is only logged.
_VARIABLES = {
    place: wrong
    for place, wrong in _WRONG.items()
    if "kye" not in wrong and all(isinstance(value, str) for value in wrong.values())
}


@pytest.mark.parametrize("wrong", _VARIABLES.values(), ids=_VARIABLES)
@pytest.mark.parametrize("make", [StepHookSettings, StepHookProcessor])
def test_wrong_variables_show_no_secret(
    make: Callable[[], object], wrong: Mapping[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings of the environment are not in a frame either."""
    for name, value in {**_RIGHT, **wrong}.items():
        monkeypatch.setenv(f"STEP_COMPLETE_{name.upper()}", str(value))
    _assert_hidden(make)


@pytest.mark.parametrize(
    "wrong",
    [
        {"webhook": "SEKRET"},
        {"key": "SEKRET\n\n"},
        {"key_env": "SEKRET"},
        {"key_env": "A_SECRET"},
        {"signing_secret_env": "A_SECRET"},
        {"key": "SEKRET", "key_env": "A_SECRET"},
        {"timeout": "soon", "key_env": "A_SECRET"},
    ],
)
def test_wrong_settings_of_an_endpoint_show_no_secret(
    wrong: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable that a setting names, and its value, are in no frame."""
    monkeypatch.setenv("A_SECRET", " SEKRET")
    values = {"webhook": _URL} | wrong
    _assert_hidden(lambda: EndpointSettings(**values))
    _assert_hidden(lambda: StepHookSettings(endpoints=[values]))


@pytest.mark.parametrize(
    "text", [f'[[endpoint]]\nwebhook = "{_URL}"\nkey = "SEKRET\\n\\n"', 'key = "SEKRET', 'key = "SEKRET"']
)
def test_a_wrong_file_of_endpoints_shows_no_secret(text: str, tmp_path: Path) -> None:
    """Neither the text of the file nor what was read of it is in a frame."""
    path = tmp_path / "steps.toml"
    path.write_text(text)
    _assert_hidden(lambda: StepHookSettings(endpoints=path))
    _assert_hidden(lambda: StepHookProcessor(endpoints=path))


@pytest.mark.parametrize(
    "wrong",
    [
        {"certificate": "nowhere.pem"},
        {"client_certificate": "nowhere.pem", "client_key": "nowhere.pem"},
        {"webhook": f"https://user:SEKRET@{'x' * 64}.test/SEKRET"},
        {"proxy": f"https://user:SEKRET@{'x' * 64}.test/SEKRET"},
        {"extra_profiles": [5]},
    ],
)
def test_what_fails_after_the_settings_shows_no_secret(wrong: dict[str, Any]) -> None:
    """URL, headers and keys of an endpoint are not in a frame when its certificate or its address cannot be used."""
    _assert_hidden(lambda: StepHookProcessor(**{**_RIGHT, **wrong}))
    if "extra_profiles" not in wrong:
        (endpoint,) = endpoints_of(StepHookSettings(**{**_RIGHT, **wrong}))
        _assert_hidden(lambda: connector(endpoint))


def test_two_ways_of_one_setting_show_no_secret() -> None:
    """What is given beside a `StepHookSettings`, or twice, is in no frame."""
    _assert_hidden(lambda: StepHookProcessor(_URL, webhook=_URL))
    _assert_hidden(lambda: StepHookProcessor(StepHookSettings(webhook=_URL), key="SEKRET"))


def test_a_listener_shows_no_secret() -> None:
    """The key and the secret of a receiver for trying are in no frame."""
    _assert_hidden(lambda: Listener(key=" ", signing_secret=_SIGNING))
    _assert_hidden(lambda: Listener(key="SEKRET", signing_secret="whsec_SEKRET"))


_HEADERS = {
    "authorization": "Bearer SEKRET",
    "webhook-id": "msg_SEKRET",
    "webhook-timestamp": str(_NOW),
    "webhook-signature": sign(parse_secrets(_SIGNING), webhook_id="msg_SEKRET", timestamp=_NOW, body=_BODY),
}


@pytest.mark.parametrize(
    "changed",
    [
        {"key": "SEKRET-2"},
        {"key": ""},
        {"key": b"SEKRET"},
        {"key": None, "signing_secret": None},
        {"signing_secret": "whsec_SEKRET"},
        {"signing_secret": "whsec_SEKRET" + "B" * 26},
        {"now": _NOW + 1000},
        {"tolerance": -1.0},
        {"body": {"step_id": "SEKRET"}},
        {"body": b"SEKRET", "key": None, "signing_secret": None, "allow_unauthenticated": True},
        {"body": "SEKRET!", "is_base64": True},
        {"headers": "authorization: SEKRET"},
        {"headers": [*_HEADERS.items(), ("authorization", "SEKRET")]},
    ],
)
def test_a_refused_request_shows_no_secret(changed: dict[str, object]) -> None:
    """Key, secret, headers and body of a request are in no frame, neither the receiver's nor the sender's."""
    right = {"body": _BODY, "headers": _HEADERS, "key": "SEKRET", "signing_secret": _SIGNING, "now": _NOW}
    _assert_hidden(lambda: verify(**{**right, **changed}))  # type: ignore[arg-type]  # -- what is tested


def test_the_search_finds_what_it_looks_for() -> None:
    """A variable of a frame of ours is found, and one of the context of an error."""

    def fail(key: str) -> None:
        raise ConfigurationError(f"{len(key)} characters")

    with pytest.raises(ConfigurationError) as caught:
        StepHookSettings.__init__.__wrapped__(object.__new__(StepHookSettings), key="SEKRET\n\n")  # type: ignore[attr-defined]  # -- `functools.wraps`
    assert "StepHookSettings.__init__: values" in _shown(caught.value)

    with pytest.raises(ConfigurationError) as caught:
        hide_arguments(fail)("SEKRET")
    assert [frame.f_code.co_name for frame, _ in traceback.walk_tb(caught.value.__traceback__)][1:] == ["hiding"]


def test_the_caller_and_what_it_is_doing_stay_in_the_traceback() -> None:
    """An error raised while the application deals with one of its own keeps that as its context."""
    try:
        int("of the application")
    except ValueError:
        with pytest.raises(ConfigurationError) as caught:
            StepHookSettings(timeout="soon")
    assert type(caught.value.__context__) is ValueError
    assert caught.traceback[0].name == "test_the_caller_and_what_it_is_doing_stay_in_the_traceback"


def test_another_error_keeps_its_frames() -> None:
    """An error that nobody expected, such as one of the application's own objects, can be found."""

    def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError) as caught:
        hide_arguments(fail)()
    assert caught.traceback[-1].name == "fail"
