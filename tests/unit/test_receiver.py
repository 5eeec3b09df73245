import json
import math
import os
import pickle
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import anyio
import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from pydantic import SecretStr, ValidationError
from standardwebhooks import Webhook

import otel_step_hook.receiver
from otel_step_hook import StepHookProcessor
from otel_step_hook.delivery.signing import new_secret, parse_secrets, sign
from otel_step_hook.errors import ConfigurationError, VerificationError
from otel_step_hook.receiver import ReceivedStep, verify
from otel_step_hook.testing import ScriptedReceiver

_NOW = 1_700_000_000
_KEY = "sekret-key"
_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
_BODY = b'{"step_id": "step-1"}'

_any_text = st.text(st.characters(exclude_categories=()))


def _signed(
    body: bytes = _BODY, *, secret: str = _SECRET, timestamp: int = _NOW, webhook_id: str = "msg_1"
) -> dict[str, str]:
    signature = sign(parse_secrets(secret), webhook_id=webhook_id, timestamp=timestamp, body=body)
    return {"webhook-id": webhook_id, "webhook-timestamp": str(timestamp), "webhook-signature": signature}


def _refusal(
    body: bytes = _BODY,
    headers: dict[str, str] | None = None,
    *,
    key: str | None = None,
    signing_secret: str | None = None,
) -> VerificationError:
    is_open = key is None and signing_secret is None
    with pytest.raises(VerificationError) as caught:
        verify(body, headers, key=key, signing_secret=signing_secret, now=_NOW, allow_unauthenticated=is_open)
    message = str(caught.value)
    assert len(message.split("; ")) == 3  # what happened; what was expected; what to do
    assert "; expected" in message
    assert _KEY not in message
    assert _SECRET.removeprefix("whsec_") not in message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


def _read(body: bytes, headers: dict[str, str] | None = None) -> ReceivedStep:
    return verify(body, headers, allow_unauthenticated=True)


# The body


def test_the_smallest_payload_gives_the_step_id() -> None:
    """Values that are not in the payload are None."""
    assert _read(_BODY) == ReceivedStep(step_id="step-1")


def test_the_full_payload_gives_all_values() -> None:
    """Keys of a newer sender are ignored."""
    body = {
        "step_id": "step-1",
        "type": "step.failed",
        "timestamp": "2026-11-06T08:49:37.123456Z",
        "data": {"outcome": "failed", "deep": [{"er": None}]},
        "of a later version": 1,
    }
    step = _read(json.dumps(body).encode(), {"Webhook-Id": "msg_1"})
    assert step.model_dump() == {
        "step_id": "step-1",
        "type": "step.failed",
        "timestamp": datetime(2026, 11, 6, 8, 49, 37, 123456, tzinfo=UTC),
        "data": {"outcome": "failed", "deep": [{"er": None}]},
        "webhook_id": "msg_1",
    }


def test_a_received_step_is_immutable() -> None:
    """A step cannot be changed after it was verified."""
    step = _read(_BODY)
    with pytest.raises(ValidationError, match="frozen"):
        step.step_id = "step-2"  # type: ignore[misc]  # -- the assignment is what is tested


@pytest.mark.parametrize("forged", ['"msg_2"', "5", "null"])
def test_the_webhook_id_is_the_headers(forged: str) -> None:
    """A body cannot choose the id that its receiver deduplicates by."""
    body = f'{{"step_id": "step-1", "webhook_id": {forged}}}'.encode()
    assert _read(body).webhook_id is None
    assert _read(body, {"webhook-id": "msg_1"}).webhook_id == "msg_1"


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"", "body"),
        (b"step-1", "body"),
        (b'{"step_id": "step-1"', "body"),
        (b'{"step_id": "\xff"}', "body"),
        (b'["step-1"]', "body"),
        (b"{}", "step_id"),
        (b'{"step_id": ""}', "step_id"),
        (b'{"step_id": 1}', "step_id"),
        (b'{"step_id": "s", "timestamp": "yesterday"}', "timestamp"),
        (b'{"step_id": "s", "timestamp": 1e999}', "timestamp"),
        (b'{"step_id": "s", "data": "hello"}', "data"),
        (b'{"step_id": "s", "data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "body"),
        (b'{"step_id": ' + b"1" * 10_000 + b"}", ""),
    ],
)
def test_a_malformed_body_is_a_bad_request(body: bytes, place: str) -> None:
    """A body that is no step is refused with 400; the message names the wrong place, and does not quote the body."""
    error = _refusal(body)
    assert (error.status_code, error.reason) == (400, "bad_body")
    assert f"the body is no step ({place}" in str(error)
    assert "yesterday" not in str(error)


