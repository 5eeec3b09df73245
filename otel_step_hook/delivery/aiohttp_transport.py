"""HTTP by aiohttp: owns aiohttp, and the connections that it makes."""

import asyncio
import base64
import contextlib
import io
import os
import ssl
import time
from collections.abc import Callable
from typing import Any, cast

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from otel_step_hook.delivery import native
from otel_step_hook.delivery.answer_head import AnswerHead, AnswerWithoutStatus
from otel_step_hook.delivery.clock import monotonic
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
from otel_step_hook.delivery.tls import tls_detail

_MAX_HEADER_SIZE = 65_536  # bytes of one header
_END_OF_HEAD = b"\r\n\r\n"
_LARGE = 2**20  # bytes, beyond which aiohttp warns of a content that is not a file
_NOT_OURS = ("accept", "accept-encoding", "content-type", "user-agent")  # headers that aiohttp would add


def connector(endpoint: Endpoint) -> Callable[[], "AiohttpTransport"]:
    """Return a function that makes connections to *endpoint*, for any event loop.

    Raises `ConfigurationError` for a URL, a certificate or a key file that cannot be used.
    """
    origin = Origin(endpoint)
    return lambda: AiohttpTransport(origin)


class _HeadFirst(asyncio.Protocol):
    """Gives aiohttp's *protocol* the head of an answer before what follows it, and shows it to *head* before that.

    When aiohttp's parser finds an error, it forgets the messages of the same call: an answer of 204 with a body, or of
    200 with a bad chunk, would lose its status.
    """

    def __init__(self, protocol: asyncio.Protocol, transport: asyncio.Transport, head: AnswerHead) -> None:
        self._protocol = protocol
        self._transport = transport
        self._head = head
        self.connection_lost = protocol.connection_lost  # type: ignore[method-assign]
        self.eof_received = protocol.eof_received  # type: ignore[method-assign]
        self.pause_writing = protocol.pause_writing  # type: ignore[method-assign]
        self.resume_writing = protocol.resume_writing  # type: ignore[method-assign]

    def data_received(self, data: bytes) -> None:
        try:
            self._head.feed(data)
        except AnswerWithoutStatus:
            self._transport.abort()  # the attempt fails when the loop has closed it
            return
        begin = 0
        while end := data.find(_END_OF_HEAD, begin) + 1:
            self._protocol.data_received(data[begin : end + 3])
            begin = end + 3
        if begin < len(data):
            self._protocol.data_received(data[begin:] if begin else data)


class _Response(aiohttp.ClientResponse):
    """An answer that remembers its connection, which aiohttp takes back when the answer is complete."""

    head: AnswerHead  # of a subclass for each transport: aiohttp makes the answers
    protocol: Any = None
    transport: Any = None

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        """Read the head of the answer."""
        self.protocol, self.transport = connection.protocol, connection.transport
        if self.transport.get_protocol() is self.protocol:
            self.transport.set_protocol(_HeadFirst(self.protocol, self.transport, self.head))
        return await super().start(connection)

    def close(self) -> None:
        """Close the connection, at once, if the answer is not complete.

        aiohttp would wait until the receiver has read the request and, for up to 30 s, until it has ended TLS.
        """
        if self.connection is not None:
            self.transport.abort()
        super().close()


class _Connector(aiohttp.TCPConnector):
    """Owns the connections of one process: a forked child neither closes them nor warns of them.

    It shares the kernel's epoll object with its parent: a connection that is closed there is taken out of it.
    """

    def __init__(self, **options: Any) -> None:
        self._pid = os.getpid()
        super().__init__(**options)

    def __del__(self, *more: Any) -> None:
        if self._pid == os.getpid():
            super().__del__(*more)

    @property
    def closed(self) -> bool:
        """Whether there is nothing to close."""
        return super().closed or self._pid != os.getpid()


