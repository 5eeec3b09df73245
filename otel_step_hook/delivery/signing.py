"""Standard Webhooks signatures, version v1: https://www.standardwebhooks.com (specification 1.0.0)."""

import base64
import hmac
import re
from collections.abc import Sequence
from secrets import token_bytes

from otel_step_hook.errors import ConfigurationError

_PREFIX = "whsec_"
# Base64, spelled out: Python's strict decoder accepts different texts in different versions.
_SECRET = re.compile(_PREFIX + "((?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)")
_MIN_BYTES, _MAX_BYTES = 24, 64  # what the specification allows
_NEW_BYTES = 32  # as long as the digest


def new_secret() -> str:
    """Return a new random secret for STEP_COMPLETE_SIGNING_SECRET."""
    return _PREFIX + base64.b64encode(token_bytes(_NEW_BYTES)).decode()


def parse_secrets(text: str) -> tuple[bytes, ...]:
    """Return the keys of one or more `whsec_…` secrets, separated by spaces, in their order.

    There are several during a rotation. Raises `ConfigurationError`, which never shows a secret, if there is none,
    or if one is not `whsec_` and the base64, with padding, of 24 to 64 bytes.
    """
    secrets = text.split()
    if not secrets:
        raise ConfigurationError(
            "STEP_COMPLETE_SIGNING_SECRET holds no secret; expected 'whsec_' followed by base64; "
            "unset it, or make a secret with: otel-step-hook secret"
        )
    return tuple(_parse(secret, f"secret {n} of {len(secrets)}") for n, secret in enumerate(secrets, start=1))


def sign(secrets: Sequence[bytes], *, webhook_id: str, timestamp: int, body: bytes) -> str:
    """Return the value of `webhook-signature`: one `v1,<base64>` for each of *secrets*, separated by spaces.

    *timestamp* is that of the attempt, in unix seconds. *webhook_id* has no dot, as the specification demands.
    """
    content = b".".join((_utf8(webhook_id), _utf8(str(timestamp)), body))
    digests = (hmac.digest(secret, content, "sha256") for secret in secrets)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def verify_signature(secrets: Sequence[bytes], signature: str, *, webhook_id: str, timestamp: int, body: bytes) -> bool:
    """Whether any of *secrets* made any of the signatures in *signature*, which are compared in constant time.

    *signature* is the header's value. Signatures of other versions and invalid parts of it are ignored.
    """
    expected = sign(secrets, webhook_id=webhook_id, timestamp=timestamp, body=body).split()
    return any(equal_in_constant_time(ours, theirs) for ours in expected for theirs in signature.split())


def equal_in_constant_time(one: str, other: str) -> bool:
    """Whether two texts, of any characters, are equal; the time it takes does not depend on where they differ."""
    return hmac.compare_digest(_utf8(one), _utf8(other))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # a header may hold anything, and must not raise


def _parse(secret: str, which: str) -> bytes:
    match = _SECRET.fullmatch(secret)
    key = base64.b64decode(match[1]) if match else b""
    if not _MIN_BYTES <= len(key) <= _MAX_BYTES:
        raise ConfigurationError(
            f"STEP_COMPLETE_SIGNING_SECRET: {which} is not 'whsec_' followed by the base64 of "
            f"{_MIN_BYTES} to {_MAX_BYTES} bytes; make one with: otel-step-hook secret"
        )
    return key