@given(st.binary() | _any_text.map(lambda text: json.dumps({"step_id": text, "data": {text: text}}).encode()))
def test_any_body_is_a_step_or_a_verification_error(body: bytes) -> None:
    """Any bytes are either a step or refused with a VerificationError."""
    try:
        assert _read(body).step_id
    except VerificationError as error:
        assert error.status_code == 400  # noqa: PT017 -- a step is right, too


# The key


@pytest.mark.parametrize("authorization", ["Bearer sekret-key", "bearer sekret-key", "BEARER  sekret-key "])
def test_the_right_key_is_accepted(authorization: str) -> None:
    """The bearer token must match; scheme and header name match in any case."""
    assert verify(_BODY, {"AUTHORIZATION": authorization}, key=_KEY).step_id == "step-1"


def test_a_key_from_a_file_may_end_in_a_line_break() -> None:
    """Space around the key is ignored, because the sender cannot send it."""
    assert verify(_BODY, {"authorization": "Bearer sekret-key"}, key="sekret-key\n").step_id == "step-1"


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "sekret-key",
        "Basic sekret-key",
        "Bearer sekret-ke",
        "Bearer Sekret-Key",
        "Bearer \udc80",
    ],
)
def test_a_wrong_key_is_refused(authorization: str) -> None:
    """Any other token is refused with 401, and the message says what to set, but shows no key."""
    error = _refusal(headers={"authorization": authorization}, key=_KEY)
    assert (error.status_code, error.reason) == (401, "wrong_key" if authorization else "missing_header")
    assert ("is wrong" if authorization else "is missing") in str(error)
    assert "set STEP_COMPLETE_KEY" in str(error)


def test_a_missing_authorization_header_is_refused() -> None:
    """The message says that the header is missing."""
    assert "authorization header is missing" in str(_refusal(key=_KEY))


def test_the_key_is_checked_before_the_body() -> None:
    """A sender that is not authenticated does not learn what bodies are accepted."""
    assert _refusal(b"junk", key=_KEY).status_code == 401
    assert _refusal(b"junk", _signed(b"other"), signing_secret=_SECRET).status_code == 401


@pytest.mark.parametrize("key", ["", " ", "\n"])
def test_an_empty_key_raises(key: str) -> None:
    """A receiver whose key is set but empty gets a ConfigurationError, before an empty token could match."""
    with pytest.raises(ConfigurationError, match=r"the key to verify with is empty; expected .*; pass"):
        verify(_BODY, {"authorization": "Bearer "}, key=key)


@given(_any_text)
def test_any_other_authorization_is_a_verification_error(text: str) -> None:
    """Any header but the one with the key is refused with a VerificationError."""
    with pytest.raises(VerificationError):
        verify(_BODY, {"authorization": text}, key=_KEY)


# The signature


def test_a_genuine_signature_is_accepted() -> None:
    """A recent signature by the secret is accepted, and the webhook id is returned."""
    assert verify(_BODY, _signed(), signing_secret=_SECRET, now=_NOW).webhook_id == "msg_1"