class AiohttpTransport:
    """One connection to the endpoint, for one request at a time."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._head = AnswerHead()
        self._session: aiohttp.ClientSession | None = None  # made in the event loop that it belongs to
        proxy = URL(str(origin.proxy)) if origin.proxy else None
        self._proxy = proxy and proxy.with_user(None)
        self._tls: ssl.SSLContext | None = None  # of the last connection; None for plain HTTP
        authorization = _authorization(proxy)
        is_tunnel = origin.url.scheme == "https"  # the proxy sees a CONNECT, and not the request
        self._proxy_headers = authorization if is_tunnel else []
        self._own_headers = [("host", origin.netloc), *([] if is_tunnel else authorization)]
        self._kept: _Response | None = None  # the last answer, if its connection may still be open
        self._kept_until = 0.0  # monotonic time from which aiohttp connects again
        self._was_kept = False  # whether the request was sent on a kept connection
        self._peer: tuple[str, int] | None = None

    async def post(self, content: bytes, headers: Headers, *, timeout: float) -> AttemptResult:
        """Send one request within *timeout* seconds, DNS, connect and TLS included, and return its result.

        A failure of the network or of the receiver is a result, not an exception. The status line decides the
        result: neither headers that are no HTTP nor the body, which is read up to `ANSWER_LIMIT`, can change it.
        """
        self._peer = None
        self._head.reset()
        self._was_kept = False
        try:
            async with Deadline(timeout):
                response = await self._answer(content, headers, timeout)
        except (aiohttp.ClientError, OSError, AddressRefused) as error:
            return self._failure(error, is_stale=self._was_kept and self._is_stale(error))
        if self._peer is None:  # the request went through a proxy
            self._peer = _peer_of(response)
        excerpt = await self._read(response, min(timeout, ANSWER_TIME))
        status, header = response.status, response.headers.get
        return AttemptResult.of_answer(status, header, now=time.time(), peer=self._peer, excerpt=excerpt)

    def _is_kept(self) -> bool:
        """Whether the connection can serve another request; if it cannot, close it.

        Bytes that have arrived meanwhile would be read as the answer to the next request, which RFC 9112 9.2 forbids.
        aiohttp does not look for them.
        """
        kept, self._kept = self._kept, None
        if kept is None or kept.transport.is_closing():
            return False
        if (
            monotonic() >= self._kept_until
            or kept.protocol.should_close
            or native.is_readable(kept.transport.get_extra_info("socket"))
        ):
            kept.transport.abort()
            return False
        return True

    async def _answer(self, content: bytes, headers: Headers, timeout: float) -> _Response:
        if self._origin.proxy is not None:  # the proxy resolves the name
            return await self._send(str(self._origin.url), content, headers, timeout)
        *first, last = await self._origin.addresses()
        for tried, address in enumerate(first):
            with contextlib.suppress(aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
                return await self._send_to(address, content, headers, timeout / (len(first) + 1 - tried))
            self._origin.forget(address)
        return await self._send_to(last, content, headers, timeout)

    async def _send_to(self, address: str, content: bytes, headers: Headers, connect: float) -> _Response:
        origin = self._origin
        self._peer = (address, origin.port)
        # The request goes to the address that was checked: if aiohttp looked the name up again, it could get
        # another address. The certificate is still verified against the name.
        return await self._send(str(origin.url_at(address)), content, headers, connect, origin.tls_name)

    async def _send(
        self, url: str, content: bytes, headers: Headers, connect: float, name: str | None = None
    ) -> _Response:
        # Now: what arrives on the kept connection during the look-up would be read as the answer.
        self._head.reset()
        self._was_kept = self._is_kept()
        if self._origin.uses_tls and not self._was_kept:  # a kept one is found by the context that it was made with
            self._tls = self._origin.tls.for_new_connection()
        response = await self._open().post(
            URL(url, encoded=True),
            data=io.BytesIO(content) if len(content) > _LARGE else content,
            # Not a list: instrumentations such as ddtrace's set headers of their own here.
            headers=CIMultiDict([*self._own_headers, *headers]),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect),
            server_hostname=name,
            ssl=self._tls or True,
            proxy=self._proxy,
            proxy_headers=self._proxy_headers,
            allow_redirects=False,
        )
        return cast("_Response", response)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=_Connector(
                    limit=1,
                    keepalive_timeout=KEEP_ALIVE,
                    resolver=aiohttp.ThreadedResolver(),  # by the event loop, and never by aiodns
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                response_class=type("_Response", (_Response,), {"head": self._head}),
                skip_auto_headers=_NOT_OURS,
                auto_decompress=False,
                max_line_size=_MAX_HEADER_SIZE,
                max_field_size=_MAX_HEADER_SIZE,
            )
        return self._session

    def _failure(self, error: Exception, *, is_stale: bool) -> AttemptResult:
        head = self._head
        if head.status is not None:
            return AttemptResult.of_status(head.status, peer=self._peer)
        if self._peer is not None and not is_stale:
            self._origin.forget(self._peer[0])
        return AttemptResult(
            error_type=AnswerWithoutStatus.__name__ if head.is_refused else error_type_of(error),
            peer=self._peer,
            is_stale=is_stale,
            has_answered=head.has_begun,
            detail=tls_detail(error),
        )

    def _is_stale(self, error: Exception) -> bool:
        """Whether a kept connection ended before the first byte of an answer."""
        is_end = isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError))
        return is_end and not isinstance(error, aiohttp.ClientConnectorError) and not self._head.has_begun

    async def _read(self, response: _Response, limit: float) -> bytes:
        excerpt, content = bytearray(), response.content
        # CancelledError too: the loop stops, but the result of the status line stands.
        with contextlib.suppress(aiohttp.ClientError, OSError, asyncio.CancelledError):
            if content.is_eof():  # as nearly always: all of it has arrived with the head
                excerpt += content.read_nowait()
            else:
                async with asyncio.timeout(limit):
                    async for chunk in content.iter_any():
                        excerpt += chunk
                        if len(excerpt) > ANSWER_LIMIT:
                            break
        if response.connection is None:  # the answer is complete, however long: aiohttp keeps the connection
            self._kept, self._kept_until = response, monotonic() + KEEP_ALIVE
        response.close()
        return bytes(excerpt[:ANSWER_LIMIT])

    async def aclose(self) -> None:
        """Close the connection."""
        if self._kept is not None:
            self._kept.transport.abort()
        if self._session is not None:
            await self._session.close()


def _authorization(proxy: URL | None) -> Headers:
    """Return the header for the user name and password in *proxy*, in UTF-8 (RFC 7617); aiohttp takes Latin-1 only."""
    if proxy is None or proxy.user is proxy.password is None:
        return []
    pair = base64.b64encode(f"{proxy.user or ''}:{proxy.password or ''}".encode())
    return [("proxy-authorization", f"Basic {pair.decode('ascii')}")]


def _peer_of(response: _Response) -> tuple[str, int] | None:
    """Return the peer's address and port; None when the operating system does not know them any more."""
    host, port, *_ = response.transport.get_extra_info("peername") or (None, 0)
    return None if host is None else (host, port)
