"""One attempt: which connection it uses, and what happens when connections die."""

import asyncio
import socket
import threading
from collections import Counter
from itertools import pairwise

import pytest
from delivering import NewRig, event, poll
from sending import CONTENT, OK, TO_CONNECT, Attempts, answering, endpoint_to

from otel_step_hook.delivery.loop import EventLoop
from otel_step_hook.delivery.origin import ANSWER_LIMIT
from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.delivery.sender import Transport
from otel_step_hook.testing import HostileReceiver, read_request


def test_one_connection_serves_many_attempts(attempts: Attempts) -> None:
    """A transport keeps its connection, so that a webhook costs no handshake."""
    with HostileReceiver(answering(OK)) as receiver:
        results = attempts(receiver.url, 20)
        assert [result.status_code for result in results] == [204] * 20
        assert receiver.connections == 1


def test_a_kept_connection_that_has_died_is_reported_as_stale(attempts: Attempts) -> None:
    """If a kept connection dies before a byte of an answer, the result is stale and the next attempt succeeds."""
    with HostileReceiver(answering(OK, then_close=True)) as receiver:
        results = attempts(receiver.url, 100)
    assert {result.error_type for result in results if not result.is_stale} == {None}
    assert not any(first.is_stale and second.is_stale for first, second in pairwise(results))


def test_only_a_kept_connection_is_stale(attempts: Attempts) -> None:
    """A receiver that reads a request and closes is stale on a kept connection, but not on a new one."""
    requests: list[bytes] = []

    def behave(connection: socket.socket, _: threading.Event) -> None:
        is_first = not requests
        while request := read_request(connection):
            requests.append(request)
            if not is_first:
                return
            connection.sendall(OK)
            is_first = False

    with HostileReceiver(behave) as receiver:
        results = attempts(receiver.url, 3)
    assert [result.error_type in attempts.own_errors for result in results] == [False, True, True]
    assert [result.is_stale for result in results] == [False, True, False]
    assert len(requests) == 3


