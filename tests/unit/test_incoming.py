"""The forms in which web frameworks have a request: `verify` takes each, and refuses what is ambiguous."""

import base64
import io
import json
from collections.abc import Mapping
from http.client import parse_headers
from types import SimpleNamespace

import pytest
from aiohttp.test_utils import make_mocked_request
from starlette.requests import Request as StarletteRequest
from werkzeug import Request as WerkzeugRequest
from werkzeug.test import EnvironBuilder

from otel_step_hook.delivery.signing import parse_secrets, sign
from otel_step_hook.errors import ConfigurationError, VerificationError
from otel_step_hook.receiver import ReceivedStep, verify

_NOW = 1_700_000_000
_KEY = "sekret-key"
_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
_BODY = '{"step_id": "Schritt ü"}'.encode()
_STEP = ReceivedStep(step_id="Schritt ü", webhook_id="msg_1")
_HEADERS = {
    "Authorization": f"Bearer {_KEY}",
    "Webhook-Id": "msg_1",
    "Webhook-Timestamp": str(_NOW),
    "Webhook-Signature": sign(parse_secrets(_SECRET), webhook_id="msg_1", timestamp=_NOW, body=_BODY),
}
_RAW = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]


def _verify(body: object, headers: object, *, is_base64: bool = False) -> ReceivedStep:
    return verify(
        body,  # type: ignore[arg-type]  # -- any object is what is tested
        headers,  # type: ignore[arg-type]  # -- the same
        key=_KEY,
        signing_secret=_SECRET,
        now=_NOW,
        is_base64=is_base64,
    )


def _environ() -> Mapping[str, object]:
    return EnvironBuilder(method="POST", data=_BODY, headers=list(_HEADERS.items())).get_environ()


# The body


@pytest.mark.parametrize(
    "body", [_BODY, bytearray(_BODY), memoryview(_BODY), memoryview(b"-" + _BODY)[1:], _BODY.decode()]
)
def test_a_body_of_bytes_or_text_is_read(body: object) -> None:
    """Bytes in any form are read as they are, and text as UTF-8."""
    assert _verify(body, _HEADERS) == _STEP


@pytest.mark.parametrize("body", [base64.b64encode(_BODY), base64.b64encode(_BODY).decode()])
def test_a_body_in_base64_is_decoded(body: object) -> None:
    """API Gateway passes a body that it takes for binary in base64; what was signed is the decoded body."""
    assert _verify(body, _HEADERS, is_base64=True) == _STEP
    with pytest.raises(VerificationError) as caught:
        _verify(body, _HEADERS)
    assert caught.value.reason == "signature_mismatch"


@pytest.mark.parametrize("body", ["{}", "e", "ü", b"\xff"])
def test_a_body_that_is_no_base64_is_a_bad_request(body: object) -> None:
    """A body that cannot be decoded is refused with a sentence."""
    with pytest.raises(VerificationError, match=r"the body is no base64; expected .*; set that to") as caught:
        _verify(body, _HEADERS, is_base64=True)
    assert (caught.value.reason, caught.value.status_code) == ("bad_body", 400)


@pytest.mark.parametrize("body", [None, "", "\ud800"])
def test_a_body_without_json_is_a_bad_request(body: str | None) -> None:
    """No body, as Lambda has it, and text that is no UTF-8 are refused for the request's sake, not the receiver's."""
    with pytest.raises(VerificationError) as caught:
        verify(body, None, allow_unauthenticated=True)
    assert caught.value.reason == "bad_body"


@pytest.mark.parametrize("body", [{"step_id": "SEKRET"}, ["SEKRET"], 5, io.BytesIO(_BODY), object()])
def test_another_body_is_a_mistake_of_the_receiver(body: object) -> None:
    """A body that is parsed already, or not read yet, raises a sentence that shows none of it."""
    with pytest.raises(
        ConfigurationError, match=rf"the body is of type {type(body).__name__}; expected .*; pass"
    ) as caught:
        _verify(body, _HEADERS)
    assert "SEKRET" not in str(caught.value)


# The headers


@pytest.mark.parametrize(
    "headers",
    [
        {name.upper(): value for name, value in _HEADERS.items()},
        {name.encode(): value.encode() for name, value in _HEADERS.items()},
        {name: [value] for name, value in _HEADERS.items()},
        {name: (value, value.encode()) for name, value in _HEADERS.items()},
        list(_HEADERS.items()),
        tuple([name, value] for name, value in _HEADERS.items()),
        (pair for pair in _RAW),
        _HEADERS | {"x-other": 5},
    ],
    ids=["upper", "bytes", "lists", "tuples", "pairs", "lists of two", "generator", "other headers"],
)
def test_headers_of_any_form_are_read(headers: object) -> None:
    """A mapping or pairs, of text or bytes, in any case; a value may be a list. Other headers do not matter."""
    assert _verify(_BODY, headers) == _STEP


def test_a_flask_request_can_be_verified() -> None:
    """Werkzeug's headers, which are those of Flask, are no `Mapping`."""
    request = WerkzeugRequest(dict(_environ()))
    assert _verify(request.get_data(), request.headers) == _STEP


def test_a_wsgi_environ_can_be_verified() -> None:
    """The names of headers in a WSGI environ, and in Django's `request.META`, are those of CGI."""
    environ = _environ()
    assert "HTTP_WEBHOOK_ID" in environ
    assert _verify(_BODY, environ) == _STEP


