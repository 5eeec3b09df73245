"""Receivers that break the rules of HTTP: the result of one attempt at each of them."""

import contextlib
import gzip
import socket
import struct
import threading

import pytest
from sending import OK, SHORT, TO_CONNECT, Attempts, answering, dripping, flooding, silent

from otel_step_hook.delivery.origin import ANSWER_LIMIT
from otel_step_hook.testing import HostileReceiver, ScriptedReceiver, read_request

HEAD = b"HTTP/1.1 200 OK\r\n"


def reset(connection: socket.socket) -> None:
    """Close the connection with a TCP reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_an_answer_without_a_status_is_a_timeout(attempts: Attempts) -> None:
    """The timeout holds for the whole attempt: a receiver cannot prolong it by sending bytes."""
    results = attempts.at_each(
        {
            "no answer": silent,
            "a status line that drips": dripping(b"HTTP/1.1 200 ", b"O"),
            "an interim answer that drips": dripping(b"HTTP/1.1 102 Processing\r\n", b"x: 1\r\n"),
        },
        timeout=TO_CONNECT,
    )
    outcomes = {name: (one.error_type, one.status_code, one.peer and one.peer[0]) for name, one in results.items()}
    assert outcomes == dict.fromkeys(results, ("timeout", None, "127.0.0.1"))


def test_a_2xx_is_a_success_whatever_comes_after_it(attempts: Attempts) -> None:
    """The status line decides: no body, however broken or slow, makes a delivered webhook fail."""
    chunked = HEAD + b"transfer-encoding: chunked\r\n\r\n"
    results = attempts.at_each(
        {
            "204": answering(OK),
            "headers that drip": dripping(HEAD, b"x: 1\r\n"),
            "a header without an end": dripping(HEAD + b"x: ", b"x"),
            "headers without an end": flooding(HEAD, b"x: 1\r\n"),
            "204 after some 102": answering(b"HTTP/1.1 102 Processing\r\n\r\n" * 3 + OK),
            "HTTP/1.0": answering(b"HTTP/1.0 200 OK\r\n\r\nfine", then_close=True),
            "a body that drips": dripping(HEAD + b"content-length: 100000\r\n\r\n", b"x"),
            "chunks that drip": dripping(chunked, b"1\r\nx\r\n"),
            "trailers without an end": dripping(chunked + b"0\r\n", b"x: 1\r\n"),
            "a short body": answering(HEAD + b"content-length: 100\r\n\r\nshort", then_close=True),
            "a bad chunk": answering(chunked + b"zz\r\n", then_close=True),
            "bad gzip": answering(HEAD + b"content-encoding: gzip\r\ncontent-length: 4\r\n\r\nnope", then_close=True),
        },
        timeout=2.0,
    )
    assert {name: one.error_type for name, one in results.items()} == dict.fromkeys(results)
    assert all(one.is_success for one in results.values())


def test_the_body_of_an_answer_is_read_no_longer_than_the_timeout(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver that drips after its status line is cut off at the timeout of the attempt, or before."""
    for module in ("transport", "aiohttp_transport"):
        monkeypatch.setattr(f"otel_step_hook.delivery.{module}.ANSWER_TIME", 20.0)  # seconds, instead of 1
    result = attempts.at(dripping(HEAD + b"content-length: 100000\r\n\r\n", b"x"), timeout=0.5)
    assert result.is_success
    assert len(result.excerpt) < 250  # about 25, at 50 a second; in ANSWER_TIME, 1000


def test_only_a_few_kilobytes_of_an_endless_body_are_read(attempts: Attempts) -> None:
    """The connection to a receiver that sends for ever is closed, and the excerpt is bounded."""
    sent = 0
    gone = threading.Event()

    def behave(connection: socket.socket, closing: threading.Event) -> None:
        nonlocal sent
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        read_request(connection)
        try:
            connection.sendall(HEAD + b"\r\n")
            while not closing.is_set():
                sent += connection.send(b"x" * 65_536)
        finally:
            gone.set()

    with HostileReceiver(behave) as receiver:
        result = attempts.one(receiver.url)
        assert gone.wait(10)
    assert result.is_success
    assert result.excerpt == b"x" * ANSWER_LIMIT
    assert sent < 16 * 1024 * 1024  # more than the buffers of two sockets hold


def test_nothing_is_decompressed(attempts: Attempts) -> None:
    """The excerpt of a compressed answer is its first compressed bytes, so that a gzip bomb stays small."""
    bomb = gzip.compress(bytes(50_000_000))
    head = HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(bomb)
    result = attempts.at(answering(head + bomb))
    assert result.is_success
    assert result.excerpt == bomb[:ANSWER_LIMIT]


def test_an_answer_that_is_no_http_is_a_failure_with_a_type(attempts: Attempts) -> None:
    """An answer that is not HTTP counts as an outage, with an error type of the transport's, and is not stale."""
    answers = {
        "FIN before the status": b"",
        "FIN inside the status": b"HTTP/1.1 2",
        "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
        "HTTP/2 in words": b"HTTP/2 200\r\n\r\n",
        "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
        "a status without a space": b"HTTP/1.1 200OK\r\n\r\n",
    }
    results = attempts.at_each({name: answering(answer, then_close=True) for name, answer in answers.items()})
    assert {name: one.error_type for name, one in results.items() if one.error_type not in attempts.own_errors} == {}
    outcomes = {name: (one.status_code, one.is_outage, one.is_stale) for name, one in results.items()}
    assert outcomes == dict.fromkeys(results, (None, True, False))
    assert {name for name, one in results.items() if not one.has_answered} == {"FIN before the status"}


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 000 OK\r\n\r\n", b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\n\r\n"]
)
def test_a_status_that_is_no_answer_is_a_failure(attempts: Attempts, answer: bytes) -> None:
    """Neither a status of 000 nor a 101 counts as an accepted webhook, whether a transport can read it or not."""
    result = attempts.at(answering(answer, then_close=True))
    assert (result.is_success, result.error_type == "timeout", result.is_stale) == (False, False, False)


