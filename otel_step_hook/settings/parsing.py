"""Turns what is given for a setting into its value.

The message of a ValueError raised here continues a sentence that begins with the setting's name: "is not text".
"""

import difflib
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sized
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from otel_step_hook.delivery.metadata_hosts import is_metadata_host
from otel_step_hook.delivery.private_addresses import is_private_address
from otel_step_hook.delivery.signing import parse_secrets
from otel_step_hook.steps.plugins import profile_names

PREFIX = "STEP_COMPLETE_"

BLANKS = " \t\r\n"  # what is removed around each value: secrets from Kubernetes and files end in a line break
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 5.6.2: a header's name
_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")  # a value that HTTP carries unchanged: visible ASCII, spaces only inside
_SPACES = re.compile(r"[ \t\r\n]+")
_JOINED = re.compile(",https?://", re.IGNORECASE)
_HOST, _HASH = 57, 6  # characters of the two parts of a name, which has up to 64
_OWN_HEADERS = frozenset(
    {
        *("host", "connection", "transfer-encoding", "content-length", "content-type", "accept", "accept-encoding"),
        *("user-agent", "traceparent", "tracestate", "webhook-id", "webhook-timestamp", "webhook-signature"),
    }
)


def without_blanks(value: object) -> object:
    """Return *value* without blanks around it, if it is text or a `SecretStr`; any other value unchanged.

    Raises ValueError for quotes around it.
    """
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not isinstance(text, str):
        return value
    text = text.strip(BLANKS)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        raise ValueError("has quotes around its value, as Docker leaves those of a .env file: remove them")
    return SecretStr(text) if isinstance(value, SecretStr) else text


