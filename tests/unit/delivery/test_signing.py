import base64
import time
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from otel_step_hook.delivery.signing import (
    equal_in_constant_time,
    new_secret,
    parse_secrets,
    sign,
    verify_signature,
)
from otel_step_hook.errors import ConfigurationError

_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # published with the specification's libraries
_KEYS = parse_secrets(_SECRET)
_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
_TIMESTAMP = 1614265330
_BODY = b'{"test": 2432232314}'
_SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

_secret_bytes = st.binary(min_size=24, max_size=64)
_any_text = st.text(st.characters(exclude_categories=()))


def _whsec(key: bytes) -> str:
    return f"whsec_{base64.b64encode(key).decode()}"


def _is_genuine(signature: str, *, timestamp: int = _TIMESTAMP, body: bytes = _BODY) -> bool:
    return verify_signature(_KEYS, signature, webhook_id=_ID, timestamp=timestamp, body=body)


@pytest.mark.parametrize(
    ("secret", "webhook_id", "timestamp", "body", "signature"),
    [
        (_SECRET, _ID, _TIMESTAMP, _BODY, _SIGNATURE),
        (
            "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
            "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
            1649367553,
            b'{"email":"test@example.com","username":"test_user"}',
            "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
        ),
        (
            _SECRET,
            _ID,
            _TIMESTAMP,
            b'{"step_id":"step_1"}',
            "v1,jvjuCngnKIqkwKPZWuLRS2Gb7CYNdW6a54aJJTxMCmk=",
        ),
    ],
    ids=["all libraries", "the Rust library", "a step"],
)
def test_the_published_vectors_are_signed_and_verified(
    secret: str, webhook_id: str, timestamp: int, body: bytes, signature: str
) -> None:
    """The signatures are those that the specification's own libraries are tested with."""
    keys = parse_secrets(secret)
    assert sign(keys, webhook_id=webhook_id, timestamp=timestamp, body=body) == signature
    assert verify_signature(keys, signature, webhook_id=webhook_id, timestamp=timestamp, body=body)


@given(keys=st.lists(_secret_bytes, min_size=1, max_size=3), body=st.text())
def test_an_independent_verifier_accepts_every_key_of_a_rotation(keys: list[bytes], body: str) -> None:
    """A receiver that knows any one of the secrets accepts a request that is signed with all of them."""
    timestamp = int(time.time())
    signature = sign(keys, webhook_id=_ID, timestamp=timestamp, body=body.encode())
    headers = {"webhook-id": _ID, "webhook-timestamp": str(timestamp), "webhook-signature": signature}
    for key in keys:
        Webhook(_whsec(key)).verify(body, headers, json_parse=False)


@given(keys=st.lists(_secret_bytes, min_size=1, max_size=3), body=st.binary(), webhook_id=_any_text)
def test_a_signature_is_verified_by_any_of_its_keys(keys: list[bytes], body: bytes, webhook_id: str) -> None:
    """One of several secrets verifies what all have signed, and all of them verify what one has signed."""
    signature = sign(keys, webhook_id=webhook_id, timestamp=_TIMESTAMP, body=body)
    for key, one in zip(keys, signature.split(), strict=True):
        assert verify_signature([key], signature, webhook_id=webhook_id, timestamp=_TIMESTAMP, body=body)
        assert verify_signature(keys, one, webhook_id=webhook_id, timestamp=_TIMESTAMP, body=body)


@pytest.mark.parametrize(
    "signature",
    [
        f"garbage {_SIGNATURE}",
        f"v1,!!! {_SIGNATURE}",
        f"v1a,x,y {_SIGNATURE} v2,zzz",
        f"v1, {_SIGNATURE}",
        f"v1,\u0660\udc80 {_SIGNATURE}",
        f"  {_SIGNATURE}  {_SIGNATURE} ",
    ],
)
def test_junk_around_a_genuine_signature_is_ignored(signature: str) -> None:
    """Signatures of other versions and malformed texts neither raise nor hide the genuine signature."""
    assert _is_genuine(signature)


