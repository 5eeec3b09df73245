"""Verification of step webhooks, for programs that receive them.

A receiver in FastAPI::

    @app.post("/steps")
    async def step_ended(request: Request) -> None:
        try:
            step = verify(await request.body(), request.headers, key=KEY, signing_secret=SECRET)
        except VerificationError as error:
            raise HTTPException(error.status_code, str(error)) from None
"""

import re
import time
from collections.abc import Mapping
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from otel_step_hook.delivery.signing import equal_in_constant_time, parse_secrets, verify_signature
from otel_step_hook.errors import ConfigurationError, VerificationError

_SIGNATURE_HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")
_UNIX_SECONDS = re.compile(r"[0-9]{1,12}")  # ASCII digits only, until the year 33658
_OBJECT = TypeAdapter(dict[str, JsonValue])


class ReceivedStep(BaseModel):
    """A step that has ended, as its webhook reports it. Other members of the body are ignored.

    *type*, *timestamp* and *data* are None unless the sender has STEP_COMPLETE_PAYLOAD=full. *webhook_id* is the
    value of the header ``webhook-id``, never a member of the body; None without that header. It is the same for
    every attempt to deliver one event: keep the ids you have seen, and skip an event that arrives twice.
    """

    model_config = ConfigDict(frozen=True)

    step_id: str = Field(min_length=1)
    type: str | None = None
    timestamp: datetime | None = None
    data: dict[str, JsonValue] | None = None
    webhook_id: str | None = None


def verify(
    body: bytes,
    headers: Mapping[str, str],
    *,
    key: str | None = None,
    signing_secret: str | None = None,
    tolerance: float = 300.0,
    now: float | None = None,
) -> ReceivedStep:
    """Return the step that a request reports, after the request has proved to be genuine.

    *body* is the request's body, byte for byte; the case of the names in *headers* does not matter. With *key*
    (the sender's STEP_COMPLETE_KEY) the bearer token must match. With *signing_secret* (the sender's
    STEP_COMPLETE_SIGNING_SECRET: one or more `whsec_…`, separated by spaces) the Standard Webhooks signature must
    match, and its timestamp must be at most *tolerance* seconds before or after *now*, in unix seconds, which
    defaults to this machine's clock. With neither, nothing proves who sent the request. May be called from any
    thread.

    Raises `VerificationError` for any request that does not pass; answer with its *status_code*. Raises
    `ConfigurationError` for a *key* or *signing_secret* that no request could match.
    """
    received = {name.lower(): value for name, value in headers.items()}
    if key is not None:
        _check_key(received.get("authorization", ""), key)
    if signing_secret is not None:
        moment = time.time() if now is None else now
        signed_at = _verified_timestamp(body, received, parse_secrets(signing_secret))
        _check_age(moment - signed_at, tolerance)
    return _parse(body, received.get("webhook-id"))


def _check_key(authorization: str, key: str) -> None:
    expected = key.strip()  # HTTP removes space around a header's value
    if not expected:
        raise ConfigurationError(
            "the key to verify with is empty; expected the sender's STEP_COMPLETE_KEY; "
            "pass it, or pass None to check no key"
        )
    scheme, _, token = authorization.partition(" ")
    if not equal_in_constant_time(token.strip(), expected) or scheme.lower() != "bearer":
        raise VerificationError(
            f"the authorization header is {'wrong' if authorization else 'missing'}; expected "
            "'Bearer' and the key; set STEP_COMPLETE_KEY of the sender to the key of this receiver"
        )


def _verified_timestamp(body: bytes, received: Mapping[str, str], secrets: tuple[bytes, ...]) -> int:
    missing = [name for name in _SIGNATURE_HEADERS if not received.get(name)]
    if missing:
        raise VerificationError(
            f"missing headers: {', '.join(missing)}; expected a Standard Webhooks signature; "
            "set STEP_COMPLETE_SIGNING_SECRET of the sender, and let no proxy drop its headers"
        )
    webhook_id, timestamp, signature = (received[name] for name in _SIGNATURE_HEADERS)
    if not _UNIX_SECONDS.fullmatch(timestamp):
        raise VerificationError("webhook-timestamp is no unix time; expected digits, in seconds; check what sends here")
    if not verify_signature(secrets, signature, webhook_id=webhook_id, timestamp=int(timestamp), body=body):
        raise VerificationError(
            "no signature in webhook-signature matches; expected 'v1,' and the HMAC-SHA256 of id, timestamp "
            "and body; give sender and receiver the same secret, and verify the body's exact bytes"
        )
    return int(timestamp)


def _check_age(age: float, tolerance: float) -> None:
    if abs(age) > tolerance:
        raise VerificationError(
            f"webhook-timestamp is {abs(age):.0f} s {'old' if age > 0 else 'ahead'}; expected at most "
            f"{tolerance:.0f} s; set the clocks of both machines, or refuse the replay"
        )


def _parse(body: bytes, webhook_id: str | None) -> ReceivedStep:
    try:
        return ReceivedStep.model_validate({**_OBJECT.validate_json(body), "webhook_id": webhook_id})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise VerificationError(
            f"the body is no step ({where}: {first['msg']}); expected a JSON object such as "
            '{"step_id": "step-1"}; check what sends here',
            status_code=400,
        ) from None
