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
import sys
import time
from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from otel_step_hook.delivery.signing import equal_in_constant_time, parse_secrets, verify_signature
from otel_step_hook.errors import ConfigurationError, VerificationError, hide_arguments
from otel_step_hook.incoming import (
    SIGNATURE_HEADERS,
    Body,
    Headers,
    ReceivedHeaders,
    body_bytes,
    header,
    received_headers,
)

_UNIX_SECONDS = re.compile(r"[0-9]{1,12}")  # ASCII digits only, until the year 33658
# A comma, with which WSGI servers and API Gateway join several values; a byte that is not UTF-8, as aiohttp reads it.
_NO_ID = re.compile("[,\\ud800-\\udfff]")
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


@hide_arguments
def verify(
    body: Body,
    headers: Headers,
    *,
    key: str | None = None,
    signing_secret: str | None = None,
    tolerance: float = 300.0,
    now: float | None = None,
    is_base64: bool = False,
    allow_unauthenticated: bool = False,
) -> ReceivedStep:
    """Return the step that a request reports, after the request has proved to be genuine.

    *body* is the request's body, byte for byte: bytes, bytearray, memoryview, or text; None is an empty one. With
    *is_base64* it is decoded first: an AWS Lambda function passes ``is_base64=event["isBase64Encoded"]``. *headers* are
    a mapping, pairs of name and value, a WSGI environ, or None; names may be in any case, names and values may be
    bytes, and a value may be a list of values. Several values of one header must not differ.

    With *key* (the sender's STEP_COMPLETE_KEY) the bearer token must match. With *signing_secret* (the sender's
    STEP_COMPLETE_SIGNING_SECRET: one or more `whsec_…`, separated by spaces) the Standard Webhooks signature must
    match, and its timestamp must be at most *tolerance* seconds before or after *now*, in unix seconds, which
    defaults to this machine's clock. With neither, nothing proves who sent the request, and *allow_unauthenticated*
    must be True. May be called from any thread.

    Raises `VerificationError` for any request that does not pass; answer with its *status_code*. Raises
    `ConfigurationError` for arguments that cannot be used, whatever the request: such as neither *key* nor
    *signing_secret*, because the variable that holds it is not set.
    """
    token = _token(key)
    secrets = _secrets(signing_secret)
    if token is None and secrets is None and allow_unauthenticated is not True:
        raise ConfigurationError(
            "neither key nor signing_secret is given; expected the sender's STEP_COMPLETE_KEY or "
            "STEP_COMPLETE_SIGNING_SECRET; set the variable that holds it, or pass allow_unauthenticated=True "
            "to accept a request from anybody"
        )
    moment = _seconds("now", time.time() if now is None else now)
    limit = _seconds("tolerance", tolerance)
    content, received = body_bytes(body, is_base64=is_base64), received_headers(headers)
    if token is not None:
        _check_token(header(received, "authorization"), token)
    if secrets is not None:
        _check_age(moment - _verified_timestamp(content, received, secrets), limit)
    return _parse(content, _webhook_id(received))


def _token(key: object) -> str | None:
    if key is None:
        return None
    token = _text("key", key).strip()  # HTTP removes space around a header's value
    if not token:
        raise ConfigurationError(
            "the key to verify with is empty; expected the sender's STEP_COMPLETE_KEY; "
            "pass it, or pass None to check nothing but the signature"
        )
    return token


def _secrets(signing_secret: object) -> tuple[bytes, ...] | None:
    return None if signing_secret is None else parse_secrets(_text("signing_secret", signing_secret))


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} is of type {type(value).__name__}; expected text; pass a str, or None")
    return value


def _seconds(name: str, value: object) -> float:
    if not isinstance(value, int | float):
        raise ConfigurationError(f"{name} is of type {type(value).__name__}; expected seconds; pass a number")
    if not 0 <= value <= sys.float_info.max:  # NaN is in no range
        raise ConfigurationError(f"{name} is negative, infinite or no number; expected seconds from 0; correct it")
    return value


def _check_token(authorization: str, expected: str) -> None:
    scheme, _, token = authorization.partition(" ")
    if not equal_in_constant_time(token.strip(), expected) or scheme.lower() != "bearer":
        raise VerificationError(
            f"the authorization header is {'wrong' if authorization else 'missing'}; expected "
            "'Bearer' and the key; set STEP_COMPLETE_KEY of the sender to the key of this receiver",
            "wrong_key" if authorization else "missing_header",
        )


def _verified_timestamp(body: bytes, received: ReceivedHeaders, secrets: tuple[bytes, ...]) -> int:
    webhook_id, timestamp, signature = values = [header(received, name) for name in SIGNATURE_HEADERS]
    if not all(values):
        missing = [name for name, value in zip(SIGNATURE_HEADERS, values, strict=True) if not value]
        raise VerificationError(
            f"missing headers: {', '.join(missing)}; expected a Standard Webhooks signature; "
            "set STEP_COMPLETE_SIGNING_SECRET of the sender, and let no proxy drop its headers",
            "missing_header",
        )
    if not _UNIX_SECONDS.fullmatch(timestamp):
        raise VerificationError(
            "webhook-timestamp is no unix time; expected digits, in seconds; check what sends here", "malformed_header"
        )
    if not verify_signature(secrets, signature, webhook_id=webhook_id, timestamp=int(timestamp), body=body):
        raise VerificationError(
            "no signature in webhook-signature matches; expected 'v1,' and the HMAC-SHA256 of id, timestamp "
            "and body; give sender and receiver the same secret, and verify the body's exact bytes",
            "signature_mismatch",
        )
    return int(timestamp)


def _check_age(age: float, tolerance: float) -> None:
    if abs(age) > tolerance:
        raise VerificationError(
            f"webhook-timestamp is {abs(age):.0f} s {'old' if age > 0 else 'ahead'}; expected at most "
            f"{tolerance:.0f} s; set the clocks of both machines, or refuse the replay",
            "timestamp_too_old" if age > 0 else "timestamp_in_future",
        )


def _webhook_id(received: ReceivedHeaders) -> str | None:
    webhook_id = header(received, "webhook-id")
    if _NO_ID.search(webhook_id):
        raise VerificationError(
            "webhook-id holds a comma, as several ids do, or what is no UTF-8; expected one id; check what sends here",
            "malformed_header",
        )
    return webhook_id or None


def _parse(body: bytes, webhook_id: str | None) -> ReceivedStep:
    try:
        return ReceivedStep.model_validate({**_OBJECT.validate_json(body), "webhook_id": webhook_id})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise VerificationError(
            f"the body is no step ({where}: {first['msg']}); expected a JSON object such as "
            '{"step_id": "step-1"}; check what sends here',
            "bad_body",
        ) from None
