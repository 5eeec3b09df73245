"""Wrong keys, headers and signing secrets are refused without showing them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from refusals import assert_refused, refusal

from otel_step_hook import StepHookSettings

_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # from the tests of the Standard Webhooks libraries
_KEY = "; expected printable ASCII without line breaks"
_HEADERS = "; expected name=value,name=value, percent-encoded, of printable ASCII"


def test_a_key_that_http_cannot_carry_is_refused() -> None:
    """A key with a line break, NUL or non-ASCII characters is refused without showing it."""
    keys = [
        "SEKRET\nx-evil: 1",
        "SEKRET\r\nx: 1",
        "SEKRET\nSEKRET\n",
        "SEKRET\0",
        "SEKRÉT-SEKRET",
        "SEKRET\u00a0",
        "SEKRET\x7f",
        "SEKRET\udcff",  # a byte that is not UTF-8, as `os.environ` has it
    ]
    sentence = f"STEP_COMPLETE_KEY holds what HTTP cannot carry{_KEY}"
    assert_refused(("key", wrap(key), sentence) for key in keys for wrap in (str, SecretStr))


@pytest.mark.parametrize("key", ["", "\n", SecretStr(" ")])
def test_an_empty_key_is_refused(key: object) -> None:
    """An empty key is refused: with it, webhooks would be sent without authorization."""
    assert refusal(key=key) == f"STEP_COMPLETE_KEY is empty{_KEY}"


def test_a_value_that_is_not_text_is_refused() -> None:
    """Bytes and other types are refused, because the checks are made on text."""
    expected = {
        "key": _KEY,
        "signing_secret": "; expected 'whsec_' followed by base64; make one with: otel-step-hook secret",
        "webhook": "; expected an absolute URL such as https://example.com/hook",
        "proxy": "; expected an absolute URL such as http://proxy.example.com:3128",
    }
    assert_refused(
        (name, value, f"STEP_COMPLETE_{name.upper()} is not text{tail}")
        for name, tail in expected.items()
        for value in (b"SEKRET\nx", 5, ["SEKRET"])
    )


@given(st.text(st.characters(exclude_categories=())))
def test_any_key_is_kept_or_refused(inner: str) -> None:
    """A key with any characters is either kept unchanged or refused without showing it."""
    key = f"SEKRET{inner}SEKRET"
    sentence = refusal(key=key)
    if sentence == "not refused":
        accepted = StepHookSettings(key=key).key
        assert accepted is not None
        assert accepted.get_secret_value() == key
        assert key.isascii()
        assert key.isprintable()
    else:
        assert sentence == f"STEP_COMPLETE_KEY holds what HTTP cannot carry{_KEY}"


def test_headers_that_http_cannot_carry_are_refused() -> None:
    """The sentence may have the name of a header, but never its value."""
    name, value = "has a name that HTTP cannot carry", "has a value for x-a that HTTP cannot carry"
    headers: list[tuple[object, str]] = [
        ("SEKRET", "has an entry without '='"),
        ("x-a=1,SEKRET", "has an entry without '='"),
        ("=SEKRET", name),
        ("x a=SEKRET", name),
        ("x%0aa=SEKRET", name),
        ("x-é=SEKRET", name),
        ("x-a=SEKRET%0d%0ax-evil:%201", value),
        ("x-a=SEKRET%00", value),
        ("x-a=SEKRET%ff", value),
        ("x-a=%20SEKRET", value),
        ((("x-a", "SEKRET\r\nx-evil: 1"),), value),
        ({"x-a\n": "SEKRET"}, name),
        ([("webhook-id", "SEKRET")], "sets webhook-id, which every webhook has of its own"),
        ({"x-a": 5}, "holds of type int"),
        (5, "is of type int"),
    ]
    assert_refused(("headers", given, f"STEP_COMPLETE_HEADERS {what}{_HEADERS}") for given, what in headers)


def test_headers_that_every_webhook_sets_are_refused() -> None:
    """Headers that frame, identify, sign or trace a webhook cannot be set."""
    names = [
        *("Host", "Connection", "Transfer-Encoding", "Content-Length", "Content-Type", "Accept", "Accept-Encoding"),
        *("User-Agent", "traceparent", "tracestate", "webhook-id", "webhook-timestamp", "Webhook-Signature"),
    ]
    what = "which every webhook has of its own"
    assert_refused(
        ("headers", f"{name}=SEKRET", f"STEP_COMPLETE_HEADERS sets {name.lower()}, {what}{_HEADERS}") for name in names
    )


@pytest.mark.parametrize("name", ["certificate", "client_certificate", "client_key"])
def test_the_text_of_a_pem_file_is_refused(name: str) -> None:
    """The text of a PEM file, with or without its line breaks, is refused in place of a path and not shown."""
    texts: list[object] = [
        "-----BEGIN PRIVATE KEY-----\nSEKRET\n-----END PRIVATE KEY-----\n",
        "-----BEGIN PRIVATE KEY-----\\nSEKRET\\n-----END PRIVATE KEY-----",
        b"-----BEGIN PRIVATE KEY-----\nSEKRET\n-----END PRIVATE KEY-----\n",
        "SEKRET\nSEKRET",
        "SEKRET\rSEKRET",
    ]
    sentence = (
        f"STEP_COMPLETE_{name.upper()} holds a line break or the text of a PEM file; "
        "expected the path of a PEM file that can be read"
    )
    assert_refused((name, text, sentence) for text in texts)


def test_an_invalid_signing_secret_is_refused() -> None:
    """The sentence has the number of the wrong secret among several, and the command that makes one."""
    sentence = (
        "STEP_COMPLETE_SIGNING_SECRET: secret 2 of 2 is not 'whsec_' followed by the base64 of 24 to 64 bytes; "
        "make one with: otel-step-hook secret"
    )
    assert_refused([("signing_secret", f"{_SECRET} whsec_SEKRET", sentence)])
