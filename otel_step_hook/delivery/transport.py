"""HTTP by httpx: owns httpx, and the connections that it makes."""

import asyncio
import contextlib
import importlib
import ssl
import time
from collections.abc import Callable
from typing import Any, Protocol

import httpx

from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.deadline import Deadline
from otel_step_hook.delivery.model import Endpoint, Headers
from otel_step_hook.delivery.origin import (
    ANSWER_LIMIT,
    ANSWER_TIME,
    KEEP_ALIVE,
    AddressRefused,
    Origin,
    tls_detail,
)
from otel_step_hook.delivery.retry import AttemptResult, causes_of, error_type_of

_STALE = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)

# If the process forks while another thread imports a module or makes a TLS context, the locks that this takes stay
# locked in the child. So the worker thread does neither. httpx would import these modules when they are first needed,
# and make a context for every transport that gets none, even for plain HTTP (encode/httpx#2298).
for _late in ("httpcore", "anyio._backends._asyncio"):
    importlib.import_module(_late)
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def connector(endpoint: Endpoint) -> Callable[[], "HttpxTransport"]:
    """Return a function that makes connections to *endpoint*, for any event loop.

    Raises `ConfigurationError` for a URL, a certificate or a key file that cannot be used.
    """
    origin = Origin(endpoint)
    return lambda: HttpxTransport(origin)


class _Closable(Protocol):
    async def aclose(self) -> None: ...


