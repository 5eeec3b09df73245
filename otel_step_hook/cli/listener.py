"""A webhook receiver on loopback that reports what arrives. Owns its sockets and its counts of attempts."""

import contextlib
import socket
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Self

from otel_step_hook.errors import VerificationError, hide_arguments
from otel_step_hook.receiver import ReceivedStep, verify

BODY_LIMIT = 1_048_576  # bytes; 413 beyond it. The longest step id makes a body of about 100 kB
_MAX_COUNTED = 10_000  # webhook ids; beyond it the one that has not arrived for longest is forgotten
_IDLE_TIMEOUT = 60.0  # seconds a client may stay silent on its connection
_CLOSE_TIME = 2.0  # seconds to wait for the threads of connections that are being closed
_SHOWN = ("webhook-id", "webhook-timestamp", "webhook-signature", "traceparent", "user-agent", "content-type")


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request. *text* is the body; *delay* and *retry_after* are in seconds."""

    status: int
    text: str = ""
    retry_after: int | None = None
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How to answer genuine webhooks: the first *refusals* with *status*, the rest with 204.

    With *step_id*, only webhooks of that step are refused. *retry_after*, in seconds, is sent with each refusal.
    *delay* is the seconds to wait before each refusal, or, without refusals, before each answer.
    """

    refusals: int = 0
    status: int = HTTPStatus.SERVICE_UNAVAILABLE
    retry_after: int | None = None
    delay: float = 0.0
    step_id: str | None = None

    @property
    def refused(self) -> Answer:
        """The answer to a webhook that is refused."""
        return Answer(self.status, "refused on purpose, as this receiver was asked to", self.retry_after, self.delay)

    @property
    def accepted(self) -> Answer:
        """The answer to any other genuine webhook."""
        return Answer(HTTPStatus.NO_CONTENT, delay=0.0 if self.refusals else self.delay)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One webhook as it arrived, and the *status* it is answered with.

    *at* is Unix time in seconds. *attempt* counts from 1 the requests with this webhook id, genuine or not. When
    *is_verified* is false, *step_id* is None and *verdict* says why. *headers* has selected headers, with names in
    lower case, and never the key.
    """

    at: float
    attempt: int
    step_id: str | None
    headers: Mapping[str, str]
    body: bytes
    is_verified: bool
    verdict: str
    status: int


class Listener:
    """A context manager that receives webhooks on loopback, verifies them, and answers according to *plan*.

    *on_arrival* is called before each answer, on the thread of the connection: calls may overlap. With *port* 0 the
    system chooses a free port. Raises OSError when the port is taken, and `ConfigurationError` for a *key* or
    *signing_secret* that no webhook can match.
    """

    @hide_arguments
    def __init__(
        self,
        plan: Plan | None = None,
        *,
        port: int = 0,
        key: str | None = None,
        signing_secret: str | None = None,
        on_arrival: Callable[[Arrival], object] = lambda _: None,
    ) -> None:
        # For its ConfigurationError: `verify` checks the key and the secret before it checks the webhook.
        for key_or_none, secret_or_none in ((key, None), (None, signing_secret)):
            with contextlib.suppress(VerificationError):
                verify(b"", None, key=key_or_none, signing_secret=secret_or_none, allow_unauthenticated=True)
        self._plan = Plan() if plan is None else plan
        self._key = key
        self._signing_secret = signing_secret
        self._on_arrival = on_arrival
        self._lock = threading.Lock()
        self._attempts: OrderedDict[str, int] = OrderedDict()  # by webhook id
        self._refusals_left = self._plan.refusals
        self._server = _Server(port, self._receive)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The URL to send webhooks to."""
        return f"http://127.0.0.1:{self._server.server_port}/"

    def _receive(self, headers: Message, body: bytes) -> Answer:
        attempt = self._count(headers.get("webhook-id", ""))
        try:
            step = verify(
                body,
                headers,
                key=self._key,
                signing_secret=self._signing_secret,
                allow_unauthenticated=True,  # without both, it shows what arrives
            )
        except VerificationError as error:
            step_id, verdict = None, str(error)
            answer = Answer(error.status_code, verdict)
        else:
            step_id, verdict = step.step_id, "genuine"
            answer = self._plan.refused if self._is_refused(step) else self._plan.accepted
        shown = {name: headers[name] for name in _SHOWN if name in headers}
        is_verified = step_id is not None
        self._on_arrival(Arrival(time.time(), attempt, step_id, shown, body, is_verified, verdict, answer.status))
        return answer

    def _count(self, webhook_id: str) -> int:
        with self._lock:
            attempt = self._attempts[webhook_id] = self._attempts.pop(webhook_id, 0) + 1
            if len(self._attempts) > _MAX_COUNTED:
                self._attempts.popitem(last=False)
        return attempt

    def _is_refused(self, step: ReceivedStep) -> bool:
        with self._lock:
            if not self._refusals_left or self._plan.step_id not in {None, step.step_id}:
                return False
            self._refusals_left -= 1
            return True