def test_a_connection_in_place_of_an_expired_one_is_not_stale(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a kept connection has expired, the request goes over a new one, and its failure is the receiver's."""
    for module in ("transport", "aiohttp_transport"):
        monkeypatch.setattr(f"otel_step_hook.delivery.{module}.KEEP_ALIVE", 0.0)  # seconds, instead of 5
    requests: list[bytes] = []

    def behave(connection: socket.socket, _: threading.Event) -> None:
        while request := read_request(connection):
            requests.append(request)
            if len(requests) > 1:
                return
            connection.sendall(OK)

    with HostileReceiver(behave) as receiver:
        results = attempts(receiver.url, 2)
        assert receiver.connections == 2
    assert [result.error_type in attempts.own_errors for result in results] == [False, True]
    assert [result.is_stale for result in results] == [False, False]


def test_a_connection_in_place_of_a_closed_one_is_not_stale(attempts: Attempts) -> None:
    """If the receiver has closed the connection in time, the request goes over a new one."""
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    requests: list[bytes] = []

    def behave(connection: socket.socket, _: threading.Event) -> None:
        requests.append(read_request(connection))
        if len(requests) == 1:
            connection.sendall(answer)

    with HostileReceiver(behave) as receiver:
        results = attempts(receiver.url, 2)
    assert [result.is_success for result in results] == [True, False]
    assert [result.is_stale for result in results] == [False, False]


def test_nonsense_on_a_kept_connection_is_not_stale(attempts: Attempts) -> None:
    """A receiver that has sent bytes may have read the request, so that it is not sent again at once."""
    with HostileReceiver(answering(OK, b"nonsense\r\n\r\n")) as receiver:
        results = attempts(receiver.url, 2)
    assert results[0].is_success
    assert (results[1].error_type in attempts.own_errors, results[1].is_stale) == (True, False)


@pytest.mark.parametrize("excess", [OK, b"ok", b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"])
def test_excess_bytes_are_not_taken_for_the_next_answer(attempts: Attempts, excess: bytes) -> None:
    """A receiver that sends more than one answer does not make a webhook succeed that it has not received."""
    requests: list[bytes] = []

    def behave(connection: socket.socket, _: threading.Event) -> None:
        while request := read_request(connection):
            requests.append(request)
            connection.sendall(OK + excess)

    with HostileReceiver(behave) as receiver:
        results = attempts(receiver.url, 5)
    assert [result.status_code for result in results] == [204] * 5
    assert len(requests) == 5


@pytest.mark.parametrize("length", [0, 2 * ANSWER_LIMIT])
def test_bytes_on_an_idle_connection_are_not_taken_for_the_next_answer(attempts: Attempts, length: int) -> None:
    """A connection on which a receiver sends bytes before the next request is closed, also after a long answer."""
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % length + bytes(length)
    answered, sent = threading.Event(), threading.Event()
    requests: list[bytes] = []

    def behave(connection: socket.socket, _: threading.Event) -> None:
        is_first = not requests
        while request := read_request(connection):
            requests.append(request)
            connection.sendall(answer)
            if is_first:
                answered.wait(10)
                connection.sendall(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
                sent.set()

    async def make(transport: Transport) -> list[int | None]:
        first = await transport.post(CONTENT, [], timeout=10.0)
        answered.set()
        await poll(sent)
        second = await transport.post(CONTENT, [], timeout=10.0)
        await transport.aclose()
        return [first.status_code, second.status_code]

    with HostileReceiver(behave) as receiver:
        assert asyncio.run(make(attempts.transport(receiver.url))) == [200, 200]
        assert receiver.connections == 2
    assert len(requests) == 2


def test_a_lost_request_is_sent_again_at_once(attempts: Attempts, rigged: NewRig) -> None:
    """A receiver that drops each second request of a connection gets it again at once under the same id."""
    requests: list[bytes] = []

    def behave(connection: socket.socket, _: threading.Event) -> None:
        for answer in (OK, b""):
            if request := read_request(connection):
                requests.append(request)
                connection.sendall(answer)

    with HostileReceiver(behave) as receiver:
        connect = attempts.connector(endpoint_to(receiver.url))
        rig = rigged(connect, webhook=receiver.url, concurrency=1, initial_backoff=3600.0, give_up_after=10_000)
        rig.deliver(*(event() for _ in range(100)))
    assert {result for _, result, _ in rig.results} == {"delivered"}
    ids = Counter(request.lower().partition(b"webhook-id: ")[2].partition(b"\r\n")[0] for request in requests)
    assert sorted(ids.values()) == [1] + [2] * 99


def test_an_attempt_after_a_timeout_succeeds(attempts: Attempts) -> None:
    """After an attempt that has timed out, the next one has a new connection and succeeds."""
    seen = 0

    def behave(connection: socket.socket, closing: threading.Event) -> None:
        nonlocal seen
        seen += 1
        read_request(connection)
        if seen == 1:
            closing.wait(10)
        connection.sendall(OK)

    with HostileReceiver(behave) as receiver:
        transport = attempts.transport(receiver.url)

        async def make() -> list[str | None]:
            try:
                return [
                    (await transport.post(CONTENT, [], timeout=timeout)).error_type for timeout in (TO_CONNECT, 10.0)
                ]
            finally:
                await transport.aclose()

        assert asyncio.run(make()) == ["timeout", None]


def test_a_late_answer_is_not_taken_for_the_next(attempts: Attempts) -> None:
    """An answer that comes after the timeout of its attempt does not count for the next attempt."""
    gave_up, late = threading.Event(), threading.Event()
    requests: list[bytes] = []

    def behave(connection: socket.socket, _: threading.Event) -> None:
        requests.append(read_request(connection))
        if len(requests) > 1:
            late.wait(10)
            connection.sendall(OK)
            return
        gave_up.wait(10)
        try:
            connection.sendall(b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n")
        finally:
            late.set()

    async def make(transport: Transport) -> list[str | None]:
        first = await transport.post(CONTENT, [], timeout=TO_CONNECT)
        gave_up.set()
        second = await transport.post(CONTENT, [], timeout=10.0)
        await transport.aclose()
        return [first.error_type, second.error_type]

    with HostileReceiver(behave) as receiver:
        assert asyncio.run(make(attempts.transport(receiver.url))) == ["timeout", None]
    assert len(requests) == 2


class StoppedLoop(EventLoop):
    """A loop whose clock is *stopped* seconds ahead, as after a SIGSTOP during which no code has run."""

    stopped = 0.0

    def time(self) -> float:
        return super().time() + self.stopped


def test_an_answer_that_came_while_the_process_was_stopped_counts(attempts: Attempts) -> None:
    """If the timeout has passed and the answer is in the socket, the webhook is delivered."""
    arrived, resumed, sent = threading.Event(), threading.Event(), threading.Event()

    def behave(connection: socket.socket, _: threading.Event) -> None:
        read_request(connection)
        arrived.set()
        resumed.wait(10)
        connection.sendall(OK)
        sent.set()

    async def make(transport: Transport) -> AttemptResult:
        task = asyncio.create_task(transport.post(CONTENT, [], timeout=10.0))
        await poll(arrived)
        resumed.set()
        assert sent.wait(10)  # the loop stands still meanwhile
        loop.stopped = 60.0
        try:
            return await task
        finally:
            await transport.aclose()

    loop = StoppedLoop()
    with HostileReceiver(behave) as receiver, asyncio.Runner(loop_factory=lambda: loop) as runner:
        assert runner.run(make(attempts.transport(receiver.url))).status_code == 204


@pytest.mark.anyio
async def test_a_status_counts_although_the_attempt_is_cancelled(attempts: Attempts) -> None:
    """A webhook that was accepted is delivered, even if a shutdown cancels the attempt while the body drips."""
    sent = threading.Event()

    def behave(connection: socket.socket, closing: threading.Event) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nx")
        sent.set()
        closing.wait(10)

    with HostileReceiver(behave) as receiver:
        transport = attempts.transport(receiver.url)
        task = asyncio.create_task(transport.post(CONTENT, [], timeout=10.0))
        assert await asyncio.to_thread(sent.wait, 10)
        for _ in range(20):  # the loop reads the socket, which has the status
            await asyncio.sleep(0.001)
        task.cancel()
        assert (await task).status_code == 200
        await transport.aclose()