def test_a_reset_after_the_request_is_a_failure_with_a_type(attempts: Attempts) -> None:
    """The error type of a connection that is reset after the request is the system's or the transport's."""

    def behave(connection: socket.socket, _: threading.Event) -> None:
        read_request(connection)
        reset(connection)

    assert attempts.at(behave).error_type in {"ConnectionResetError", *attempts.own_errors}


def test_a_reset_at_once_is_a_failure_with_a_type(attempts: Attempts) -> None:
    """The error type of a connection that is reset before the request is read is the system's or the transport's."""
    result = attempts.at(lambda connection, _: reset(connection))
    assert result.error_type in {"ConnectionResetError", "BrokenPipeError", *attempts.own_errors}


def test_a_closed_port_is_a_failure_with_a_type(attempts: Attempts) -> None:
    """A port where no receiver listens is a ConnectionRefusedError, not a timeout."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    result = attempts.one(f"http://127.0.0.1:{port}/hook")
    assert (result.error_type, result.peer) == ("ConnectionRefusedError", ("127.0.0.1", port))


@pytest.mark.parametrize("status", [199, 300, 304, 400, 404, 408, 410, 425, 429, 500, 503, 999])
def test_any_other_status_is_a_failure_under_its_number(attempts: Attempts, status: int) -> None:
    """The error type of a status other than 2xx is its number; after a 1xx the final status is still to come."""
    answer = answering(b"HTTP/1.1 %d Whatever\r\ncontent-length: 0\r\n\r\n" % status)
    result = attempts.at(answer, timeout=SHORT if status == 199 else 10.0)
    expected = ("timeout", None) if status == 199 else (str(status), status)
    assert (result.error_type, result.status_code) == expected


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(attempts: Attempts, status: int, step_receiver: ScriptedReceiver) -> None:
    """A redirect is a failed attempt, and no other receiver gets the webhook or the key."""
    moved = b"HTTP/1.1 %d Moved\r\nlocation: %s\r\ncontent-length: 0\r\n\r\n"
    answer = moved % (status, step_receiver.url.encode())
    result = attempts.at(answering(answer))
    assert (result.error_type, result.location) == (str(status), step_receiver.url)
    assert step_receiver.received == []


def test_no_cookie_is_kept(attempts: Attempts) -> None:
    """Cookies that a receiver sets are not sent back."""
    cookies = b"".join(b"set-cookie: c%d=%s\r\n" % (number, b"x" * 500) for number in range(100))
    requests: list[bytes] = []

    def behave(connection: socket.socket, _: threading.Event) -> None:
        while request := read_request(connection):
            requests.append(request)
            connection.sendall(HEAD + cookies + b"content-length: 0\r\n\r\n")

    with HostileReceiver(behave) as receiver:
        results = attempts(receiver.url, 3)
    assert all(result.is_success for result in results)
    assert len(requests) == 3
    assert not any(b"cookie" in request.lower() for request in requests)
    assert len({len(request) for request in requests}) == 1


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 200 F\xefn\r\nx: caf\xe9\r\ncontent-length: 0\r\n\r\n", id="latin-1"),
        pytest.param(
            HEAD + b"retry-after: \xd9\xa1\xd9\xa2\r\nwebhook-delivery: \xff\xfe\r\ncontent-length: 0\r\n\r\n",
            id="in the headers that are read",
        ),
        pytest.param(HEAD + b"x: a\x01\x1b[31mb\r\ncontent-length: 0\r\n\r\n", id="control characters"),
    ],
)
def test_odd_characters_in_an_answer_do_no_harm(attempts: Attempts, answer: bytes) -> None:
    """Invalid bytes in the reason and in headers do not change the result of the status."""
    result = attempts.at(answering(answer))
    assert (result.is_success, result.retry_after, result.directive) == (True, None, "")


@pytest.mark.parametrize(
    ("text", "directive"),
    [("disable", "disable"), (" Abort-Message ", "abort-message"), ("stop", ""), ("disable, abort-message", "")],
)
def test_the_directive_of_an_answer_is_read(attempts: Attempts, text: str, directive: str) -> None:
    """The header webhook-delivery counts only if it is 'disable' or 'abort-message', in any case."""
    answer = b"HTTP/1.1 500 No\r\nwebhook-delivery: %s\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n" % text.encode()
    result = attempts.at(answering(answer))
    assert (result.directive, result.retry_after) == (directive, 7.0)


def test_an_answer_before_the_end_of_the_request_counts(attempts: Attempts) -> None:
    """A receiver may answer, and close the connection, before it has read the request."""

    def behave(connection: socket.socket, closing: threading.Event) -> None:
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        with contextlib.suppress(OSError):
            read_request(connection)
        closing.wait(0)

    assert attempts.at(behave).status_code == 413
