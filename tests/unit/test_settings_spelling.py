"""Spellings of one value that make no difference. For each setting see test_settings.py."""

import pytest
from pydantic import SecretStr

from otel_step_hook import EndpointSettings, StepHookSettings
from otel_step_hook.steps.event import Outcome


def test_blanks_around_a_secret_and_in_collections_are_removed() -> None:
    """A `SecretStr`, the names of a list and the values of headers lose the blanks around them, too."""
    settings = StepHookSettings(
        key=SecretStr(" sekret\n"), outcomes=["Failed\n"], profiles=(" AUTO",), headers={"x-a": "a b\n"}
    )
    assert settings.key == SecretStr("sekret")
    assert settings.outcomes == {Outcome.FAILED}
    assert settings.profiles == ("auto",)
    assert settings.headers == (("x-a", "a b"),)


def test_a_choice_may_be_in_upper_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting with a few known values takes them in upper and lower case."""
    given_in_capitals = {"payload": "FULL", "http_client": "HTTPX", "engine": "Temporal", "outcomes": "FAILED"}
    settings = StepHookSettings(**given_in_capitals)
    assert (settings.payload, settings.http_client, settings.engine) == ("full", "httpx", "temporal")
    assert settings.outcomes == {Outcome.FAILED}
    for name, value in given_in_capitals.items():
        monkeypatch.setenv(f"STEP_COMPLETE_{name.upper()}", value)
    assert StepHookSettings().model_dump() == settings.model_dump()


def test_an_empty_path_is_none() -> None:
    """An empty or blank path counts as not set."""
    settings = StepHookSettings(certificate="", outbox=" \n")
    assert (settings.certificate, settings.outbox) == (None, None)


def test_blanks_in_the_settings_of_an_endpoint_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint's values, and the name of a secret's variable, lose the blanks around them; so does the secret."""
    monkeypatch.setenv("A_KEY", "sekret\n")
    endpoint = EndpointSettings(name=" a\n", webhook="http://a/\n", key_env=" A_KEY\n", payload="Full ", timeout=" 5 ")
    same = EndpointSettings(name="a", webhook="http://a/", key="sekret", payload="full", timeout=5)
    assert endpoint == same
