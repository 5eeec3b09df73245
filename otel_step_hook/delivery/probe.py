"""An endpoint tried by hand: reach it without sending anything, or send one webhook and look at the answer."""

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_step_hook.delivery.request import Headings, body, webhook_id
from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.delivery.telemetry import shown_url
from otel_step_hook.delivery.transport import ANSWER_LIMIT, Endpoint, MetadataAddressRefused, connector
from otel_step_hook.settings import StepHookSettings
from otel_step_hook.steps.event import Outcome, StepEvent, generated_step_id

_PATIENCE = 5.0  # seconds for each thing that is tried: somebody sits and waits
_CLOSE_TIME = 1.0  # seconds for the other side to agree that the connection is over
_MEANINGS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (MetadataAddressRefused, "leads to a cloud metadata service, which is refused"),
    ((socket.gaierror, UnicodeError), "cannot be resolved: no such name, or no name server that knows it"),
    (ConnectionRefusedError, "refuses connections: nothing listens there"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried, and in words what came of it."""

    tried: str
    is_ok: bool
    told: str


async def probe(settings: StepHookSettings, *, patience: float = _PATIENCE) -> list[Finding]:
    """Look up the endpoint, connect, agree on TLS where it is https, and hang up: the last finding decides.

    Sends no request, and behind a proxy goes no further than the proxy. Each thing may take *patience*
    seconds. Raises `ConfigurationError` for a URL, a certificate or a key file that cannot be used.
    """
    endpoint = Endpoint(settings)
    if settings.proxy is not None:
        parts = urlsplit(settings.proxy)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return await _connect("proxy", parts.hostname or "", port, patience)
    try:
        async with asyncio.timeout(patience):
            addresses = list(await endpoint.addresses())
    except (OSError, UnicodeError, MetadataAddressRefused) as error:
        return [Finding("name", is_ok=False, told=f"{endpoint.host} {_told(error, patience)}")]
    findings = []
    if addresses != [endpoint.host]:
        findings.append(Finding("name", is_ok=True, told=f"{endpoint.host} is {', '.join(addresses)}"))
    for address in addresses:
        findings += await _connect("connect", address, endpoint.port, patience, endpoint)
        if findings[-1].is_ok or findings[-1].tried == "TLS":
            break
    return findings


async def _connect(
    tried: str, host: str, port: int, patience: float, endpoint: Endpoint | None = None
) -> list[Finding]:
    """Connect, and agree on TLS with an *endpoint* that is https."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    began = time.monotonic()
    try:
        async with asyncio.timeout(patience):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, UnicodeError) as error:
        return [Finding(tried, is_ok=False, told=f"{where} {_told(error, patience)}")]
    findings = [Finding(tried, is_ok=True, told=f"{where} accepts connections ({_since(began)})")]
    if endpoint is not None and endpoint.url.scheme == "https":
        findings.append(await _secure(writer, endpoint, patience))
    writer.close()
    with contextlib.suppress(OSError):
        async with asyncio.timeout(_CLOSE_TIME):
            await writer.wait_closed()
    return findings


async def _secure(writer: asyncio.StreamWriter, endpoint: Endpoint, patience: float) -> Finding:
    began = time.monotonic()
    try:
        async with asyncio.timeout(patience):
            await writer.start_tls(endpoint.tls, server_hostname=endpoint.tls_name)
    except OSError as error:
        return Finding("TLS", is_ok=False, told=_told(error, patience))
    session = writer.get_extra_info("ssl_object")
    until = session.getpeercert().get("notAfter")
    return Finding("TLS", is_ok=True, told=f"{session.version()}, certificate valid until {until} ({_since(began)})")


def _since(began: float) -> str:
    return f"{(time.monotonic() - began) * 1000:.0f} ms"


def _told(error: Exception, patience: float) -> str:
    """What *error* means, as the rest of a sentence."""
    if isinstance(error, TimeoutError):
        return f"gives no answer within {patience:g} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not trusted, {error.verify_message}; see STEP_COMPLETE_CERTIFICATE"
    if isinstance(error, ssl.SSLError):
        return f"fails, {error.reason}; does the endpoint speak https, not http?"
    for kinds, words in _MEANINGS:
        if isinstance(error, kinds):
            return words
    return f"cannot be reached: {getattr(error, 'strerror', None) or type(error).__name__}"


@dataclass(frozen=True, slots=True)
class Trial:
    """One attempt made by hand: what was sent, what came back, and after how many seconds."""

    step_id: str
    webhook_id: str
    result: AttemptResult
    took: float


async def send_one(settings: StepHookSettings, step_id: str | None = None) -> Trial:
    """Make one attempt to tell of a step that has succeeded, under *step_id* or a new one; no retries, no spans.

    Raises `ConfigurationError` for a URL, a certificate or a key file that cannot be used.
    """
    ids, now = RandomIdGenerator(), time.time_ns()
    context = SpanContext(ids.generate_trace_id(), ids.generate_span_id(), is_remote=False)  # not sampled
    event = StepEvent(step_id or generated_step_id(context), Outcome.SUCCESS, "otel-step-hook send", context, now, now)
    content, message_id = body(event, settings.payload), webhook_id(event)
    trace: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(trace, set_span_in_context(NonRecordingSpan(context)))
    headers = Headings.from_settings(settings).of_attempt(
        message_id, content, timestamp=int(time.time()), trace=list(trace.items())
    )
    lane = connector(settings)()
    began = time.monotonic()
    try:
        result = await lane.post(content, headers, settings.timeout)
    finally:
        await lane.aclose()
    return Trial(event.step_id, message_id, result, time.monotonic() - began)


def excerpt_without_secrets(excerpt: bytes, settings: StepHookSettings) -> str:
    """*excerpt* of an answer as text, with ``***`` for every secret of *settings* that it echoes."""
    secrets = sorted({form for secret in _secrets(settings) for form in _forms(secret)}, key=len, reverse=True)
    text = excerpt.decode("utf-8", "replace")
    for secret in secrets:
        text = text.replace(secret, "***")
    if len(excerpt) >= ANSWER_LIMIT and secrets:
        text = text[: -len(secrets[0])]  # the end may be the beginning of a secret
    return text


def _secrets(settings: StepHookSettings) -> Iterator[str]:
    yield from (
        text.partition(" ")[2] for name, text in Headings.from_settings(settings).fixed if name == "authorization"
    )
    yield from (text for _, text in settings.headers)
    if settings.signing_secret is not None:
        yield from settings.signing_secret.get_secret_value().split()
    url, shown = urlsplit(settings.webhook or ""), urlsplit(shown_url(settings.webhook or ""))
    yield from (url.username or "", url.password or "")
    yield from (part for part in url.path.split("/") if part not in shown.path.split("/"))
    yield from (pair.rpartition("=")[2] for pair in url.query.split("&"))


def _forms(secret: str) -> set[str]:
    """How *secret* may stand in an answer: as it is, decoded, or inside JSON."""
    plain = {secret, unquote(secret), secret.removeprefix("whsec_")}
    return {form for text in plain if text for form in (text, json.dumps(text)[1:-1])}
