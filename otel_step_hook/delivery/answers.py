"""What a receiver's answer says, for a log line: never a secret, even where the receiver repeats one. Pure."""

import base64
import contextlib
import html
import json
import math
import re
from collections.abc import Iterator
from urllib.parse import quote, unquote, unquote_plus, urlsplit

from otel_step_hook.delivery.model import Endpoint, shown_origin
from otel_step_hook.delivery.retry import AttemptResult

_SHOWN = 200  # characters of a receiver's sentence in a line
_SENTENCE = 1000  # characters; a longer line is no sentence
_NAMES = ("error", "message", "detail")  # of the text in an answer of JSON
_TITLE = re.compile(r"<title[^<>]*>([^<]*)</title", re.IGNORECASE)
# As headers have them, and not "token expired".
_CREDENTIALS = r"\b(?:bearer|basic|digest|token)\s+(?=\S*[0-9])\S{6,}|whsec_\S+|\bv1a?,\S+"
_RUN = re.compile(r"[A-Za-z0-9+/=_~.%-]{20,}")
_TOKEN = 32  # characters of a run that is taken for a token although it has no digit
_PREFIX = 4  # characters of a secret, from which on its beginning is not shown where a text breaks off
_LONG = 4  # characters of a part of a path or of a header's value that may be a secret by itself
# Parts of a path that are none, and that sentences need.
_USUAL = frozenset({"hook", "hooks", "step", "steps", "webhook", "webhooks", "services", "events", "callback"})
_SCHEMES = frozenset({"bearer", "basic", "digest", "token"})  # before credentials, and in sentences about them
_SEPARATORS = re.compile(r"[;,\s]+(?:[^;,=\s]*=)?")  # before each part of a header's value, and its name in a cookie
_REDACTED = "REDACTED"
_HOST = re.compile(r"[A-Za-z0-9._\-]+(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ADVICE = {
    404: "look at the path of the endpoint's URL",
    405: "look at the path of the endpoint's URL",
    407: "the answer is the proxy's own, which asks for user name and password: see STEP_COMPLETE_PROXY",
}
_FOR_GOOD = "it has refused for good: this webhook is not sent again"
_LOOK_UP = "to find out why, run: otel-step-hook check"


class Secrets:
    """What no log line about *endpoint* shows, although its receiver may repeat it."""

    def __init__(self, endpoint: Endpoint) -> None:
        spellings = (quote, lambda text: quote(text, safe=""), html.escape, str)
        found = {" ".join(spell(text).split()) for text in _secrets(endpoint) for spell in spellings} - {""}
        self._texts = sorted(found, key=len, reverse=True)  # the longest first: one may be a part of another
        self._pattern = re.compile("|".join([*map(re.escape, self._texts), _CREDENTIALS]), re.IGNORECASE)

    def redact(self, text: str) -> str:
        """Return *text*, one line, with REDACTED in place of secrets and of what looks like one; else empty.

        It may break off within a secret.
        """
        text = self._without_end(self._pattern.sub(_REDACTED, text))
        text = _RUN.sub(lambda run: _REDACTED if _is_token(run[0]) else run[0], text)
        shown = text.lower()
        return "" if any(secret.lower() in shown for secret in self._texts) else text

    def _without_end(self, text: str) -> str:
        """Return *text* without the beginning of a secret that it ends with."""
        shown = text.lower()
        for secret in self._texts:
            for length in range(min(len(secret) - 1, len(text)), _PREFIX - 1, -1):
                if shown.endswith(secret[:length].lower()):
                    return f"{text[:-length]}{_REDACTED}"
        return text


def _is_token(run: str) -> bool:
    return len(run) >= _TOKEN or any(char.isdigit() for char in run)


def _secrets(endpoint: Endpoint) -> Iterator[str]:
    for _, value in endpoint.headers:
        yield from _of_header(value)
    for key in endpoint.signing_keys:
        yield base64.b64encode(key).decode("ascii")
        with contextlib.suppress(UnicodeDecodeError):
            yield key.decode()
    proxy = urlsplit(endpoint.proxy or "")
    for text in (*_of_url(endpoint.url), proxy.username or "", proxy.password or ""):
        yield from (text, unquote(text), unquote_plus(text))