def test_a_signature_by_an_independent_signer_is_accepted() -> None:
    """What the specification's own library has signed is accepted, by this machine's clock."""
    moment = datetime.now(UTC)
    secret = new_secret()
    headers = {
        "Webhook-Id": "msg_1",
        "Webhook-Timestamp": str(int(moment.timestamp())),
        "Webhook-Signature": Webhook(secret).sign("msg_1", moment, _BODY.decode()),
    }
    assert verify(_BODY, headers, signing_secret=secret).webhook_id == "msg_1"


def test_any_secret_of_a_rotation_is_enough() -> None:
    """Receiver and sender need one secret in common, at any position; junk among the signatures is ignored."""
    old, new = new_secret(), new_secret()
    headers = _signed(secret=f"{old} {new}")
    headers["webhook-signature"] = f"junk v1,!!! v1a,x,y {headers['webhook-signature']}"
    assert verify(_BODY, headers, signing_secret=new, now=_NOW).step_id == "step-1"
    assert verify(_BODY, headers, signing_secret=f"{new_secret()} {old}", now=_NOW).step_id == "step-1"


@pytest.mark.parametrize("lost", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_named(lost: str) -> None:
    """The message names a header that a proxy has dropped or emptied."""
    for headers in (_signed() | {lost: ""}, {name: text for name, text in _signed().items() if name != lost}):
        error = _refusal(headers=headers, signing_secret=_SECRET)
        assert (error.status_code, error.reason) == (401, "missing_header")
        assert f"missing headers: {lost};" in str(error)


def test_all_missing_headers_are_named_at_once() -> None:
    """The message about an unsigned request names every header that it lacks."""
    error = _refusal(signing_secret=_SECRET)
    assert "webhook-id, webhook-timestamp, webhook-signature" in str(error)
    assert "set STEP_COMPLETE_SIGNING_SECRET of the sender" in str(error)


@pytest.mark.parametrize(
    "timestamp", ["now", "-1", "1.7e9", "1700000000.0", "\u0661", "1_700", " 17", "9" * 13, "9" * 5000]
)
def test_a_timestamp_that_is_not_valid_is_refused(timestamp: str) -> None:
    """Only digits are a timestamp."""
    error = _refusal(headers=_signed() | {"webhook-timestamp": timestamp}, signing_secret=_SECRET)
    assert (error.status_code, error.reason) == (401, "malformed_header")
    assert "webhook-timestamp is no unix time" in str(error)


@pytest.mark.parametrize(
    ("age", "difference"), [(-301, "301 s ahead"), (-300, None), (0, None), (300, None), (301, "301 s old")]
)
def test_only_a_fresh_signature_counts(age: int, difference: str | None) -> None:
    """A signature that is more than five minutes old or ahead is refused, and the message says by how much."""
    headers = _signed(timestamp=_NOW - age)
    if difference is None:
        assert verify(_BODY, headers, signing_secret=_SECRET, now=_NOW).step_id == "step-1"
    else:
        error = _refusal(headers=headers, signing_secret=_SECRET)
        assert error.status_code == 401
        assert error.reason == ("timestamp_too_old" if age > 0 else "timestamp_in_future")
        assert difference in str(error)


def test_the_tolerance_is_the_receivers_choice() -> None:
    """A receiver may allow more or less than five minutes."""
    headers = _signed(timestamp=_NOW - 301)
    assert verify(_BODY, headers, signing_secret=_SECRET, now=_NOW, tolerance=301.0).step_id == "step-1"
    with pytest.raises(VerificationError, match="expected at most 10 s"):
        verify(_BODY, headers, signing_secret=_SECRET, now=_NOW, tolerance=10.0)


def test_a_forged_signature_is_refused() -> None:
    """A signature of another body, by another secret or with another id is refused with 401."""
    for headers in (_signed(b"{}"), _signed(secret=new_secret()), _signed() | {"webhook-id": "msg_2"}):
        error = _refusal(headers=headers, signing_secret=_SECRET)
        assert (error.status_code, error.reason) == (401, "signature_mismatch")
        assert "no signature in webhook-signature matches" in str(error)


def test_key_and_signature_must_both_be_right() -> None:
    """A receiver that asks for both accepts neither alone."""
    both = _signed() | {"authorization": f"Bearer {_KEY}"}
    assert verify(_BODY, both, key=_KEY, signing_secret=_SECRET, now=_NOW).step_id == "step-1"
    _refusal(headers=_signed(), key=_KEY, signing_secret=_SECRET)
    _refusal(headers={"authorization": f"Bearer {_KEY}"}, key=_KEY, signing_secret=_SECRET)


@pytest.mark.parametrize("secret", ["", "whsec_", "junk"])
def test_a_bad_secret_of_the_receiver_is_a_configuration_error(secret: str) -> None:
    """The receiver's own mistake is no fault of the sender, and no VerificationError."""
    with pytest.raises(ConfigurationError):
        verify(_BODY, _signed(), signing_secret=secret, now=_NOW)


@given(webhook_id=_any_text, timestamp=_any_text | st.integers().map(str), signature=_any_text)
def test_any_other_signature_headers_are_a_verification_error(webhook_id: str, timestamp: str, signature: str) -> None:
    """Any other headers are refused with 401."""
    headers = {"webhook-id": webhook_id, "webhook-timestamp": timestamp, "webhook-signature": signature}
    with pytest.raises(VerificationError) as caught:
        verify(_BODY, headers, signing_secret=_SECRET, now=_NOW)
    assert caught.value.status_code == 401


# What the receiver gets wrong


@pytest.mark.parametrize("allowed", [False, None, "false", 1])
def test_neither_key_nor_secret_raises(allowed: object) -> None:
    """A variable that is not set does not make a receiver accept anything: `True` alone does."""
    with pytest.raises(ConfigurationError, match=r"neither key nor signing_secret is given; expected .*; set the"):
        verify(_BODY, {}, key=os.environ.get("NOT_SET"), allow_unauthenticated=allowed)  # type: ignore[arg-type]  # -- what is tested
    with pytest.raises(ConfigurationError):
        verify(_BODY, {})


def test_a_key_is_checked_where_none_is_needed() -> None:
    """`allow_unauthenticated` makes key and secret optional, and nothing else."""
    with pytest.raises(VerificationError):
        verify(_BODY, {}, key=_KEY, allow_unauthenticated=True)
    with pytest.raises(VerificationError):
        verify(_BODY, {}, signing_secret=_SECRET, allow_unauthenticated=True)


@pytest.mark.parametrize("name", ["tolerance", "now"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -1, -0.5, 10**400])
def test_seconds_that_switch_the_check_off_raise(name: str, number: float) -> None:
    """With NaN or infinity, every signature would be fresh for ever; the error comes without a secret, too."""
    for secret, headers in ((_SECRET, _signed()), (None, {"authorization": f"Bearer {_KEY}"})):
        with pytest.raises(ConfigurationError, match=rf"{name} is negative, infinite or no number; expected .*; "):
            verify(_BODY, headers, key=None if secret else _KEY, signing_secret=secret, **{"now": _NOW, name: number})  # type: ignore[arg-type]  # -- numbers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key", b"SEKRET"),
        ("key", SecretStr("SEKRET")),
        ("signing_secret", [_SECRET]),
        ("tolerance", "300"),
        ("now", datetime.now(UTC)),
    ],
)
def test_an_argument_of_another_type_raises(name: str, value: object) -> None:
    """The sentence has the type, and not the value."""
    with pytest.raises(
        ConfigurationError, match=rf"^{name} is of type {type(value).__name__}; expected .*; pass"
    ) as caught:
        verify(_BODY, _signed(), **{"signing_secret": _SECRET, name: value})  # type: ignore[arg-type]  # -- what is tested
    assert "SEKRET" not in str(caught.value)


