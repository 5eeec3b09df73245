"""AWS Lambda's runtime API, from which the process of a function gets its calls."""

import json
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

_LIMIT = 40.0  # seconds to wait for the function


class LambdaApi(ThreadingHTTPServer):
    """The API on a free port. It is a context manager; *results* are those of the calls, as JSON."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.results: list[bytes] = []
        self.calls: queue.Queue[dict[str, str] | None] = queue.Queue()
        self.idle: queue.Queue[None] = queue.Queue()

    @property
    def address(self) -> str:
        """Host and port, as in ``AWS_LAMBDA_RUNTIME_API``."""
        return f"127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.calls.put(None)
        self.shutdown()
        self.server_close()

    def wait_until_idle(self) -> None:
        """Wait until the function asks for its next call: from then on Lambda may freeze it."""
        self.idle.get(timeout=_LIMIT)

    def call(self, event: dict[str, str]) -> None:
        """Call the function, which is idle, and wait until it is idle again."""
        self.calls.put(event)
        self.wait_until_idle()


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LambdaApi

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Answer with the next call."""
        self.server.idle.put(None)
        event = self.server.calls.get()
        if event is None:  # the test has ended
            self.close_connection = True
            return
        self._answer(200, json.dumps(event).encode())

    def do_POST(self) -> None:
        """Take the result of a call."""
        self.server.results.append(self.rfile.read(int(self.headers["content-length"])))
        self._answer(202, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Lambda-Runtime-Aws-Request-Id", "id-of-the-call")
        self.send_header("Lambda-Runtime-Deadline-Ms", "4102444800000")  # the year 2100
        self.send_header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:eu-west-1:123456789012:function:test")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
