"""What telemetry shows of a URL."""

import re
import string
import uuid
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_step_hook.delivery.telemetry import shown_url

HOST = "https://receiver.test"


@pytest.mark.parametrize(
    "url",
    [
        "https://receiver.test",
        "https://receiver.test/",
        "http://receiver.test:8080/hook",
        "http://[::1]:8080/hook/",
        "https://receiver.test/api/v1/step-completed",
        "https://receiver.test/api/v2.1/webhooks/steps_done.php",
        "https://receiver.test/Api/stepHook/IncomingWebhook/API/hook2",
        "https://receiver.test//double/",
    ],
)
def test_a_plain_url_is_shown_as_it_is(url: str) -> None:
    """What people write as words can be read in a trace."""
    assert shown_url(url) == url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:pass@receiver.test:8443/hook", "https://receiver.test:8443/hook"),
        ("https://token@receiver.test/hook", "https://receiver.test/hook"),
        ("https://a%40b:c%2Fd@receiver.test/hook", "https://receiver.test/hook"),
        (f"{HOST}/hook?token=abc&user=bob", f"{HOST}/hook?token=REDACTED&user=REDACTED"),
        (f"{HOST}/hook?X-Amz-Signature=abc&sig=", f"{HOST}/hook?X-Amz-Signature=REDACTED&sig=REDACTED"),
        (f"{HOST}/hook?abc123def", f"{HOST}/hook?REDACTED"),
        (f"{HOST}/hook?a1b2c3d4e5f6=1", f"{HOST}/hook?REDACTED"),
        (f"{HOST}/hook?a=b=c&&d", f"{HOST}/hook?a=REDACTED&REDACTED&REDACTED"),
        (f"{HOST}/hook#fragment", f"{HOST}/hook"),
        (
            "https://hooks.slack.com/services/T024BE7LD/B024BE7LD/XXXXXXXXXXXXXXXXXXXXXXXX",
            "https://hooks.slack.com/services/REDACTED",
        ),
        (
            "https://discord.com/api/webhooks/1032958465/aB3-dE_fGhIjKlMnOpQrStUvWxYz0123456789",
            "https://discord.com/api/webhooks/REDACTED",
        ),
        (
            "https://example.webhook.office.com/webhookb2/0f8fad5b-d9cb-469f-a165-70867728950e@7c9e6679-7425-40de-944b-e07fc1f90ae7/IncomingWebhook/8f14e45fceea167a5a36dedd4bea2543/7c9e6679-7425-40de-944b-e07fc1f90ae7",
            "https://example.webhook.office.com/webhookb2/REDACTED",
        ),
        ("https://api.telegram.org/bot123456:ABC-DEF1234/sendMessage", "https://api.telegram.org/REDACTED"),
        ("https://hooks.zapier.com/hooks/catch/123456/abcdefg/", "https://hooks.zapier.com/hooks/catch/REDACTED"),
        ("https://hook.eu1.make.com/abcdefghijklmnopqrstuvwxyzabcdef", "https://hook.eu1.make.com/REDACTED"),
        (
            "https://maker.ifttt.com/trigger/step/with/key/dB3-x_Yz0123456789",
            "https://maker.ifttt.com/trigger/step/with/key/REDACTED",
        ),
        (
            "https://chat.googleapis.com/v1/spaces/AAAA1234567/messages?key=AIza&token=abc",
            "https://chat.googleapis.com/v1/spaces/REDACTED?key=REDACTED&token=REDACTED",
        ),
        (f"{HOST}/correct-horse-battery-staple-step", f"{HOST}/REDACTED"),  # words, and too many of them
        (f"{HOST}/h%6Fok", f"{HOST}/REDACTED"),
        (f"{HOST}/hook;jsessionid=abc", f"{HOST}/REDACTED"),
        (f"{HOST}/schlüssel", f"{HOST}/REDACTED"),
    ],
)
def test_what_may_be_a_secret_is_not_shown(url: str, shown: str) -> None:
    """User information, query values and secret path parts, of the receivers that people use, stay out of traces."""
    assert shown_url(url) == shown


_tokens = st.one_of(
    st.binary(min_size=16, max_size=48).map(bytes.hex),
    st.uuids().map(str),
    st.text(string.ascii_letters + string.digits, min_size=20, max_size=64).filter(
        lambda text: re.search(r"[A-Za-z]{16}|\d[A-Za-z]|\d{3}", text) is not None
    ),
    st.text(string.ascii_letters + string.digits + "-_", min_size=33, max_size=80),
)


@given(before=st.lists(st.sampled_from(["api", "hooks", "v1", "step-done"]), max_size=3), token=_tokens, after=_tokens)
def test_no_token_survives_in_a_path(before: list[str], token: str, after: str) -> None:
    """Whatever looks like a token is left out of the path, and so is everything behind it."""
    shown = shown_url("/".join([HOST, *before, token, "word", after]))
    assert shown == "/".join([HOST, *before, "REDACTED"])


@given(st.text(string.ascii_letters + string.digits, min_size=1), st.text(string.printable, min_size=1))
def test_no_password_survives(user: str, password: str) -> None:
    """User information never shows, whatever is in it."""
    quoted = "".join(f"%{byte:02x}" for byte in password.encode())
    assert shown_url(f"https://{user}:{quoted}@receiver.test/hook") == f"{HOST}/hook"


@given(st.dictionaries(st.text(string.ascii_lowercase, min_size=1, max_size=10), st.uuids(), min_size=1))
def test_no_query_value_survives(query: dict[str, uuid.UUID]) -> None:
    """Of a query only the names are shown."""
    shown = shown_url(f"{HOST}/hook?" + "&".join(f"{name}={value}" for name, value in query.items()))
    assert urlsplit(shown).query == "&".join(f"{name}=REDACTED" for name in query)
