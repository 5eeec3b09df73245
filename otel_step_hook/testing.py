"""Receivers for tests: one gives scripted answers, one misbehaves on its sockets. They need the extra ``testing``.

In a ``conftest.py``, ``pytest_plugins = ["otel_step_hook.testing"]`` provides the fixture `step_receiver`.
"""

import contextlib
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

_WAIT = 10.0  # seconds


@dataclass(frozen=True, slots=True)
class Received:
    """One webhook that has arrived: header names in lower case, *at* in seconds of `time.monotonic`."""

    body: bytes
    headers: dict[str, str]
    at: float

    @property
    def step_id(self) -> str:
        """The step id in the body."""
        return str(json.loads(self.body)["step_id"])

    @property
    def data(self) -> dict[str, object]:
        """The member ``data`` of the body, which ``STEP_COMPLETE_PAYLOAD=full`` adds; KeyError without it."""
        return dict(json.loads(self.body)["data"])


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer: status, headers, body, and *delay*, the seconds to wait before it."""

    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    delay: float = 0.0


class ScriptedReceiver:
    """An HTTP receiver on loopback that records webhooks and gives scripted answers, and after those 204.

    It is a context manager. Its methods may be called from any thread.
    """

    def __init__(self, *, port: int = 0) -> None:
        self._server = _Server(host="127.0.0.1", port=port, threaded=True)
        self._server.expect_request("/hook", method="POST").respond_with_handler(self._receive)
        self._arrived = threading.Condition()
        self._answers: deque[Answer] = deque()
        self._received: list[Received] = []
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.clear()
        self._server.stop()

    @property
    def url(self) -> str:
        """The URL to send webhooks to."""
        return f"http://127.0.0.1:{self._server.port}/hook"

    def answers(self, *answers: int | Answer) -> None:
        """Answer the next webhooks with *answers*, in this order. A number is the status of an empty answer."""
        with self._arrived:
            self._answers.extend(Answer(answer) if isinstance(answer, int) else answer for answer in answers)

    @property
    def received(self) -> list[Received]:
        """The webhooks that have arrived so far, in their order."""
        with self._arrived:
            return list(self._received)

    def wait_for(self, count: int, timeout: float = _WAIT) -> list[Received]:
        """Wait for *count* webhooks and return all that have arrived; AssertionError after *timeout* seconds."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: len(self._received) >= count, timeout):
                raise AssertionError(f"{len(self._received)} webhooks within {timeout:g} s; expected {count}")
            return list(self._received)

    def _receive(self, request: Request) -> Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        with self._arrived:
            self._received.append(Received(request.get_data(), headers, time.monotonic()))
            answer = self._answers.popleft() if self._answers else Answer()
            self._arrived.notify_all()
        self._closing.wait(answer.delay)
        return Response(answer.body, answer.status, answer.headers)


class _Server(HTTPServer):
    def thread_target(self) -> None:
        """Serve requests until `stop`."""
        assert self.server is not None  # noqa: S101 -- for mypy: `start` has set it
        # `stop` waits for one interval, which is half a second by default (`socketserver`).
        self.server.serve_forever(poll_interval=0.02)


class HostileReceiver:
    """Accepts connections on loopback, and calls *behave* for each, on a thread of its own.

    It is a context manager. *behave* gets the connection, and the event *closing*, which is set when the context
    is left. Then every connection is closed, so that a *behave* that blocks in ``recv`` or ``sendall`` ends with
    an OSError, which is ignored. A loop in *behave* should check *closing*.
    """

    def __init__(self, behave: Callable[[socket.socket, threading.Event], None]) -> None:
        self._behave = behave
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        """The URL to send webhooks to."""
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}/hook"

    @property
    def connections(self) -> int:
        """How many connections have been accepted."""
        return len(self._connections)

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        _wake(self._listening)
        self._threads[0].join(_WAIT)  # the thread that accepts: there are no new connections after this
        for connection in self._connections:
            _wake(connection)
        for thread in self._threads:
            thread.join(_WAIT)
        for open_socket in (self._listening, *self._connections):
            open_socket.close()

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                connection, _ = self._listening.accept()
            except OSError:  # the context is being left, or the other end has closed already
                continue
            self._connections.append(connection)
            self._start(lambda connection=connection: self._serve(connection))  # type: ignore[misc]  # -- binds it now

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            self._behave(connection, self.closing)


def _wake(waiting: socket.socket) -> None:
    """Make a blocked accept() or recv() of another thread return; close() alone does not."""
    with contextlib.suppress(OSError):
        waiting.shutdown(socket.SHUT_RDWR)


def read_request(connection: socket.socket) -> bytes:
    """Read an HTTP/1.1 request that has a content-length: head and body. Empty when the other end has closed."""
    seen, expected = b"", None
    while expected is None or len(seen) < expected:
        more = connection.recv(65_536)
        if not more:
            return b""
        seen += more
        head, end, _ = seen.partition(b"\r\n\r\n")
        if end:
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            expected = len(head) + len(end) + int(length or b"0")
    return seen


@pytest.fixture
def step_receiver() -> Iterator[ScriptedReceiver]:
    """A running `ScriptedReceiver`."""
    with ScriptedReceiver() as receiver:
        yield receiver
