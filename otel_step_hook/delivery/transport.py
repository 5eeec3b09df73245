"""HTTP by httpcore, the library below httpx: owns both, and the connections that they make."""

import asyncio
import contextlib
import importlib
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Any

import httpcore
import httpx

from otel_step_hook.delivery.answer_head import AnswerHead, AnswerWithoutStatus
from otel_step_hook.delivery.deadline import Deadline
from otel_step_hook.delivery.model import Endpoint, Headers
from otel_step_hook.delivery.origin import (
    ANSWER_LIMIT,
    ANSWER_TIME,
    KEEP_ALIVE,
    AddressRefused,
    Origin,
)
from otel_step_hook.delivery.retry import AttemptResult, error_type_of
from otel_step_hook.delivery.tls import TlsContext, tls_detail

_STALE = (httpcore.ReadError, httpcore.WriteError, httpcore.RemoteProtocolError)
_FAILURES = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    AnswerWithoutStatus,
    OSError,
)

# If the process forks while another thread imports a module, the lock that this takes stays locked in the child. So
# the worker thread imports none. anyio would import the first when it is needed; httpcore looks for the second in each
# request, and where it is missing, each look takes the lock, and 0.1 ms.
for _late in ("anyio._backends._asyncio", "sniffio"):
    importlib.import_module(_late)


def connector(endpoint: Endpoint) -> Callable[[], "HttpxTransport"]:
    """Return a function that makes connections to *endpoint*, for any event loop.

    Raises `ConfigurationError` for a URL, a certificate or a key file that cannot be used.
    """
    origin = Origin(endpoint)
    return lambda: HttpxTransport(origin)


class _Backend(httpcore.AsyncNetworkBackend):
    """Makes connections with *tls*, which show *head* what they read once all *handshakes* of TLS are done.

    What comes before the last of them is a proxy's answer to CONNECT, for which the same limits hold.
    """

    def __init__(self, head: AnswerHead, tls: TlsContext, handshakes: int) -> None:
        self.head, self.tls = head, tls
        self.has_connected = False  # whether the request that is made needed a new connection
        self._handshakes = handshakes
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.has_connected = True
        connecting = self._backend.connect_tcp(host, port, timeout, local_address, socket_options)
        return _Stream(await connecting, self, self._handshakes)