@pytest.mark.parametrize(
    "signature",
    [
        "",
        " ",
        "v1",
        "v1,",
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OA=",  # one character off
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OF=",  # the same bytes in base64 whose last bits are not zero
        _SIGNATURE.removeprefix("v1,"),
        _SIGNATURE.replace("v1,", "v1a,"),
        _SIGNATURE.replace("v1,", "v2,"),
        _SIGNATURE.rstrip("="),
        _SIGNATURE.lower(),
    ],
)
def test_any_deviation_from_the_signature_is_refused(signature: str) -> None:
    """A signature counts only if every character is right."""
    assert not _is_genuine(signature)


@given(_any_text)
def test_any_other_text_is_refused(text: str) -> None:
    """Any other text is refused without an exception."""
    assert not _is_genuine(text)


def test_a_signature_is_bound_to_id_time_and_body() -> None:
    """A signature does not verify another body, time, webhook id or secret."""
    assert not _is_genuine(_SIGNATURE, body=_BODY + b" ")
    assert not _is_genuine(_SIGNATURE, timestamp=_TIMESTAMP + 1)
    assert not verify_signature(_KEYS, _SIGNATURE, webhook_id="msg_2", timestamp=_TIMESTAMP, body=_BODY)
    assert not verify_signature([b"k" * 24], _SIGNATURE, webhook_id=_ID, timestamp=_TIMESTAMP, body=_BODY)
    assert not verify_signature([], _SIGNATURE, webhook_id=_ID, timestamp=_TIMESTAMP, body=_BODY)


def test_a_new_secret_is_valid_and_new() -> None:
    """A new secret is accepted, is as long as the digest, and is never made twice."""
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert {len(key) for secret in secrets for key in parse_secrets(secret)} == {32}


@given(st.lists(_secret_bytes, min_size=1, max_size=4), st.sampled_from([" ", "  ", "\n", "\t "]))
def test_secrets_are_parsed_in_their_order(keys: list[bytes], separator: str) -> None:
    """Each secret of a rotation gives its key, in their order, whatever space is between them."""
    assert parse_secrets(separator.join(map(_whsec, keys)) + separator) == tuple(keys)


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_no_secret_is_a_configuration_error(text: str) -> None:
    """An empty setting raises, so that no user believes that webhooks are signed."""
    with pytest.raises(ConfigurationError, match=r"SIGNING_SECRET holds no secret.*otel-step-hook secret"):
        parse_secrets(text)


_BAD = {
    "no prefix": "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "prefix in another case": "WHSEC_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "prefix alone": "whsec_",
    "of another kind": "whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "no padding": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwBr",
    "too much padding": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw====",
    "cut short": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS",
    "not base64": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLa!!",
    "base64url": "whsec_" + "_-_-" * 8,
    "not ASCII": "whsec_" + "\u00e9" * 32,
    "too short": _whsec(b"k" * 23),
    "too long": _whsec(b"k" * 65),
}


@pytest.mark.parametrize("bad", _BAD.values(), ids=_BAD.keys())
def test_a_bad_secret_is_reported_without_showing_it(bad: str) -> None:
    """The error says which secret is wrong and what to do, and neither it nor its causes show a secret."""
    with pytest.raises(
        ConfigurationError, match=r"SIGNING_SECRET: secret 2 of 2 is not .*otel-step-hook secret"
    ) as caught:
        parse_secrets(f"{_SECRET} {bad}")
    message = "".join(traceback.format_exception_only(caught.value)) + repr(caught.value.__cause__)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    for secret in (_SECRET, bad):
        assert secret.removeprefix("whsec_")[:8] not in message or secret == "whsec_"


@given(st.text(), st.text())
def test_the_comparison_in_constant_time_is_an_equality(one: str, other: str) -> None:
    """Comparing in constant time gives the same as ``==``."""
    assert equal_in_constant_time(one, other) == (one == other)
    assert equal_in_constant_time(one, one)
