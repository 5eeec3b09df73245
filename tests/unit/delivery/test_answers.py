"""What a log line repeats of a receiver's answer, and what it never repeats."""

import base64
import json
from urllib.parse import quote, unquote

import pytest
from delivering import failed
from hypothesis import given
from hypothesis import strategies as st
from sending import endpoint_to

from otel_step_hook.delivery.answers import Secrets, advice, sentence_of
from otel_step_hook.delivery.model import Endpoint
from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.delivery.signing import sign

KEY = "sesame-open"
SIGNING_SECRET = "whsec_" + base64.b64encode(b"a key that reads like a text, 32").decode()
URL = "https://receiver.test/webhooks/T024BE7LD/x?team=agents&token=abcd%2Befgh&v=2&bareflag"
SECRETS = Secrets(
    endpoint_to(
        URL,
        key=KEY,
        signing_secret=SIGNING_SECRET,
        headers={"x-team": "blue  team"},
        proxy="http://us%40r:pa%2Fss@p.test",
    )
)


def said(excerpt: bytes, secrets: Secrets = SECRETS) -> str:
    """What a line repeats of an answer that begins with *excerpt*."""
    return sentence_of(excerpt, secrets)


@pytest.mark.parametrize(
    ("excerpt", "sentence"),
    [
        (b"", ""),
        (b"  database is down  \r\nat line 7\r\n", "database is down"),
        ("\ufeffschläft\tnoch".encode(), "schläft noch"),
        (b'{"error": "step_id is unknown"}', "step_id is unknown"),
        (b'{"message": "Invalid payload\\nsee below"}', "Invalid payload"),
        (b'{"detail": "Not Found", "status": 404}', "Not Found"),
        (b'{"error": "", "detail": "Not Found"}', "Not Found"),
        (b'{"error": {"code": 7, "message": "quota exceeded"}}', "quota exceeded"),
        (b'{"detail": [{"msg": "field required"}]}', ""),
        (b'[{"error": "a list"}]', ""),
        (b'{"error": "it breaks o', ""),
        (b"[" * 4096, ""),
        (b"<!DOCTYPE html><html><head><title>\n502 Bad &amp; Gateway </title>", "502 Bad & Gateway"),
        (b"<html><body>no title</body></html>", ""),
        (b"\x1b[31mred", ""),
        (b"\x1f\x8b\x08 gzip", ""),
        ("\u202eoverridden".encode(), ""),
        (b'{"error": "\\ud800"}', ""),
        (b"word " * 100, "word " * 40 + "…"),
        (b"word " * 300, ""),
        (b"step_id_is_missing_in_the_body", "step_id_is_missing_in_the_body"),
    ],
)
def test_the_sentence_of_an_answer(excerpt: bytes, sentence: str) -> None:
    """It is one printable line of limited length: of JSON a text that is meant for people, of HTML the title."""
    assert said(excerpt) == sentence


@pytest.mark.parametrize(
    ("excerpt", "sentence"),
    [
        (b"the key sesame-open is wrong", "the key REDACTED is wrong"),
        (b"the key SESAME-OPEN is wrong", "the key REDACTED is wrong"),
        (b"no blue team here", "no REDACTED here"),
        (b"Cannot POST /webhooks/T024BE7LD/x", "Cannot POST REDACTED"),
        (b"no such hook: T024BE7LD", "no such hook: REDACTED"),
        (b"webhooks are late", "webhooks are late"),
        (b"token abcd+efgh is refused", "token REDACTED is refused"),
        (b"no token abcd%2Befgh", "no REDACTED"),
        (b"no flag bareflag", "no flag REDACTED"),
        (b"version 2 of team=agents&token=abcd%2Befgh&v=2&bareflag", "version 2 of REDACTED"),
        (b"hello us@r, pa/ss is wrong", "hello REDACTED, REDACTED is wrong"),
        (b"not Bearer xyz123, please", "not REDACTED please"),
        (b"the bearer token expired", "the bearer token expired"),
        (b"expected whsec_abc", "expected REDACTED"),
        (b"the signature v1,abc= does not match", "the signature REDACTED does not match"),
        (b"a key that reads like a text, 32", ""),
        (b"request 7f3a9c7f3a9c7f3a9c7f3a9c failed", "request REDACTED failed"),
        (b"request " + b"abcdefgh" * 4 + b" failed", "request REDACTED failed"),
        (b"you have sent sesame-o", "you have sent REDACTED"),
        (b"you have sent ses", "you have sent ses"),
        (f"you have sent {SIGNING_SECRET[6:16]}".encode(), "you have sent REDACTED"),
    ],
)
def test_a_secret_is_not_repeated(excerpt: bytes, sentence: str) -> None:
    """Key, signing secret, signature, headers, path, query, user names and passwords are REDACTED, and long tokens."""
    assert said(excerpt) == sentence