@pytest.mark.parametrize("webhook_id", ["msg_\udcff", "msg_1,msg_2", "msg_1, msg_1"])
def test_a_webhook_id_that_is_none_is_refused(webhook_id: str) -> None:
    """A byte that is not UTF-8, as aiohttp decodes it, and ids that a server has joined are errors of the header."""
    with pytest.raises(VerificationError, match=r"webhook-id holds a comma, .*; expected .*; check") as caught:
        _read(_BODY, {"webhook-id": webhook_id})
    assert caught.value.reason == "malformed_header"


def test_a_verification_error_can_be_pickled() -> None:
    """A task queue passes an error on with its text, reason and status."""
    error = _refusal(b"{}")
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301 -- made by the line itself
    assert (str(copied), copied.reason, copied.status_code) == (str(error), "bad_body", 400)


# In a real receiver

_app = FastAPI()


async def _verified(request: Request) -> ReceivedStep:
    try:
        return verify(await request.body(), request.headers, key=_KEY, signing_secret=_SECRET)
    except VerificationError as error:
        raise HTTPException(error.status_code, str(error)) from None


@_app.post("/steps")
async def _step_ended(step: Annotated[ReceivedStep, Depends(_verified)]) -> ReceivedStep:
    return step


def _post(body: bytes, headers: dict[str, str]) -> httpx.Response:
    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(_app), base_url="http://receiver") as client:
            return await client.post("/steps", content=body, headers=headers)

    return anyio.run(post)


