"""Receivers to test against: one that answers as told, and one that speaks no proper HTTP. Extra ``testing``.

In a ``conftest.py``: ``pytest_plugins = ["otel_step_hook.testing"]`` gives the fixture `step_receiver`.
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

_WAIT = 10.0  # seconds that `wait_for` waits before it says what is missing


@dataclass(frozen=True, slots=True)
class Received:
    """One webhook as it arrived; header names in lower case, *at* in monotonic seconds."""

    body: bytes
    headers: dict[str, str]
    at: float

    @property
    def step_id(self) -> str:
        """The step id of the body."""
        return str(json.loads(self.body)["step_id"])

    @property
    def data(self) -> dict[str, object]:
        """What ``STEP_COMPLETE_PAYLOAD=full`` tells of the step."""
        return dict(json.loads(self.body)["data"])


@dataclass(frozen=True, slots=True)
class Answer:
    """What to answer: a status, headers, a body, and how many seconds to wait before."""

    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    delay: float = 0.0


class ScriptedReceiver:
    """A real HTTP receiver on loopback that remembers what arrives and answers as told; 204 after that.

    A context manager; safe from any thread.
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
        """Where to send webhooks."""
        return f"http://127.0.0.1:{self._server.port}/hook"

    def answers(self, *answers: int | Answer) -> None:
        """Give these answers, or statuses, to the next webhooks, in this order."""
        with self._arrived:
            self._answers.extend(Answer(answer) if isinstance(answer, int) else answer for answer in answers)

    @property
    def received(self) -> list[Received]:
        """What has arrived so far."""
        with self._arrived:
            return list(self._received)

    def wait_for(self, count: int, timeout: float = _WAIT) -> list[Received]:
        """What has arrived, once there are *count* webhooks; AssertionError after *timeout* seconds."""
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
        """Serve, and stop within 20 ms rather than half a second."""
        assert self.server is not None  # noqa: S101 -- for mypy: whoever calls this has made it
        self.server.serve_forever(poll_interval=0.02)


class HostileReceiver:
    """Accepts connections on loopback and does to each what *behave* says, on a thread of its own.

    A context manager. Leaving it closes every connection, so that a *behave* that blocks in
    ``recv`` or ``sendall`` ends with an OSError, which is swallowed; loops should look at *closing*.
    """

    def __init__(self, behave: Callable[[socket.socket, threading.Event], None]) -> None:
        self._behave = behave
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        """Where to send webhooks."""
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
        self._threads[0].join(_WAIT)  # which accepts: no connection comes in after this
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
            except OSError:  # we are leaving, or the other end has left already
                continue
            self._connections.append(connection)
            self._start(lambda connection=connection: self._serve(connection))  # type: ignore[misc]  # -- bound now

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            self._behave(connection, self.closing)


def _wake(waiting: socket.socket) -> None:
    """End a thread's accept() or recv(): close() alone does not."""
    with contextlib.suppress(OSError):
        waiting.shutdown(socket.SHUT_RDWR)


def read_request(connection: socket.socket) -> bytes:
    """One whole HTTP/1.1 request with a content-length, head and body; empty when the other end has closed."""
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
    """A `ScriptedReceiver` that is running."""
    with ScriptedReceiver() as receiver:
        yield receiver
