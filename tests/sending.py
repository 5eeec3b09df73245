"""What the tests of the delivery layer share: attempts without the worker, and receivers that misbehave."""

import asyncio
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from otel_step_hook import StepHookSettings
from otel_step_hook.delivery.loop import EventLoop
from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.delivery.transport import Lane, connector
from otel_step_hook.testing import HostileReceiver, read_request

CONTENT = b'{"step_id": "step-1"}'
OK = b"HTTP/1.1 204 No Content\r\n\r\n"
SHORT = 0.3  # seconds of timeout, where the test is that there is one

Behaviour = Callable[[socket.socket, threading.Event], None]


def attempts(url: str, count: int = 1, **settings: object) -> list[AttemptResult]:
    """What *count* attempts come to, made one after the other on one lane."""

    async def make(lane: Lane, timeout: float) -> list[AttemptResult]:
        try:
            return [await lane.post(CONTENT, [("authorization", "Bearer sekret")], timeout) for _ in range(count)]
        finally:
            await lane.aclose()

    options = StepHookSettings(webhook=url, **({"timeout": 10.0} | settings))
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        return runner.run(make(connector(options)(), options.timeout))


def attempt(url: str, **settings: object) -> AttemptResult:
    """What one attempt comes to."""
    return attempts(url, 1, **settings)[0]


def answering(*answers: bytes, then_close: bool = False) -> Behaviour:
    """Answer the requests of a connection with these bytes, the last of them again and again, or then close."""

    def behave(connection: socket.socket, closing: threading.Event) -> None:  # noqa: ARG001 -- as HostileReceiver calls
        left = list(answers)
        while left and read_request(connection):
            connection.sendall(left[0])
            if then_close or len(left) > 1:
                left.pop(0)

    return behave


def dripping(start: bytes, drop: bytes) -> Behaviour:
    """Answer *start* at once, and then *drop* again and again, slowly, without an end."""

    def behave(connection: socket.socket, closing: threading.Event) -> None:
        read_request(connection)
        connection.sendall(start)
        while not closing.wait(0.02):
            connection.sendall(drop)

    return behave


def answers_to(behaviours: Mapping[str, Behaviour], **settings: object) -> dict[str, AttemptResult]:
    """What one attempt comes to at each of the receivers that do this, all at the same time."""
    with ThreadPoolExecutor(len(behaviours)) as pool:
        results = pool.map(lambda behave: answer_to(behave, **settings), behaviours.values())
        return dict(zip(behaviours, results, strict=True))


def answer_to(behave: Behaviour, **settings: object) -> AttemptResult:
    """What one attempt comes to at a receiver that does what *behave* says."""
    with HostileReceiver(behave) as receiver:
        return attempt(receiver.url, **settings)


class Names:
    """Names that resolve to what a test says, look-up by look-up; the last answer stays."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Patched, because the machine's resolver would have to know a name server of our own.
        self._real = socket.getaddrinfo
        self._answers: dict[str, list[Callable[[], list[str]]]] = {}
        self.looked_up: list[str] = []
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)

    def lead_to(self, name: str, *answers: list[str] | Callable[[], list[str]]) -> None:
        """Have *name* resolve to these lists of addresses, or to what these functions return, in turn."""
        self._answers[name] = [answer if callable(answer) else answer.copy for answer in answers]

    def _getaddrinfo(self, host: str, port: int, *args: int, **kwargs: int) -> list[object]:
        if host not in self._answers:
            return list(self._real(host, port, *args, **kwargs))
        self.looked_up.append(host)
        answers = self._answers[host]
        found = (answers.pop(0) if len(answers) > 1 else answers[0])()
        return [item for address in found for item in self._real(address, port, *args, **kwargs)]


def port_of(url: str) -> str:
    """The port of a receiver's URL, as text."""
    return url.rpartition(":")[2].partition("/")[0]
