"""The receivers that `otel_step_hook.testing` has for users' own tests."""

import socket
import threading
import time
import urllib.error
import urllib.request

import pytest

from otel_step_hook.testing import Answer, HostileReceiver, ScriptedReceiver, read_request


def post(url: str, body: bytes = b'{"step_id": "step-1"}') -> int:
    """POST *body* to *url*, and return the status of the answer."""
    request = urllib.request.Request(url, body, {"X-Test": "a"}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


# ScriptedReceiver


def test_it_gives_the_scripted_answers_and_then_204(step_receiver: ScriptedReceiver) -> None:
    """Statuses and whole answers are given in their order; after that every webhook is accepted."""
    step_receiver.answers(503, Answer(418, {"X-Tea": "yes"}, b"short and stout"))
    assert [post(step_receiver.url) for _ in range(3)] == [503, 418, 204]


def test_it_records_the_webhooks(step_receiver: ScriptedReceiver) -> None:
    """A webhook is recorded with its body, its headers in lower case, its time of arrival, and its step id."""
    before = time.monotonic()
    post(step_receiver.url, b'{"step_id": "step-7", "data": {"outcome": "failed"}}')
    (webhook,) = step_receiver.received
    assert (webhook.step_id, webhook.data, webhook.headers["x-test"]) == ("step-7", {"outcome": "failed"}, "a")
    assert before <= webhook.at <= time.monotonic()


def test_it_waits_for_webhooks(step_receiver: ScriptedReceiver) -> None:
    """wait_for returns once enough have arrived, from any thread, and otherwise raises with the number that has."""
    thread = threading.Thread(target=post, args=(step_receiver.url,))
    thread.start()
    assert len(step_receiver.wait_for(1)) == 1
    thread.join()
    with pytest.raises(AssertionError, match=r"1 webhooks within 0\.01 s; expected 2"):
        step_receiver.wait_for(2, timeout=0.01)


def test_it_can_be_left_while_an_answer_is_delayed() -> None:
    """A receiver that delays its answers does not delay the end of a test."""
    began = time.monotonic()
    with ScriptedReceiver() as receiver:
        receiver.answers(Answer(delay=60.0))
        thread = threading.Thread(target=post, args=(receiver.url,))
        thread.start()
        receiver.wait_for(1)
    thread.join(10)
    assert time.monotonic() - began < 30


def test_it_can_be_started_again_at_the_same_port() -> None:
    """A receiver at the same port has the same URL, for tests of receivers that go away and return."""
    with ScriptedReceiver() as receiver:
        url = receiver.url
    with pytest.raises(urllib.error.URLError):
        post(url)
    with ScriptedReceiver(port=int(url.split(":")[2].partition("/")[0])) as receiver:
        assert receiver.url == url
        assert post(url) == 204


# HostileReceiver


def test_it_serves_each_connection_on_a_thread_of_its_own() -> None:
    """One connection can hang while another is served."""
    arrived, release = threading.Event(), threading.Event()

    def behave(connection: socket.socket, _: threading.Event) -> None:
        read_request(connection)
        if not arrived.is_set():
            arrived.set()
            release.wait(10)
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with HostileReceiver(behave) as receiver:
        slow = threading.Thread(target=post, args=(receiver.url,))
        slow.start()
        assert arrived.wait(10)
        assert post(receiver.url) == 204
        release.set()
        slow.join(10)
        assert receiver.connections == 2


def test_leaving_it_ends_everything() -> None:
    """Behaviours that wait for a client, and clients that wait for an answer, end when the receiver is left."""
    began, ended = threading.Event(), threading.Event()

    def behave(connection: socket.socket, _: threading.Event) -> None:
        began.set()
        try:
            while connection.recv(65_536):
                pass
        finally:
            ended.set()

    threads = set(threading.enumerate())
    with HostileReceiver(behave) as receiver:
        address = receiver.url.removeprefix("http://").removesuffix("/hook").split(":")
        with socket.create_connection((address[0], int(address[1]))) as client:
            client.sendall(b"POST")
            assert began.wait(10)
            receiver.__exit__(None, None, None)
            assert client.recv(1) == b""
    assert ended.is_set()
    assert receiver.closing.is_set()
    assert set(threading.enumerate()) <= threads


@pytest.mark.parametrize(
    ("pieces", "request_"),
    [
        ([b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"], b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"),
        ([b"POST / HTTP/1.1\r\ncontent-le", b"ngth: 2\r\n\r", b"\n{", b"}"], None),
        ([b"GET / HTTP/1.1\r\n\r\n"], b"GET / HTTP/1.1\r\n\r\n"),
        ([b"POST / HTTP/1.1\r\ncontent-length: 20\r\n\r\n{}"], b""),
        ([b"POST /"], b""),
        ([], b""),
    ],
)
def test_a_request_is_read_as_a_whole_or_not_at_all(pieces: list[bytes], request_: bytes | None) -> None:
    """A request in any number of pieces is read to its end; one that breaks off is empty."""
    here, there = socket.socketpair()
    with here, there:
        for piece in pieces:
            there.sendall(piece)
        there.shutdown(socket.SHUT_WR)
        here.settimeout(10)
        assert read_request(here) == (b"".join(pieces) if request_ is None else request_)