class _Server(ThreadingHTTPServer):
    """An HTTP server with one daemon thread per connection. `server_close` ends them all."""

    request_queue_size = 128  # connections that may wait to be accepted

    def __init__(self, port: int, receive: Callable[[Message, bytes], Answer]) -> None:
        self.receive = receive
        self.closing = threading.Event()
        self._open: dict[socket.socket, threading.Thread] = {}
        super().__init__(("127.0.0.1", port), _Handler)

    def server_bind(self) -> None:
        """Bind, without the reverse DNS look-up of the bound address with which `HTTPServer` may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]  # -- text for IPv4

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve the connection *request* on a thread of its own."""
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        self._open[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        """Close the connection *request*."""
        self._open.pop(request, None)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Close the socket and every connection. On a connection left open, requests would still be answered."""
        super().server_close()
        self.closing.set()
        for request, thread in tuple(self._open.items()):
            with contextlib.suppress(OSError):  # closed already
                request.shutdown(socket.SHUT_RDWR)
            thread.join(_CLOSE_TIME)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect. Any other exception, such as one of ``on_arrival``, is printed to stderr."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "otel-step-hook"
    sys_version = ""
    timeout = _IDLE_TIMEOUT
    disable_nagle_algorithm = True  # else a body waits 40 ms for the ACK of its head: python/cpython#108736

    def do_POST(self) -> None:
        length = self._length()
        if isinstance(length, Answer):
            self._send(length, connection="close")  # the unread body would be taken for the next request
            return
        body = self.rfile.read(length)
        if len(body) < length:  # the client has left
            self.close_connection = True
            return
        answer = self.server.receive(self.headers, body)
        if self.server.closing.wait(answer.delay):
            self.close_connection = True
            return
        self._send(answer)

    def do_GET(self) -> None:
        text = "This is otel-step-hook's listener: it receives step webhooks, sent with POST.\n"
        self._send(Answer(HTTPStatus.METHOD_NOT_ALLOWED, text), connection="close", allow="POST")

    def do_HEAD(self) -> None:
        self._send(Answer(HTTPStatus.METHOD_NOT_ALLOWED, ""), connection="close", allow="POST")

    def _length(self) -> int | Answer:
        text = self.headers.get("content-length")
        if text is None or "transfer-encoding" in self.headers:
            return Answer(HTTPStatus.LENGTH_REQUIRED, "expected a content-length, and no transfer-encoding")
        if not (text.isascii() and text.isdigit()):
            return Answer(HTTPStatus.BAD_REQUEST, "the content-length is no number")
        if len(text) > len(str(BODY_LIMIT)) or int(text) > BODY_LIMIT:
            return Answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {BODY_LIMIT} bytes are taken")
        return int(text)

    def _send(self, answer: Answer, **headers: str) -> None:
        self.send_response(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        if answer.retry_after is not None:
            self.send_header("retry-after", str(answer.retry_after))
        # 204 and 304 cannot have a body; of the others, only errors need one.
        content = answer.text.encode("utf-8", "replace") if answer.status >= HTTPStatus.BAD_REQUEST else b""
        if answer.status != HTTPStatus.NO_CONTENT:
            self.send_header("content-type", "text/plain; charset=utf-8")
            self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- http.server's names
        """Write no access log to stderr: ``on_arrival`` reports each webhook."""
