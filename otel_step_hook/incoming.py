"""Brings a request's body and headers, in the forms in which web frameworks have them, into one form. Pure."""

import base64
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from otel_step_hook.errors import ConfigurationError, VerificationError

Body = bytes | bytearray | memoryview | str | None
SIGNATURE_HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")
_NAMES = frozenset({"authorization", *SIGNATURE_HEADERS})
_BODY = (
    "expected bytes, bytearray, memoryview or text; pass the body as it arrived: read, awaited where that is needed, "
    "and not parsed"
)
_HEADERS = "expected a mapping, or pairs of name and value; pass the headers of the web framework, or the WSGI environ"


class HasItems(Protocol):
    """A mapping of headers. Those of some frameworks are no `Mapping`, and have a name several times."""

    def items(self) -> Iterable[tuple[object, object]]:
        """The pairs of name and value."""
        ...


Headers = HasItems | Iterable[tuple[object, object] | list[str] | list[bytes]] | None
ReceivedHeaders = Mapping[str, set[str]]


def body_bytes(body: Body, *, is_base64: bool) -> bytes:
    """Return the bytes of *body*; none for None, which AWS Lambda has for a request without a body.

    With *is_base64* they are decoded. Raises `ConfigurationError` for a *body* of another type, and
    `VerificationError` for one that is no base64.
    """
    if body is None:
        content = b""
    elif isinstance(body, str):
        content = body.encode("utf-8", "surrogatepass")  # lone surrogates are refused later, as what is no JSON
    elif isinstance(body, bytes | bytearray | memoryview):
        content = bytes(body)
    else:
        raise ConfigurationError(f"the body is of type {type(body).__name__}; {_BODY}")
    try:
        return base64.b64decode(content, validate=True) if is_base64 else content
    except ValueError:
        raise VerificationError(
            "the body is no base64; expected it because of is_base64; set that to the event's isBase64Encoded",
            "bad_body",
        ) from None


def received_headers(headers: Headers) -> ReceivedHeaders:
    """Return by name, in lower case, the different values of each header that `verify` looks at.

    Raises `ConfigurationError` for *headers* of another form.
    """
    found: dict[str, set[str]] = {}
    for name, value in _pairs(headers):
        known = _name(name)
        if known in _NAMES:
            found.setdefault(known, set()).update(_texts(known, value))
    return found


def header(received: ReceivedHeaders, name: str) -> str:
    """Return the value of the header *name*, empty without it. Raises `VerificationError` for several that differ."""
    values = received.get(name, set())
    if len(values) > 1:
        raise VerificationError(
            f"the request has {len(values)} different values of {name}; expected one; "
            "check what sends here, and which headers a proxy adds",
            "malformed_header",
        )
    return next(iter(values), "")


def _pairs(headers: object) -> Iterator[tuple[object, object]]:
    items = getattr(headers, "items", None)
    pairs = items() if callable(items) else () if headers is None else headers
    if isinstance(pairs, str | bytes) or not isinstance(pairs, Iterable):
        raise ConfigurationError(f"the headers are of type {type(headers).__name__}; {_HEADERS}")
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:  # noqa: PLR2004 -- a pair
            raise ConfigurationError(f"the headers, of type {type(headers).__name__}, hold no pairs; {_HEADERS}")
        yield pair[0], pair[1]


def _name(name: object) -> str:
    text = name.decode("latin-1") if isinstance(name, bytes) else name
    if not isinstance(text, str):
        raise ConfigurationError(f"the name of a header is of type {type(name).__name__}; {_HEADERS}")
    if text.startswith("HTTP_"):  # in a WSGI environ (PEP 3333)
        text = text.removeprefix("HTTP_").replace("_", "-")
    return text.lower()


def _texts(name: str, value: object) -> Iterator[str]:
    """The values of a header: one, a list of them, as in AWS Lambda's ``multiValueHeaders``, or none for None."""
    for one in value if isinstance(value, tuple | list) else () if value is None else (value,):
        text = one.decode("latin-1") if isinstance(one, bytes) else one  # as ASGI's frameworks decode them
        if not isinstance(text, str):
            raise ConfigurationError(
                f"the header {name} is of type {type(one).__name__}; expected text or bytes; pass it as it arrived"
            )
        yield text