def test_a_starlette_request_can_be_verified() -> None:
    """The headers of Starlette and FastAPI, and the pairs of bytes of any ASGI server."""
    scope = {"type": "http", "method": "POST", "path": "/", "headers": _RAW}
    assert _verify(_BODY, StarletteRequest(scope).headers) == _STEP
    assert _verify(_BODY, scope["headers"]) == _STEP


def test_an_aiohttp_request_can_be_verified() -> None:
    """The headers of aiohttp are a mapping that has a name several times."""
    assert _verify(_BODY, make_mocked_request("POST", "/", headers=_HEADERS).headers) == _STEP


def test_a_request_of_http_server_can_be_verified() -> None:
    """The headers of `http.server` are a `Message`."""
    head = "".join(f"{name}: {value}\r\n" for name, value in _HEADERS.items())
    assert _verify(_BODY, parse_headers(io.BytesIO(f"{head}\r\n".encode()))) == _STEP


def test_an_event_of_aws_lambda_can_be_verified() -> None:
    """API Gateway's events, in the two formats that AWS documents, survive JSON as Lambda's runtime reads it."""
    one: dict[str, object] = {
        "version": "1.0",
        "headers": _HEADERS,
        "multiValueHeaders": {name: [value] for name, value in _HEADERS.items()},
        "body": _BODY.decode(),
        "isBase64Encoded": False,
    }
    two = {
        "version": "2.0",
        "headers": {name.lower(): value for name, value in _HEADERS.items()},
        "body": base64.b64encode(_BODY).decode(),
        "isBase64Encoded": True,
    }
    for event, headers in ((one, "multiValueHeaders"), (one, "headers"), (two, "headers")):
        read = json.loads(json.dumps(event))
        assert _verify(read["body"], read[headers], is_base64=read["isBase64Encoded"]) == _STEP


@pytest.mark.parametrize("headers", [None, {}, [], {"authorization": None}, {"authorization": []}])
def test_no_headers_are_missing_headers(headers: object) -> None:
    """None, as some event sources have it, is a request without headers."""
    with pytest.raises(VerificationError) as caught:
        _verify(_BODY, headers)
    assert caught.value.reason == "missing_header"


@pytest.mark.parametrize("name", list(_HEADERS))
@pytest.mark.parametrize("other", ["other", ""])
def test_values_of_one_header_that_differ_are_refused(name: str, other: str) -> None:
    """Neither the first nor the last of several values is taken, in whatever form they come."""
    pairs = [*_HEADERS.items(), (name.lower(), other)]
    head = "".join(f"{one}: {value}\r\n" for one, value in pairs)
    forms: list[object] = [
        pairs,
        reversed(pairs),
        _HEADERS | {name: [_HEADERS[name], other]},
        _HEADERS | {name.lower(): other},
        _HEADERS | {f"HTTP_{name.upper().replace('-', '_')}": other},
        StarletteRequest(
            {"type": "http", "headers": [(one.lower().encode(), two.encode()) for one, two in pairs]}
        ).headers,
        parse_headers(io.BytesIO(f"{head}\r\n".encode())),
    ]
    for headers in forms:
        with pytest.raises(VerificationError, match=rf"2 different values of {name.lower()}; expected one; ") as caught:
            _verify(_BODY, headers)
        assert (caught.value.reason, caught.value.status_code) == ("malformed_header", 401)


def test_a_webhook_id_is_never_chosen_from_several() -> None:
    """The id by which a receiver knows a repetition is refused in two values without a signature, too."""
    with pytest.raises(VerificationError) as caught:
        verify(_BODY, [("webhook-id", "msg_1"), ("webhook-id", "msg_2")], allow_unauthenticated=True)
    assert caught.value.reason == "malformed_header"


def test_equal_values_of_one_header_are_one() -> None:
    """A proxy that repeats a header changes nothing."""
    assert _verify(_BODY, [*_HEADERS.items(), *_RAW]) == _STEP


@pytest.mark.parametrize(
    ("headers", "what"),
    [
        ("authorization: SEKRET", "the headers are of type str"),
        (b"authorization: SEKRET", "the headers are of type bytes"),
        (5, "the headers are of type int"),
        (SimpleNamespace(items=5), "the headers are of type SimpleNamespace"),
        (SimpleNamespace(items=lambda: None), "the headers are of type SimpleNamespace"),
        (["authorization", "SEKRET"], "the headers, of type list, hold no pairs"),
        ([("authorization", "Bearer", "SEKRET")], "the headers, of type list, hold no pairs"),
        (["ab", "cd"], "the headers, of type list, hold no pairs"),
        ({5: "SEKRET"}, "the name of a header is of type int"),
        ({"webhook-timestamp": 5}, "the header webhook-timestamp is of type int"),
        ({"authorization": [["SEKRET"]]}, "the header authorization is of type list"),
    ],
)
def test_other_headers_are_a_mistake_of_the_receiver(headers: object, what: str) -> None:
    """The sentence says what came, and shows none of it."""
    with pytest.raises(ConfigurationError, match=rf"^{what}; expected .*; pass ") as caught:
        _verify(_BODY, headers)
    assert "SEKRET" not in str(caught.value)
