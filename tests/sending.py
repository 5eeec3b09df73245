"""What the tests of one attempt share: attempts without a worker, misbehaving receivers, a resolver, and TLS."""

import asyncio
import contextlib
import functools
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import trustme

from otel_step_hook import StepHookSettings
from otel_step_hook.delivery.loop import EventLoop
from otel_step_hook.delivery.model import Endpoint
from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.delivery.sender import Transport
from otel_step_hook.settings import endpoints_of
from otel_step_hook.testing import HostileReceiver, read_request

CONTENT = b'{"step_id": "step-1"}'
HEADERS = [("authorization", "Bearer sekret")]
OK = b"HTTP/1.1 204 No Content\r\n\r\n"
NAME = "receiver.test"
SHORT = 0.3  # seconds; the timeout of attempts that have to time out
TO_CONNECT = 1.0  # the same, for attempts that have to connect before, on a busy machine

Behaviour = Callable[[socket.socket, threading.Event], None]


def endpoint_to(url: str, **settings: object) -> Endpoint:
    """The endpoint that *url* and these settings configure."""
    (endpoint,) = endpoints_of(StepHookSettings(webhook=url, **settings))
    return endpoint


class Attempts:
    """Makes attempts without a worker, over transports that *connector* makes.

    *own_errors* are the error types of the HTTP library; all others are Python's or this package's.
    """

    def __init__(self, connector: Callable[[Endpoint], Callable[[], Transport]], *own_errors: str) -> None:
        self.connector = connector
        self.own_errors = frozenset(own_errors)

    @property
    def connector_import(self) -> str:
        """The import statement that makes *connector* available to a program, under this name."""
        return f"from {self.connector.__module__} import {self.connector.__qualname__} as connector"

    def transport(self, url: str, **settings: object) -> Transport:
        """A transport to *url*."""
        return self.connector(endpoint_to(url, **settings))()

    def __call__(self, url: str, count: int = 1, *, timeout: float = 10.0, **settings: object) -> list[AttemptResult]:
        """The results of *count* attempts, made one after the other over one transport."""

        async def make(transport: Transport) -> list[AttemptResult]:
            try:
                return [await transport.post(CONTENT, HEADERS, timeout=timeout) for _ in range(count)]
            finally:
                await transport.aclose()

        with asyncio.Runner(loop_factory=EventLoop) as runner:
            return runner.run(make(self.transport(url, **settings)))

    def one(self, url: str, **settings: object) -> AttemptResult:
        """The result of one attempt."""
        return self(url, 1, **settings)[0]  # type: ignore[arg-type]  # -- *settings* may hold a timeout

    def at(self, behave: Behaviour, **settings: object) -> AttemptResult:
        """The result of one attempt at a receiver with this behaviour."""
        with HostileReceiver(behave) as receiver:
            return self.one(receiver.url, **settings)

    def at_each(self, behaviours: Mapping[str, Behaviour], **settings: object) -> dict[str, AttemptResult]:
        """The result of one attempt at a receiver of each behaviour, all made at the same time."""
        with ThreadPoolExecutor(len(behaviours)) as pool:
            results = pool.map(lambda behave: self.at(behave, **settings), behaviours.values())
            return dict(zip(behaviours, results, strict=True))


def answering(*answers: bytes, then_close: bool = False) -> Behaviour:
    """Answer the requests of a connection with *answers*; repeat the last one for ever, or close after it."""

    def behave(connection: socket.socket, closing: threading.Event) -> None:  # noqa: ARG001 -- as HostileReceiver calls
        left = list(answers)
        while left and read_request(connection):
            connection.sendall(left[0])
            if then_close or len(left) > 1:
                left.pop(0)

    return behave


def dripping(start: bytes, drop: bytes) -> Behaviour:
    """Send *start* at once, and then *drop* slowly and for ever."""

    def behave(connection: socket.socket, closing: threading.Event) -> None:
        read_request(connection)
        connection.sendall(start)
        while not closing.wait(0.02):
            connection.sendall(drop)

    return behave


def flooding(start: bytes, flood: bytes) -> Behaviour:
    """Send *start*, and then *flood* for ever, as fast as the client reads it."""

    def behave(connection: socket.socket, closing: threading.Event) -> None:
        read_request(connection)
        connection.sendall(start)
        while not closing.is_set():
            connection.sendall(flood)

    return behave


def port_of(url: str) -> str:
    """The port of a receiver's URL, as text."""
    return url.rpartition(":")[2].partition("/")[0]


def silent(connection: socket.socket, closing: threading.Event) -> None:
    """Read everything, and answer nothing."""
    while not closing.is_set() and connection.recv(65_536):
        pass


def no_tls(connection: socket.socket, _: threading.Event) -> None:
    """Answer the first bytes with bytes that are not TLS."""
    connection.recv(65_536)
    connection.sendall(b"no TLS\r\n" * 10)


@functools.cache
def authority() -> trustme.CA:
    """A certificate authority that clients trust only through the fixture `trusted`."""
    return trustme.CA()


def server_context(name: str = NAME) -> ssl.SSLContext:
    """The TLS context of a server with a certificate for *name*."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(name).configure_cert(context)
    return context


def secured(context: ssl.SSLContext, behave: Behaviour | None = None) -> Behaviour:
    """Make the TLS handshake, and then do what *behave* does; accept webhooks if it is None."""

    def secure(connection: socket.socket, closing: threading.Event) -> None:
        connection.settimeout(10)
        # Raises an SSLError, which is an OSError, if the client refuses the certificate.
        with context.wrap_socket(connection, server_side=True) as inside:
            (behave or answering(OK))(inside, closing)

    return secure


@contextlib.contextmanager
def accepting_one(
    address: str, port: int = 0, *, tls: ssl.SSLContext | None = None
) -> Iterator[tuple[int, list[bytes]]]:
    """A receiver at *address* that accepts one webhook; gives its port, and a list for the request."""
    requests: list[bytes] = []
    ((family, *_, sockaddr), *_) = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    with socket.create_server(sockaddr, family=family) as server:
        server.settimeout(10)

        def accept() -> None:
            connection, _ = server.accept()
            connection.settimeout(10)
            with tls.wrap_socket(connection, server_side=True) if tls else connection as inside:
                requests.append(read_request(inside))
                inside.sendall(OK)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1], requests
        finally:
            thread.join(20)


class Names:
    """A resolver with scripted answers; each look-up of a name takes its next answer, and the last one is repeated."""

    def __init__(self) -> None:
        self._answers: dict[str, list[Callable[[], list[str]]]] = {}
        self._real = socket.getaddrinfo
        self.looked_up: list[str] = []

    def lead_to(self, name: str, *answers: list[str] | Callable[[], list[str]]) -> None:
        """Make *name* resolve to these lists of addresses, or to what these functions return."""
        self._answers[name] = [answer if callable(answer) else answer.copy for answer in answers]

    def getaddrinfo(self, host: str, port: int, *args: int, **kwargs: int) -> list[object]:
        if host not in self._answers:
            return list(self._real(host, port, *args, **kwargs))
        self.looked_up.append(host)
        answers = self._answers[host]
        found = (answers.pop(0) if len(answers) > 1 else answers[0])()
        return [item for address in found for item in self._real(address, port, *args, **kwargs)]