def test_a_secret_that_the_replacement_would_show() -> None:
    """A sentence in which a secret is left after all is left out."""
    secrets = Secrets(endpoint_to("https://receiver.test", key="red"))
    assert said(b"red is no key", secrets) == ""
    assert said(b"no key", secrets) == "no key"


def test_an_own_authorization_is_a_secret() -> None:
    """Its user name and password are secrets, too, unless it is no base64."""
    pair = base64.b64encode(b"somebody:sesame").decode()
    secrets = Secrets(endpoint_to("https://receiver.test", headers={"authorization": f"Basic {pair}"}))
    assert said(b"hello somebody, sesame is wrong", secrets) == "hello REDACTED, REDACTED is wrong"
    secrets = Secrets(endpoint_to("https://receiver.test", headers={"authorization": "Basic a"}))
    assert said(b"hello", secrets) == "hello"


_VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)
_IN_URL = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x17F, categories=["L", "N"]), min_size=1, max_size=40
)
_FORMS = {
    "text": "{}",
    "text in a sentence": "the secret {}, which is wrong",
    "repeated": "{0}{0} {0}",
    "within a token": "abc{}def",
}


@given(
    key=_VISIBLE,
    signing_key=st.binary(min_size=24, max_size=64),
    header=_VISIBLE,
    path=_IN_URL,
    query=_IN_URL,
    user=_IN_URL,
    form=st.sampled_from(sorted(_FORMS)),
    kind=st.sampled_from(["plain", "json", "html"]),
    cut=st.integers(0, 3),
)
def test_no_secret_is_repeated_in_any_form(
    *, key: str, signing_key: bytes, header: str, path: str, query: str, user: str, form: str, kind: str, cut: int
) -> None:
    """Whatever the secrets are, and however an answer repeats them: none is in the sentence."""
    basic = base64.b64encode(f"{user}:{key}".encode()).decode()
    endpoint = Endpoint(
        "default",
        f"https://receiver.test/{path}?token={query}",
        headers=(("authorization", f"Bearer {key}"), ("x-own", header), ("x-basic", f"Basic {basic}")),
        signing_keys=(signing_key,),
        proxy=f"http://{quote(user)}:{quote(header)}@proxy.test",
    )
    secrets = Secrets(endpoint)
    signing_secret = base64.b64encode(signing_key).decode()
    signature = sign((signing_key,), webhook_id="msg_a", timestamp=1, body=b"{}")
    hidden = [
        key,
        f"Bearer {key}",
        header,
        basic,
        signing_secret,
        signature,
        signature.removeprefix("v1,"),
        f"/{path}",
        f"token={query}",
        f"/{path}?token={query}",
    ]
    for secret in [*hidden, f"{user}:{key}", user, *([query] if len(query) > 3 else [])]:
        text = _FORMS[form].format(secret)
        text = text[: len(text) - cut] if form == "text" else text
        content = {"plain": text, "json": json.dumps({"error": text}), "html": f"<title>{text}</title>"}[kind]
        shown = said(content.encode(), secrets)
        assert [one for one in hidden if one in shown or unquote(one) in shown] == []
        assert user not in shown


