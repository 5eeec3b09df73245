"""Owns Standard Webhooks signatures, version v1: https://www.standardwebhooks.com (specification 1.0.0)."""

import base64
import hmac
import re
from collections.abc import Sequence
from secrets import token_bytes

from otel_step_hook.errors import ConfigurationError

_PREFIX = "whsec_"
# Base64 by the letter: what Python's strict decoder lets pass differs between its versions.
_SECRET = re.compile(_PREFIX + "((?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)")
_MIN_BYTES, _MAX_BYTES = 24, 64  # what the specification allows
_NEW_BYTES = 32  # as long as the digest


def new_secret() -> str:
    """Return a fresh random secret, ready for STEP_COMPLETE_SIGNING_SECRET."""
    return _PREFIX + base64.b64encode(token_bytes(_NEW_BYTES)).decode()


def parse_secrets(text: str) -> tuple[bytes, ...]:
    """Return the keys of one or more `whsec_…` secrets, separated by spaces, in their order.

    More than one stand there during a rotation. ConfigurationError, which never shows a secret, if there is
    none, or if one is not `whsec_` and the base64, with padding, of 24 to 64 bytes.
    """
    words = text.split()
    if not words:
        raise ConfigurationError(
            "STEP_COMPLETE_SIGNING_SECRET holds no secret; expected 'whsec_' followed by base64; "
            "unset it, or make a secret with: otel-step-hook secret"
        )
    return tuple(_parse(word, f"secret {n} of {len(words)}") for n, word in enumerate(words, start=1))


def sign(secrets: Sequence[bytes], *, webhook_id: str, timestamp: int, body: bytes) -> str:
    """Return the value of `webhook-signature`: one `v1,<base64>` for each of *secrets*, separated by spaces.

    *timestamp* is the attempt's, in unix seconds. *webhook_id* holds no dot, as the specification demands.
    """
    content = b".".join((_utf8(webhook_id), _utf8(str(timestamp)), body))
    digests = (hmac.digest(secret, content, "sha256") for secret in secrets)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def verify_signature(secrets: Sequence[bytes], signature: str, *, webhook_id: str, timestamp: int, body: bytes) -> bool:
    """Tell, in constant time, whether any of *secrets* made any of the signatures in *signature*.

    *signature* is the header's value. What is no v1 signature in it is passed over: other versions, junk.
    """
    expected = sign(secrets, webhook_id=webhook_id, timestamp=timestamp, body=body).split()
    return any(equal_in_constant_time(ours, theirs) for ours in expected for theirs in signature.split())


def equal_in_constant_time(one: str, other: str) -> bool:
    """Compare two texts, of any characters, in a time that does not tell where they differ."""
    return hmac.compare_digest(_utf8(one), _utf8(other))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # a header may hold anything, and must not raise


def _parse(word: str, which: str) -> bytes:
    match = _SECRET.fullmatch(word)
    key = base64.b64decode(match[1]) if match else b""
    if not _MIN_BYTES <= len(key) <= _MAX_BYTES:
        raise ConfigurationError(
            f"STEP_COMPLETE_SIGNING_SECRET: {which} is not 'whsec_' followed by the base64 of "
            f"{_MIN_BYTES} to {_MAX_BYTES} bytes; make one with: otel-step-hook secret"
        )
    return key