def read_text(value: object) -> str:
    """The text of *value*, which may be a `SecretStr`. Raises ValueError for anything else."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not isinstance(text, str):
        raise ValueError("is not text")  # noqa: TRY004 -- pydantic turns a ValueError into its own error
    return text


def read_url(value: object) -> str | None:
    """The absolute http or https URL in *value*; None for None and for an empty text.

    Raises ValueError for any other text, and for the URL of a cloud metadata service.
    """
    url = "" if value is None else read_text(value)
    if not url:
        return None
    _check_characters(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("has a host or a port that cannot be read") from None
    if not parts.scheme or "://" not in url:
        raise ValueError("has no scheme")
    if parts.scheme not in {"http", "https"}:
        raise ValueError("has a scheme that is neither https nor http")
    if not host:
        raise ValueError("has no host")
    if port == 0:
        raise ValueError("has port 0, on which nothing can be reached")
    if "%" in host and ":" not in host:  # a proxy would decode it, and go where nobody has looked
        raise ValueError("has a percent sign in its host, where only the zone of an IPv6 address has one")
    if is_metadata_host(host):
        raise ValueError("points to a cloud metadata service, which is refused")
    return url


def _check_characters(url: str) -> None:
    if re.search(r"[\s\x00-\x1f\x7f\\]", url):
        raise ValueError("holds a space, a backslash or a control character")
    if re.search(r"[\ud800-\udfff]", url):  # surrogates: bytes of the environment that are not UTF-8
        raise ValueError("holds what is no UTF-8")
    if _JOINED.search(url):
        raise ValueError("holds several URLs with a comma between")


def read_one_url(value: object) -> str:
    """Like `read_url`, but raises ValueError for None and for an empty text."""
    url = read_url(value)
    if url is None:
        raise ValueError("is not set")
    return url


def read_urls(value: object) -> str | None:
    """One or several URLs, separated by one space and without repetitions; None for None and for an empty text."""
    urls = [] if value is None else [url for url in _SPACES.split(read_text(value)) if url]
    for number, url in enumerate(urls, start=1):
        try:
            _check_comma(url, is_last=number == len(urls))
            read_url(url)
        except ValueError as error:
            raise ValueError(f"{error}{_which(number, urls)}") from None
    return " ".join(dict.fromkeys(urls)) or None


def _which(number: int, urls: Sized) -> str:
    return f" (URL {number} of {len(urls)})" if len(urls) > 1 else ""


def check_public(webhook: str) -> None:
    """Raise ValueError if one of the URLs of *webhook* has a literal address that is not public as its host."""
    urls = webhook.split()
    for number, url in enumerate(urls, start=1):
        if is_private_address(urlsplit(url).hostname or ""):
            raise ValueError(f"points to an address that is not public{_which(number, urls)}")


def _check_comma(url: str, *, is_last: bool) -> None:
    if _JOINED.search(url) or (url.endswith(",") and not is_last):
        raise ValueError("holds a comma between URLs: separate them by spaces; a comma inside of one is %2C")


def without_user_info(url: str) -> str:
    """*url* without user information, which is sent as a header, and without fragment, which is not sent at all."""
    scheme, _, rest = url.partition("#")[0].partition("://")
    authority = re.match("[^/?]*", rest)[0]  # type: ignore[index]  # -- matches any text
    return f"{scheme}://{rest.removeprefix(authority[: authority.rfind('@') + 1])}"


def name_from_url(url: str) -> str:
    """A name for the endpoint with this *url* that shows no secret: the host and a short hash."""
    host = re.sub("[^A-Za-z0-9_.-]", "-", urlsplit(url).hostname or "")[:_HOST]
    return f"{host}-{hashlib.sha256(without_user_info(url).encode()).hexdigest()[:_HASH]}"


def read_key(value: object) -> str | None:
    """The key; None for None. Raises ValueError for an empty key, and for one that HTTP cannot carry."""
    if value is None:
        return None
    key = read_text(value)
    if not key:
        raise ValueError("is empty")
    if not _VALUE.fullmatch(key):
        raise ValueError("holds what HTTP cannot carry")
    return key


def read_signing_secret(value: object) -> object:
    """Return *value*. Raises ConfigurationError if it holds a ``whsec_…`` secret that cannot be used."""
    if value is not None:
        parse_secrets(read_text(value))
    return value


def read_path(value: object) -> object:
    """Return a path object as text, None for an empty text, and any other *value* unchanged.

    Raises ValueError for a NUL.
    """
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(path, str) and "\0" in path:
        raise ValueError("holds a NUL")
    return None if path == "" else path


def check_file(path: str | None) -> str | None:
    """Return *path*. Raises ValueError for the text of a PEM file, which may be a private key and is not shown."""
    if path is not None and ("-----BEGIN" in path or "\n" in path or "\r" in path):
        raise ValueError("holds a line break or the text of a PEM file")
    return path


def read_number(value: object) -> object:
    """Return *value*. Raises ValueError for a bool, which Python counts as 0 or 1."""
    if isinstance(value, bool):
        raise ValueError(f"is {value}")  # noqa: TRY004 -- pydantic turns a ValueError into its own error
    return value


def read_choice(value: object) -> object:
    """Return a text in lower case, as the values of settings with a few known ones are; any other *value* unchanged."""
    return value.lower() if isinstance(value, str) else value


def read_list(value: object) -> object:
    """Return the names in *value*, a text or a collection, in lower case; any other *value* unchanged.

    Raises ValueError if there is none.
    """
    if isinstance(value, str):
        value = tuple(name for name in re.split(r"[,\s]+", value) if name)
    if isinstance(value, (list, tuple, set, frozenset)):
        value = tuple(read_choice(name.strip(BLANKS) if isinstance(name, str) else name) for name in value)
    if isinstance(value, Sized) and not value:
        raise ValueError("names none")
    return value


def check_profiles(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return *names*. Raises ValueError for a name without a profile."""
    known = profile_names()
    for name in names:
        if name not in known:
            raise ValueError(f"names {name!r}, which is no profile")
    return names


def read_headers(value: object) -> object:
    """The pairs of a mapping or of a text in the format of ``OTEL_EXPORTER_OTLP_HEADERS``; empty for None."""
    if value is None:
        return ()
    if isinstance(value, Mapping):
        return tuple((name, text.strip(BLANKS) if isinstance(text, str) else text) for name, text in value.items())
    if isinstance(value, str):
        return tuple(_pair(item) for item in value.split(",") if item.strip())
    return value


def _pair(item: str) -> tuple[str, str]:
    name, equals, text = item.partition("=")
    if not equals:
        raise ValueError("has an entry without '='")
    return unquote(name.strip()), unquote(text.strip())


def check_headers(pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Return *pairs* with names in lower case.

    Raises ValueError for one that HTTP cannot carry, or whose name every webhook sets itself.
    """
    for name, text in pairs:
        if not _TOKEN.fullmatch(name):
            raise ValueError("has a name that HTTP cannot carry")
        if name.lower() in _OWN_HEADERS:
            raise ValueError(f"sets {name.lower()}, which every webhook has of its own")
        if text and not _VALUE.fullmatch(text):
            raise ValueError(f"has a value for {name} that HTTP cannot carry")
    return tuple((name.lower(), text) for name, text in pairs)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean …?`` with the nearest of *known*, or nothing."""
    # Compared without the prefix, which would make any two names similar.
    bare = {candidate.upper().removeprefix(PREFIX): candidate for candidate in known}
    near = difflib.get_close_matches(name.upper().removeprefix(PREFIX), bare, n=1, cutoff=0.5)
    return f"; did you mean {bare[near[0]]}?" if near else ""