class _Stream(httpcore.AsyncNetworkStream):
    """A connection of *backend*, on which *handshakes* are still to come."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, backend: _Backend, handshakes: int) -> None:
        self._stream, self._backend, self._handshakes = stream, backend, handshakes
        self._head = AnswerHead() if handshakes else backend.head
        self.write = stream.write  # type: ignore[method-assign]
        self.aclose = stream.aclose  # type: ignore[method-assign]
        self.get_extra_info = stream.get_extra_info  # type: ignore[method-assign]

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = await self._stream.read(max_bytes, timeout)
        self._head.feed(data)
        return data

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,  # noqa: ARG002 -- see below
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        context = self._backend.tls.for_new_connection()  # instead of that of the pool, which may be older
        context.set_alpn_protocols(["http/1.1"])  # as httpcore does with the other one
        try:
            inside = await self._stream.start_tls(context, server_hostname, timeout)
        except BaseException:
            # httpcore closes the connection when this raises an `Exception`, but leaves it open when the attempt is
            # cancelled.
            await self._stream.aclose()
            raise
        return _Stream(inside, self._backend, self._handshakes - 1)


def _pool(origin: Origin, backend: _Backend) -> httpcore.AsyncConnectionPool:
    """Return a pool of one connection to *origin*, or to its proxy."""
    proxy, is_https = origin.proxy, origin.url.scheme == "https"
    options: dict[str, Any] = {
        "ssl_context": origin.tls.current if is_https else None,
        "max_connections": 1,
        "max_keepalive_connections": 1,
        "keepalive_expiry": KEEP_ALIVE,
        "network_backend": backend,
    }
    if proxy is None:
        return httpcore.AsyncConnectionPool(**options)
    parts = httpx.Proxy(proxy)
    return httpcore.AsyncHTTPProxy(
        _url(parts.url),
        proxy_auth=parts.raw_auth,
        proxy_ssl_context=origin.tls.current if proxy.scheme == "https" else None,
        **options,
    )


def _url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


class HttpxTransport:
    """One connection to the endpoint, for one request at a time.

    Connections do not share a pool, because httpcore's pool walks through all of its connections for every request
    (encode/httpcore#1035): with 32 requests in flight on one shared client, most of the time goes there.
    """

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._head = AnswerHead()
        handshakes = [origin.url.scheme, origin.proxy and origin.proxy.scheme].count("https")
        self._backend = _Backend(self._head, origin.tls, handshakes)
        self._pool = _pool(origin, self._backend)
        self._peer: tuple[str, int] | None = None

    async def post(self, content: bytes, headers: Headers, *, timeout: float) -> AttemptResult:
        """Send one request within *timeout* seconds, DNS, connect and TLS included, and return its result.

        A failure of the network or of the receiver is a result, not an exception. The status line decides the
        result: neither headers that are no HTTP nor the body, which is read up to `ANSWER_LIMIT`, can change it.
        """
        self._peer = None
        self._head.reset()
        self._backend.has_connected = False
        try:
            async with Deadline(timeout):
                response = await self._answer(content, headers, timeout)
        except (*_FAILURES, AddressRefused) as error:
            is_new = self._backend.has_connected
            is_stale = isinstance(error, _STALE) and not is_new and not self._head.has_begun
            return await self._failure(error, is_stale=is_stale)
        if self._peer is None:  # the request went through a proxy
            self._peer = _peer_of(response)
        excerpt = await self._read(response, min(timeout, ANSWER_TIME))
        header = httpx.Headers(response.headers).get
        return AttemptResult.of_answer(response.status, header, now=time.time(), peer=self._peer, excerpt=excerpt)

    async def _failure(self, error: Exception, *, is_stale: bool) -> AttemptResult:
        # When TLS fails in a proxy's tunnel, httpcore keeps the connection as one in use, and every further attempt
        # would wait for it (encode/httpcore#1023).
        await self.aclose()
        if self._head.status is not None:
            return AttemptResult.of_status(self._head.status, peer=self._peer)
        if self._peer is not None and not is_stale:
            self._origin.forget(self._peer[0])
        return AttemptResult(
            error_type=error_type_of(error),
            peer=self._peer,
            is_stale=is_stale,
            has_answered=self._head.has_begun,
            detail=tls_detail(error),
        )

    async def _answer(self, content: bytes, headers: Headers, timeout: float) -> httpcore.Response:
        if self._origin.proxy is not None:  # the proxy resolves the name
            return await self._send(self._origin.url, content, headers, {})
        *first, last = await self._origin.addresses()
        for tried, address in enumerate(first):
            with contextlib.suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await self._send_to(address, content, headers, timeout / (len(first) + 1 - tried))
            self._origin.forget(address)
        return await self._send_to(last, content, headers, timeout)

    async def _send_to(self, address: str, content: bytes, headers: Headers, connect: float) -> httpcore.Response:
        origin = self._origin
        self._peer = (address, origin.port)
        extensions: dict[str, object] = {"timeout": {"connect": connect}}
        # The request goes to the address that was checked: if httpcore looked the name up again, it could get
        # another address. The certificate is still verified against the name.
        extensions["sni_hostname"] = origin.tls_name
        return await self._send(origin.url_at(address), content, headers, extensions)

    async def _send(
        self, url: httpx.URL, content: bytes, headers: Headers, extensions: dict[str, object]
    ) -> httpcore.Response:
        all_headers = [("host", self._origin.netloc), *headers, ("content-length", str(len(content)))]
        raw = [(name.encode("ascii"), value.encode("ascii")) for name, value in all_headers]
        request = httpcore.Request("POST", _url(url), headers=raw, content=content, extensions=extensions)
        return await self._pool.handle_async_request(request)

    async def _read(self, response: httpcore.Response, limit: float) -> bytes:
        excerpt, is_kept = bytearray(), False
        # CancelledError too: the loop stops, but the result of the status line stands.
        with contextlib.suppress(*_FAILURES, asyncio.CancelledError):
            async with asyncio.timeout(limit):
                try:
                    async for chunk in response.aiter_stream():
                        excerpt += chunk
                        if len(excerpt) > ANSWER_LIMIT:
                            break
                    else:
                        is_kept = not _has_excess(response)
                finally:
                    await response.aclose()
                if not is_kept:
                    await self.aclose()
        return bytes(excerpt[:ANSWER_LIMIT])

    async def aclose(self) -> None:
        """Close the connection; an attempt after this connects again."""
        await self._pool.aclose()


def _peer_of(response: httpcore.Response) -> tuple[str, int] | None:
    """Return the peer's address and port; None when the operating system does not know them any more."""
    host, port, *_ = response.extensions["network_stream"].get_extra_info("server_addr") or (None, 0)
    return None if host is None else (host, port)


def _has_excess(response: httpcore.Response) -> bool:
    """Whether bytes have arrived after the end of the answer.

    On a kept connection they would be read as the answer to the next request, which RFC 9112 9.2 forbids. httpcore
    has no public access to them (encode/httpcore#872). If its private attributes have changed, the result is True.
    """
    try:
        excess, _ = response.stream._stream._connection._h11_state.trailing_data  # type: ignore[union-attr]  # noqa: SLF001 -- see above
    except AttributeError:
        return True
    return bool(excess)