# Advice

PLAIN = endpoint_to("https://receiver.test/hook")


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (failed(503), ""),
        (failed(500, retry_after=0.0), ""),
        (failed(429, retry_after=120.0), "it asks to wait 120 s"),
        (failed(304), ""),
        (failed(301), "redirects are not followed: set the final URL"),
        (failed(407), "the answer is the proxy's own, which asks for user name and password: see STEP_COMPLETE_PROXY"),
        (failed(410), "it has refused for good: this webhook is not sent again"),
        (failed(400, directive="abort-message"), "it has refused for good: this webhook is not sent again"),
        (failed(404), "look at the path of the endpoint's URL"),
        (failed(405), "look at the path of the endpoint's URL"),
        (failed(401), "no key is sent: set STEP_COMPLETE_KEY, if the receiver expects one"),
        (AttemptResult(error_type="timeout"), "to find out why, run: otel-step-hook check"),
        (AttemptResult(error_type="INVALID_ARGUMENT", directive="abort-message"), ""),
    ],
)
def test_the_advice_about_a_result(result: AttemptResult, expected: str) -> None:
    """It says what the answer asks for, or where to look, and is empty where nothing helps."""
    assert advice(result, PLAIN, Secrets(PLAIN)) == expected


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"key": KEY}, "the key"),
        ({"key": KEY, "signing_secret": SIGNING_SECRET}, "the key and the signing secret"),
        ({"signing_secret": SIGNING_SECRET, "headers": "x-key=abc"}, "the signing secret and the extra headers"),
    ],
)
@pytest.mark.parametrize("status", [401, 403])
def test_the_advice_about_a_key_that_is_refused(settings: dict[str, str], what: str, status: int) -> None:
    """It names what is sent to the receiver."""
    endpoint = endpoint_to("https://receiver.test/hook", **settings)
    assert advice(failed(status), endpoint, Secrets(endpoint)) == f"compare {what} with what the receiver expects"


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("", ""),
        ("/other", ""),
        ("https://receiver.test/other", ""),
        ("http://receiver.test/hook", ", at http://receiver.test"),
        ("https://user:pass@new.test:8443/hook?a=b", ", at https://new.test:8443"),
        ("http://[::1]:8080/", ", at http://[::1]:8080"),
        ("https://sesame-open.test/", ""),
        ("https://a\x1b[31m.test/", ""),
        ("https://[::1", ""),
        ("ftp://new.test/", ""),
    ],
)
def test_the_advice_about_a_redirect(location: str, shown: str) -> None:
    """It shows scheme, host and port of another place, if they are no secret and harmless."""
    endpoint = endpoint_to("https://receiver.test/hook", key=KEY)
    text = advice(failed(308, location=location), endpoint, Secrets(endpoint))
    assert text == f"redirects are not followed: set the final URL{shown}"


@pytest.mark.parametrize(
    ("excerpt", "sentence"),
    [
        (b"unknown session abc12", "unknown session REDACTED"),
        (b"no route for token K9x2z", "no route for token REDACTED"),
        (b"wrong key p%40ss/%26w0rd", "wrong key REDACTED"),
        (b"wrong key p%40ss%2F%26w0rd", "wrong key REDACTED"),
        (b"wrong key p@ss/&amp;w0rd", "wrong key REDACTED"),
        (b"no hooks for this step", "no hooks for this step"),
    ],
)
def test_parts_and_other_spellings_of_secrets_are_not_repeated(excerpt: bytes, sentence: str) -> None:
    """A part of a cookie or of a path is a secret by itself, and a receiver may have encoded what it repeats."""
    url, headers = "https://receiver.test/hooks/K9x2z", {"cookie": "session=abc12; id=7"}
    assert said(excerpt, Secrets(endpoint_to(url, key="p@ss/&w0rd", headers=headers))) == sentence