def test_a_fastapi_receiver_can_verify() -> None:
    """A FastAPI receiver accepts a genuine step, and answers 401 without a key and 400 to a body that is no step."""
    now = int(time.time())
    key = {"Authorization": f"Bearer {_KEY}"}

    accepted = _post(_BODY, _signed(timestamp=now) | key)
    assert accepted.status_code == 200
    assert accepted.json()["webhook_id"] == "msg_1"

    stranger = _post(_BODY, _signed(timestamp=now))
    assert stranger.status_code == 401
    assert "set STEP_COMPLETE_KEY" in stranger.json()["detail"]

    malformed = _post(b"{}", _signed(b"{}", timestamp=now) | key)
    assert malformed.status_code == 400
    assert "step_id: Field required" in malformed.json()["detail"]


@pytest.mark.parametrize("payload", ["step_id", "full"])
@pytest.mark.parametrize("text", ["a\ud800", "\udfff\ud83d\ude00", "Schritt \u00fc \U0001f600 \\ud800"])
def test_what_is_sent_is_accepted(text: str, payload: str, step_receiver: ScriptedReceiver) -> None:
    """A step with any id and name, over HTTP, with key and signature, passes: half a character is written out."""
    hook = StepHookProcessor(step_receiver.url, key=_KEY, signing_secret=_SECRET, payload=payload)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(hook)
    provider.get_tracer("test").start_span(text, attributes={"step_id": text}).end()
    (received,) = step_receiver.wait_for(1)
    provider.shutdown()
    step = verify(received.body, received.headers, key=_KEY, signing_secret=_SECRET)
    joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    written = joined.encode("utf-8", "backslashreplace").decode()
    assert step.step_id == written
    assert (step.data or {}).get("name") == (written if payload == "full" else None)


_IMPORTS = """
import sys, types
package = types.ModuleType("otel_step_hook")  # without its __init__, which brings the sender along
package.__path__ = [sys.argv[1]]
sys.modules["otel_step_hook"] = package
import otel_step_hook.receiver
print(*{name.partition(".")[0] for name in sys.modules})
"""


def test_a_receiver_needs_no_sender() -> None:
    """The module imports pydantic, and nothing that only the sending side needs."""
    package = str(Path(otel_step_hook.receiver.__file__).parent)
    result = subprocess.run([sys.executable, "-c", _IMPORTS, package], capture_output=True, text=True, check=True)
    imported = set(result.stdout.split())
    assert "pydantic" in imported
    assert imported.isdisjoint({"httpx", "opentelemetry", "pydantic_settings", "temporalio"})