def _of_url(url: str) -> Iterator[str]:
    """Yield path and query of *url*, as they are in it, and those of their parts that may be a secret by themselves."""
    parts = urlsplit(url)
    yield from ("" if parts.path == "/" else parts.path, parts.query)
    if parts.query:
        yield f"{parts.path}?{parts.query}"
    yield from (part for part in parts.path.split("/") if len(part) >= _LONG and part not in _USUAL)
    for pair in parts.query.split("&"):
        name, _, value = pair.partition("=")
        yield from (part for part in (value or name,) if len(part) >= _PREFIX)


def _of_header(value: str) -> Iterator[str]:
    """Yield *value* and, of an `Authorization`, what follows the scheme; of Basic, user name and password, too."""
    yield value
    parts = _SEPARATORS.split(f" {value}")
    yield from (part for part in parts if len(part) >= _LONG and part.lower() not in _SCHEMES)
    scheme, _, credentials = value.partition(" ")
    yield credentials
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):  # somebody's own header may hold anything
            pair = base64.b64decode(credentials + "==").decode("utf-8", "ignore")
            yield from (pair, *pair.split(":", 1))


def sentence_of(excerpt: bytes, secrets: Secrets) -> str:
    """Return the sentence that an answer beginning with *excerpt* has for people, in one line; empty without one.

    Of JSON it is the text of `error`, `message` or `detail`, of HTML the title, of anything else the first line.
    """
    text = excerpt.decode("utf-8", "replace").lstrip("\ufeff").strip()
    if text[:1] in ("{", "["):
        text = _of_json(text)
    elif text[:1] == "<":
        title = _TITLE.search(text)
        text = html.unescape(title[1]) if title else ""
    line = " ".join(next(iter(text.strip().splitlines()), "").split())
    if not line.isprintable() or len(line) > _SENTENCE:
        return ""
    line = secrets.redact(line)
    return "" if line == _REDACTED else line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"


def _of_json(text: str) -> str:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):  # it breaks off, or is no JSON
        return ""
    if isinstance(fields, dict) and isinstance(fields.get("error"), dict):
        fields = fields["error"]
    found = (fields.get(name) for name in _NAMES) if isinstance(fields, dict) else ()
    return next((value for value in found if isinstance(value, str) and value.strip()), "")


def advice(result: AttemptResult, endpoint: Endpoint, secrets: Secrets) -> str:
    """Return what the *result* of an attempt at *endpoint* asks for, or where to look; empty where nothing helps."""
    status = result.status_code
    if status is None:  # where another system than the receiver refuses a delivery, `check` finds nothing
        return "" if result.directive else _LOOK_UP
    if status in _REDIRECTS:
        return f"redirects are not followed: set the final URL{_points_to(result.location, endpoint, secrets)}"
    if result.is_final:
        return _FOR_GOOD
    if status in {401, 403}:
        return _about_key(endpoint)
    wait = f"it asks to wait {math.ceil(result.retry_after)} s" if result.retry_after else ""
    return _ADVICE.get(status, wait)


def _points_to(location: str, endpoint: Endpoint, secrets: Secrets) -> str:
    """Return where a redirect leads, if that is another scheme, host or port, as the end of a sentence."""
    try:
        origin = shown_origin(location)
    except ValueError:
        return ""
    scheme, _, host = origin.partition("://")
    is_shown = scheme in {"http", "https"} and _HOST.fullmatch(host) and origin != shown_origin(endpoint.url)
    return f", at {origin}" if is_shown and secrets.redact(origin) == origin else ""


def _about_key(endpoint: Endpoint) -> str:
    names = {name for name, _ in endpoint.headers}
    sent = ["the key"] if "authorization" in names else []
    sent += ["the signing secret"] if endpoint.signing_keys else []
    sent += ["the extra headers"] if names - {"authorization"} else []
    if not sent:
        return "no key is sent: set STEP_COMPLETE_KEY, if the receiver expects one"
    return f"compare {' and '.join(sent)} with what the receiver expects"
