"""Keys, headers and signing secrets that are refused, without being shown."""

import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from refusals import Refuse, everything_in, from_both, refusal

from otel_step_hook import ConfigurationError, StepHookSettings

_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # published with the specification's libraries
_KEY = "; expected printable ASCII without line breaks, and without a space at either end"
_HEADERS = "; expected name=value,name=value, percent-encoded, of printable ASCII"


@pytest.mark.parametrize(
    "key",
    [
        "SEKRET\nx-evil: 1",
        "SEKRET\r\nx: 1",
        "SEKRET\n\n",
        "SEKRET\0",
        "SEKRÉT-SEKRET",
        " SEKRET",
        "SEKRET ",
        "SEKRET\x7f",
    ],
)
@pytest.mark.parametrize("wrap", [str, SecretStr])
def test_a_key_that_http_cannot_carry_is_refused(key: str, wrap: Callable[[str], object]) -> None:
    """A key with a line break, NUL, other characters than ASCII or outer spaces is refused unseen."""
    assert refusal("SEKRET", key=wrap(key)) == f"STEP_COMPLETE_KEY holds what HTTP cannot carry{_KEY}"


@pytest.mark.parametrize("key", ["SEKRET\nx-evil: 1", "SEKRÉT-SEKRET", "SEKRET\udcff"])
def test_such_a_key_is_refused_from_the_environment(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same from the environment, where bytes that are no UTF-8 come as lone surrogates."""
    monkeypatch.setitem(os.environ, "STEP_COMPLETE_KEY", key)
    assert refusal("SEKRET") == f"STEP_COMPLETE_KEY holds what HTTP cannot carry{_KEY}"


@pytest.mark.parametrize("key", ["", "\n", SecretStr("")])
def test_an_empty_key_is_refused(key: object) -> None:
    """A key that came out empty would be sent as no authorization at all."""
    assert refusal(key=key) == f"STEP_COMPLETE_KEY is empty{_KEY}"


@pytest.mark.parametrize("name", ["key", "signing_secret", "webhook", "proxy"])
@pytest.mark.parametrize("value", [b"SEKRET\nx", 5, ["SEKRET"]])
def test_what_is_not_text_is_refused(name: str, value: object) -> None:
    """Bytes would pass by the checks made on text."""
    assert refusal("SEKRET", **{name: value}).startswith(f"STEP_COMPLETE_{name.upper()} is not text; expected ")


@given(st.text(st.characters(exclude_categories=())))
def test_a_key_is_taken_or_refused_unseen(inner: str) -> None:
    """Whatever is inside a key, it goes over the wire to the letter, or is refused without being shown."""
    key = f"SEKRET{inner}SEKRET"
    try:
        taken = StepHookSettings(key=key).key
    except ConfigurationError as error:
        assert not any("SEKRET" in text for text in everything_in(error))  # noqa: PT017 -- either is right
    else:
        assert taken is not None
        assert taken.get_secret_value() == key
        assert key.isascii()
        assert key.isprintable()


@pytest.mark.parametrize(
    ("headers", "what"),
    [
        ("SEKRET", "has an entry without '='"),
        ("x-a=1,SEKRET", "has an entry without '='"),
        ("=SEKRET", "has a name that HTTP cannot carry"),
        ("x a=SEKRET", "has a name that HTTP cannot carry"),
        ("x%0aa=SEKRET", "has a name that HTTP cannot carry"),
        ("x-é=SEKRET", "has a name that HTTP cannot carry"),
        ("x-a=SEKRET%0d%0ax-evil:%201", "has a value for x-a that HTTP cannot carry"),
        ("x-a=SEKRET%00", "has a value for x-a that HTTP cannot carry"),
        ("x-a=SEKRET%ff", "has a value for x-a that HTTP cannot carry"),
        ("x-a=%20SEKRET", "has a value for x-a that HTTP cannot carry"),
        ((("x-a", "SEKRET\r\nx-evil: 1"),), "has a value for x-a that HTTP cannot carry"),
        ({"x-a\n": "SEKRET"}, "has a name that HTTP cannot carry"),
        ([("webhook-id", "SEKRET")], "sets webhook-id, which every webhook has of its own"),
        ({"x-a": 5}, "holds of type int"),
        (5, "is of type int"),
    ],
)
def test_headers_that_http_cannot_carry_are_refused(headers: object, what: str) -> None:
    """A header is told by its name alone, however it was given."""
    assert refusal("SEKRET", headers=headers) == f"STEP_COMPLETE_HEADERS {what}{_HEADERS}"


@pytest.mark.parametrize(
    "name",
    [
        *("Host", "Connection", "Transfer-Encoding", "Content-Length", "Content-Type", "Accept", "Accept-Encoding"),
        *("User-Agent", "traceparent", "tracestate", "webhook-id", "webhook-timestamp", "Webhook-Signature"),
    ],
)
def test_headers_of_every_webhook_cannot_be_set(name: str) -> None:
    """What frames, identifies, signs and traces a webhook is ours."""
    told = refusal("SEKRET", headers=f"{name}=SEKRET")
    assert told == f"STEP_COMPLETE_HEADERS sets {name.lower()}, which every webhook has of its own{_HEADERS}"


@from_both
def test_a_signing_secret_that_is_none_is_refused(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among several, the wrong one is told by its place, and how to make one."""
    told = refuse(monkeypatch, "signing_secret", f"{_SECRET} whsec_SEKRET", secret="SEKRET")
    assert told == (
        "STEP_COMPLETE_SIGNING_SECRET: secret 2 of 2 is not 'whsec_' followed by the base64 of 24 to 64 bytes; "
        "make one with: otel-step-hook secret"
    )
