"""What `check` and `send` do: find out whether an endpoint answers at all, or send it one webhook."""

import asyncio
import contextlib
import re
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_step_hook.delivery.addresses import resolvable
from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.failures import CLOSED, meaning
from otel_step_hook.delivery.http_client import connector
from otel_step_hook.delivery.model import Endpoint
from otel_step_hook.delivery.origin import AddressRefused, Origin
from otel_step_hook.delivery.request import USER_AGENT, attempt_headers, body, webhook_id
from otel_step_hook.delivery.retry import AttemptResult, error_type_of
from otel_step_hook.delivery.tls import tls_detail
from otel_step_hook.steps.event import Outcome, StepEvent, generated_step_id

_TIMEOUT = 5.0  # seconds for each check: a user waits for the result
_CLOSE_TIME = 1.0  # seconds to wait for the peer to close the connection as well
_LINE_LIMIT = 4096  # bytes that are read of the first line of an answer
_STATUS_LINE = re.compile(rb"HTTP/1\.\d ([1-9]\d\d)( [^\n]*)?\r?\n")  # RFC 9112, section 4


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check: `proxy`, `name`, `connect`, `TLS` or `HTTP`. *message* is for the user."""

    check: str
    is_ok: bool
    message: str


async def probe(endpoint: Endpoint, *, timeout: float = _TIMEOUT) -> list[CheckResult]:
    """Look up the name of *endpoint*, connect, start TLS if it is https, and send HEAD. The last result decides.

    Sends neither webhook nor key nor signature; with a proxy it only connects to the proxy. Each check may take
    *timeout* seconds, and no longer than an attempt may. Raises `ConfigurationError` for a URL, a certificate or
    a key file that cannot be used.
    """
    origin = Origin(endpoint)
    timeout = min(timeout, endpoint.timeout)
    if endpoint.proxy is not None:
        parts = urlsplit(endpoint.proxy)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return await _connect("proxy", resolvable(parts.hostname or ""), port, timeout)
    try:
        async with asyncio.timeout(timeout):
            addresses = list(await origin.addresses())
    except (OSError, UnicodeError, AddressRefused) as error:
        return [CheckResult("name", is_ok=False, message=f"{origin.host} {_describe(error, timeout)}")]
    findings = []
    if addresses != [origin.host]:
        findings.append(CheckResult("name", is_ok=True, message=f"{origin.host} is {', '.join(addresses)}"))
    for address in addresses:
        findings += await _connect("connect", address, origin.port, timeout, origin)
        if findings[-1].check != "connect":  # it is the last check only if it failed
            break
    return findings


async def _connect(check: str, host: str, port: int, timeout: float, origin: Origin | None = None) -> list[CheckResult]:
    """Connect to *host*; with an *origin*, check TLS and HTTP on the same connection."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    began = monotonic()
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(host, port)
    except (OSError, UnicodeError) as error:
        return [CheckResult(check, is_ok=False, message=f"{where} {_describe(error, timeout)}")]
    findings = [CheckResult(check, is_ok=True, message=f"{where} accepts connections ({_elapsed(began)})")]
    if origin is not None and origin.url.scheme == "https":
        findings.append(await _start_tls(writer, origin, timeout))
    if origin is not None and findings[-1].is_ok:
        findings.append(await _request_head(reader, writer, origin, timeout))
    writer.close()
    with contextlib.suppress(OSError):
        async with asyncio.timeout(_CLOSE_TIME):
            await writer.wait_closed()
    return findings


async def _start_tls(writer: asyncio.StreamWriter, origin: Origin, timeout: float) -> CheckResult:
    began = monotonic()
    try:
        async with asyncio.timeout(timeout):
            await writer.start_tls(origin.tls.current, server_hostname=origin.tls_name)
    except OSError as error:
        return CheckResult("TLS", is_ok=False, message=_describe(error, timeout))
    session = writer.get_extra_info("ssl_object")
    until = session.getpeercert().get("notAfter")
    return CheckResult(
        "TLS", is_ok=True, message=f"{session.version()}, certificate valid until {until} ({_elapsed(began)})"
    )


async def _request_head(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, origin: Origin, timeout: float
) -> CheckResult:
    """Send a HEAD request, which changes nothing at the receiver. Any status counts as an answer."""
    began = monotonic()
    try:
        async with asyncio.timeout(timeout):
            writer.write(_head(origin))
            line = await _first_line(reader)
    except OSError as error:
        return CheckResult("HTTP", is_ok=False, message=_describe(error, timeout))
    if status := _STATUS_LINE.match(line):
        message = f"answers HEAD with {status[1].decode()}, so it speaks HTTP ({_elapsed(began)})"
        return CheckResult("HTTP", is_ok=True, message=message)
    guess = "; does the endpoint speak http, not https?" if origin.url.scheme == "http" else ""
    return CheckResult(
        "HTTP", is_ok=False, message=f"answers with something that is no HTTP{guess}" if line else CLOSED
    )


def _head(origin: Origin) -> bytes:
    headers = f"Host: {origin.netloc}\r\nUser-Agent: {USER_AGENT}\r\nConnection: close\r\n"
    return b"HEAD %b HTTP/1.1\r\n%b\r\n" % (origin.url.raw_path, headers.encode("ascii"))


async def _first_line(reader: asyncio.StreamReader) -> bytes:
    """Read to the end of the first line, or until the bytes cannot be HTTP any more."""
    seen = b""
    while b"\n" not in seen and len(seen) < _LINE_LIMIT and b"HTTP/".startswith(seen[:5]):
        more = await reader.read(_LINE_LIMIT - len(seen))
        if not more:
            break
        seen += more
    return seen


def _elapsed(began: float) -> str:
    return f"{(monotonic() - began) * 1000:.0f} ms"


def _describe(error: Exception, timeout: float) -> str:
    """What *error* means, as the rest of a sentence."""
    error_type = error_type_of(error)
    if error_type == "timeout":
        return f"gives no answer within {timeout:g} s"
    unknown = f"cannot be reached: {getattr(error, 'strerror', None) or error_type}"
    return meaning(error_type, tls_detail(error)) or unknown


@dataclass(frozen=True, slots=True)
class SentWebhook:
    """One attempt of `send_one`: the ids that were sent, the result, and the seconds it *took*."""

    step_id: str
    webhook_id: str
    result: AttemptResult
    took: float


async def send_one(endpoint: Endpoint, step_id: str | None = None) -> SentWebhook:
    """Make one attempt to report a successful step with *step_id*, by default a new one. No retries, no spans.

    Raises `ConfigurationError` for a URL, a certificate or a key file that cannot be used.
    """
    ids, now = RandomIdGenerator(), time.time_ns()
    context = SpanContext(ids.generate_trace_id(), ids.generate_span_id(), is_remote=False)  # not sampled
    event = StepEvent(step_id or generated_step_id(context), Outcome.SUCCESS, "otel-step-hook send", context, now, now)
    content, message_id = body(event, endpoint.payload), webhook_id(event)
    trace: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(trace, set_span_in_context(NonRecordingSpan(context)))
    headers = attempt_headers(endpoint, message_id, content, timestamp=int(time.time()), trace=list(trace.items()))
    transport = connector(endpoint)()
    began = monotonic()
    try:
        result = await transport.post(content, headers, timeout=endpoint.timeout)
    finally:
        await transport.aclose()
    return SentWebhook(event.step_id, message_id, result, monotonic() - began)