class HttpxTransport:
    """One connection to the endpoint, for one request at a time.

    Connections do not share a pool, because httpcore's pool walks through all of its connections for every request
    (encode/httpcore#1035): with 32 requests in flight on one shared client, most of the time goes there.
    """

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        proxy = origin.proxy
        self._transport = httpx.AsyncHTTPTransport(
            verify=origin.tls if origin.url.scheme == "https" else _NO_TLS,
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEEP_ALIVE),
            proxy=proxy and httpx.Proxy(proxy, ssl_context=origin.tls if proxy.scheme == "https" else None),
        )
        self._half_open: _Closable | None = None  # a connection whose TLS handshake is under way
        self._kept_until = 0.0  # monotonic time from which httpcore connects again; 0 without a complete answer
        self._peer: tuple[str, int] | None = None

    async def post(self, content: bytes, headers: Headers, *, timeout: float) -> AttemptResult:
        """Send one request within *timeout* seconds, DNS, connect and TLS included, and return its result.

        A failure of the network or of the receiver is a result, not an exception. The status line decides the
        result; the body, which is read up to `ANSWER_LIMIT`, cannot change it.
        """
        self._peer = None
        was_kept, self._kept_until = monotonic() < self._kept_until, 0.0
        try:
            async with Deadline(timeout):
                response = await self._answer(content, headers, timeout)
        except (httpx.HTTPError, OSError, AddressRefused) as error:
            return await self._failure(error, is_stale=was_kept and _is_stale(error))
        if self._peer is None:  # the request went through a proxy
            self._peer = _peer_of(response)
        excerpt = await self._read(response, min(timeout, ANSWER_TIME))
        status, header = response.status_code, response.headers.get
        return AttemptResult.of_answer(status, header, now=time.time(), peer=self._peer, excerpt=excerpt)

    async def _failure(self, error: Exception, *, is_stale: bool) -> AttemptResult:
        if self._peer is not None and not is_stale:
            self._origin.forget(self._peer[0])
        # When TLS fails in a proxy's tunnel, httpcore keeps the connection as one in use, and every further attempt
        # would wait for it (encode/httpcore#1023).
        await self._disconnect()
        return AttemptResult(
            error_type=error_type_of(error), peer=self._peer, is_stale=is_stale, detail=tls_detail(error)
        )

    async def _disconnect(self) -> None:
        """Close the connection, half-open or not; the next attempt connects again."""
        half_open, self._half_open = self._half_open, None
        if half_open is not None:
            await half_open.aclose()
        await self._transport.aclose()

    async def _track_handshake(self, event: str, info: dict[str, Any]) -> None:
        """Keep a connection while its TLS handshake is under way, so that `_disconnect` can close it.

        httpcore closes it when `start_tls` raises an `Exception`, but leaves it open when the attempt is cancelled.
        """
        if event == "connection.connect_tcp.complete":
            self._half_open = info["return_value"]
        elif event == "connection.start_tls.complete":
            self._half_open = None

    async def _answer(self, content: bytes, headers: Headers, timeout: float) -> httpx.Response:
        if self._origin.proxy is not None:  # the proxy resolves the name
            return await self._send(self._origin.url, content, headers, {})
        *first, last = await self._origin.addresses()
        for tried, address in enumerate(first):
            with contextlib.suppress(httpx.ConnectError, httpx.ConnectTimeout):
                return await self._send_to(address, content, headers, timeout / (len(first) + 1 - tried))
            self._origin.forget(address)
        return await self._send_to(last, content, headers, timeout)

    async def _send_to(self, address: str, content: bytes, headers: Headers, connect: float) -> httpx.Response:
        origin = self._origin
        self._peer = (address, origin.port)
        extensions: dict[str, object] = {"timeout": {"connect": connect}}
        if origin.url.scheme == "https":
            extensions["trace"] = self._track_handshake
        # The request goes to the address that was checked: if httpcore looked the name up again, it could get
        # another address. The certificate is still verified against the name.
        extensions["sni_hostname"] = origin.tls_name
        return await self._send(origin.url_at(address), content, headers, extensions)

    async def _send(
        self, url: httpx.URL, content: bytes, headers: Headers, extensions: dict[str, object]
    ) -> httpx.Response:
        headers = [("host", self._origin.netloc), *headers]
        request = httpx.Request("POST", url, headers=headers, content=content, extensions=extensions)
        return await self._transport.handle_async_request(request)

    async def _read(self, response: httpx.Response, limit: float) -> bytes:
        excerpt = bytearray()
        stream = _stream(response)
        # CancelledError too: the loop stops, but the result of the status line stands.
        with contextlib.suppress(httpx.HTTPError, OSError, asyncio.CancelledError):
            async with asyncio.timeout(limit):
                try:
                    # The raw stream: nothing is decompressed, so no answer can grow.
                    async for chunk in stream:
                        excerpt += chunk
                        if len(excerpt) > ANSWER_LIMIT:
                            break
                    else:
                        self._kept_until = 0.0 if _has_excess(stream) else monotonic() + KEEP_ALIVE
                finally:
                    await stream.aclose()
                if not self._kept_until:
                    await self._disconnect()
        return bytes(excerpt[:ANSWER_LIMIT])

    async def aclose(self) -> None:
        """Close the connection."""
        await self._disconnect()


def _stream(response: httpx.Response) -> httpx.AsyncByteStream:
    if not isinstance(response.stream, httpx.AsyncByteStream):  # pragma: no cover -- an async transport's always is
        raise TypeError
    return response.stream


def _peer_of(response: httpx.Response) -> tuple[str, int] | None:
    """Return the peer's address and port; None when the operating system does not know them any more."""
    host, port, *_ = response.extensions["network_stream"].get_extra_info("server_addr") or (None, 0)
    return None if host is None else (host, port)


def _has_excess(stream: object) -> bool:
    """Whether bytes have arrived after the end of the answer.

    On a kept connection they would be read as the answer to the next request, which RFC 9112 9.2 forbids. httpcore
    has no public access to them (encode/httpcore#872). If its private attributes have changed, the result is True.
    """
    try:
        excess, _ = stream._httpcore_stream._stream._connection._h11_state.trailing_data  # type: ignore[attr-defined]  # noqa: SLF001 -- see above
    except AttributeError:
        return True
    return bool(excess)


def _is_stale(error: Exception) -> bool:
    """Whether the connection ended before the first byte of an answer; an h11 error shows that bytes have come."""
    return isinstance(error, _STALE) and not any(
        type(cause).__module__.startswith("h11.") for cause in causes_of(error)
    )
