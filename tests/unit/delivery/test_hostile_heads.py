"""Receivers whose answers have a status line, and nonsense before or after it: the result of one attempt at each."""

import socket
import threading

import pytest
from sending import OK, TO_CONNECT, Attempts, Behaviour, answering, dripping, flooding, port_of, secured, server_context

from otel_step_hook.delivery.answer_head import BYTES_LIMIT, INTERIM_LIMIT, AnswerHead, AnswerWithoutStatus
from otel_step_hook.testing import HostileReceiver, read_request

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
REFUSED = "AnswerWithoutStatus"
# What comes after a status line, and is no HTTP, or more than a library reads.
UNTIDY = {
    "a header without a colon": b"nonsense\r\ncontent-length: 0\r\n\r\n",
    "a space in a name": b"x y: 1\r\ncontent-length: 0\r\n\r\n",
    "a space before the colon": b"x : 1\r\ncontent-length: 0\r\n\r\n",
    "no name": b": 1\r\ncontent-length: 0\r\n\r\n",
    "NUL in a value": b"x: a\x00b\r\ncontent-length: 0\r\n\r\n",
    "control characters in a value": b"x: a\x01\x1b[31mb\r\ncontent-length: 0\r\n\r\n",
    "bytes beyond ASCII": b"x: \xff\xfe\xe2\x82\xac\r\ncontent-length: 0\r\n\r\n",
    "a name beyond ASCII": b"caf\xe9: 1\r\ncontent-length: 0\r\n\r\n",
    "a folded header": b"x: a\r\n  b\r\ncontent-length: 0\r\n\r\n",
    "a first header that is folded": b"  x: a\r\ncontent-length: 0\r\n\r\n",
    "two content-lengths": b"content-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "twice the same content-length": b"content-length: 1\r\ncontent-length: 1\r\n\r\na",
    "a content-length that is no number": b"content-length: two\r\n\r\n",
    "a negative content-length": b"content-length: -1\r\n\r\n",
    "content-length and chunks": b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a foreign transfer-encoding": b"transfer-encoding: zip\r\n\r\n",
    "bare LF": b"x: 1\ncontent-length: 0\n\n",
    "200 headers": b"".join(b"x-%d: 1\r\n" % number for number in range(200)) + b"content-length: 0\r\n\r\n",
    "a header of 70 kB": b"x: " + b"a" * 70_000 + b"\r\ncontent-length: 0\r\n\r\n",
    "a header of 200 kB": b"x: " + b"a" * 200_000 + b"\r\n\r\n",
    "the end of the connection": b"",
    "the end inside a header": b"x: ",
}
STATUS_LINES = {
    "no reason": b"HTTP/1.1 200\r\n",
    "an empty reason": b"HTTP/1.1 200 \r\n",
    "NUL in the reason": b"HTTP/1.1 200 O\x00K\r\n",
    "bare LF": b"HTTP/1.1 200 OK\n",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n",
    "empty lines before it": b"\r\n\r\nHTTP/1.1 200 OK\r\n",
}


def untidy(line: bytes) -> dict[str, Behaviour]:
    """Receivers that answer with this status line, each with another nonsense after it."""
    return {name: answering(line + rest, then_close=True) for name, rest in UNTIDY.items()}


@pytest.mark.parametrize("status", [200, 410, 503])
def test_the_status_of_an_untidy_answer_counts(attempts: Attempts, status: int) -> None:
    """Nonsense in the headers changes nothing: a receiver that has accepted a webhook does not get it again."""
    results = attempts.at_each(untidy(b"HTTP/1.1 %d Whatever\r\n" % status))
    outcomes = {name: (one.status_code, one.error_type, one.is_stale) for name, one in results.items()}
    assert outcomes == dict.fromkeys(UNTIDY, (status, None if status == 200 else str(status), False))


def test_an_untidy_status_line_counts(attempts: Attempts) -> None:
    """The reason, and how the line ends, do not matter."""
    answers = {name: line + b"content-length: 0\r\n\r\n" for name, line in STATUS_LINES.items()}
    results = attempts.at_each({name: answering(answer, then_close=True) for name, answer in answers.items()})
    assert {name: one.status_code for name, one in results.items()} == dict.fromkeys(STATUS_LINES, 200)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_connection_is_not_used_after_an_untidy_answer(attempts: Attempts, trusted: str, scheme: str) -> None:
    """Where an answer is no HTTP, nobody knows where the next one would begin, so the next attempt connects again."""
    behave = answering(OK, b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", OK)
    behaviour = behave if scheme == "http" else secured(server_context("127.0.0.1"), behave)
    with HostileReceiver(behaviour) as receiver:
        results = attempts(receiver.url.replace("http:", f"{scheme}:"), 4, certificate=trusted)
        assert receiver.connections == 2
    assert [one.status_code for one in results] == [204, 200, 204, 200]


def test_the_status_of_a_tunnel_is_not_the_receiver_s(attempts: Attempts) -> None:
    """A proxy that accepts CONNECT and then breaks the connection has not delivered a webhook."""
    with HostileReceiver(answering(b"HTTP/1.1 200 OK\r\n\r\n", then_close=True)) as proxy:
        result = attempts.one("https://nowhere.test/hook", proxy=f"http://127.0.0.1:{port_of(proxy.url)}")
    assert (result.is_success, result.status_code) == (False, None)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "flood",
    [
        pytest.param(CONTINUE, id="100"),
        pytest.param(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n", id="103"),
    ],
)
def test_a_flood_of_interim_answers_is_cut_off(attempts: Attempts, trusted: str, scheme: str, flood: bytes) -> None:
    """An attempt ends long before its timeout when a receiver sends more interim answers than any needs."""
    behave = flooding(b"", flood)
    behaviour = behave if scheme == "http" else secured(server_context("127.0.0.1"), behave)
    with HostileReceiver(behaviour) as receiver:
        results = attempts(receiver.url.replace("http:", f"{scheme}:"), 2, certificate=trusted, timeout=30.0)
        assert receiver.connections == 2
    assert [(one.error_type, one.status_code, one.has_answered) for one in results] == [(REFUSED, None, True)] * 2


def test_interim_answers_that_drip_are_counted(attempts: Attempts) -> None:
    """It does not matter how fast they come."""
    assert attempts.at(dripping(b"", CONTINUE), timeout=30.0).error_type == REFUSED


def test_an_interim_answer_without_an_end_is_cut_off(attempts: Attempts) -> None:
    """Before the status line, no more than 64 kB are read."""
    result = attempts.at(flooding(b"HTTP/1.1 103 Early Hints\r\nx: ", b"a" * 1000), timeout=30.0)
    assert result.error_type in {REFUSED, *attempts.own_errors}
    assert (result.status_code, result.has_answered) == (None, True)


def test_a_few_interim_answers_are_allowed(attempts: Attempts) -> None:
    """Answers of 100 and 103 before the final one, with headers, change nothing, on a kept connection, too."""
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: " + b"a" * 1000 + b"\r\n\r\n"
    with HostileReceiver(answering(CONTINUE + hints * (INTERIM_LIMIT - 1) + OK)) as receiver:
        results = attempts(receiver.url, 3)
        assert receiver.connections == 1
    assert [one.status_code for one in results] == [204] * 3


def test_the_flood_of_a_proxy_holds_no_attempt_beyond_its_timeout(attempts: Attempts) -> None:
    """The timeout holds where a proxy floods the answer to CONNECT."""
    with HostileReceiver(flooding(b"", CONTINUE)) as proxy:
        address = f"http://127.0.0.1:{port_of(proxy.url)}"
        result = attempts.one("https://nowhere.test/hook", proxy=address, timeout=TO_CONNECT)
    assert result.error_type in {REFUSED, "timeout", *attempts.own_errors}


def test_bytes_that_are_no_answer_are_seen(attempts: Attempts) -> None:
    """A receiver that sends nonsense was reached, and the result says so."""
    seen: list[bytes] = []

    def behave(connection: socket.socket, _: threading.Event) -> None:
        seen.append(read_request(connection))
        connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

    result = attempts.at(behave)
    assert (len(seen), result.has_answered, result.status_code) == (1, True, None)


# Without a connection


def test_a_status_line_in_pieces_is_read() -> None:
    """The status is known as soon as its line has ended, and nothing after it changes it."""
    head = AnswerHead()
    for byte in CONTINUE + b"HTTP/1.1 204 No Content\r":
        head.feed(bytes([byte]))
    assert (head.status, head.has_begun) == (None, True)
    for rest in (b"\n", b"HTTP/1.1 500 No\r\n", b"x" * BYTES_LIMIT):
        head.feed(rest)
    assert head.status == 204
    head.reset()
    head.feed(b"")
    assert not head.has_begun


@pytest.mark.parametrize("start", [b"SSH-2.0\r\n", b"HTTP/1.1 000 No\r\n", b"HTTP/2 200\r\n", b"HTTP/1.1 200OK\r\n"])
def test_what_is_no_status_line_is_read_up_to_the_limit(start: bytes) -> None:
    """64 kB without a status are no answer."""
    head = AnswerHead()
    head.feed(start)
    head.feed(b"x" * (BYTES_LIMIT - len(start)))
    assert (head.status, head.is_refused) == (None, False)
    with pytest.raises(AnswerWithoutStatus):
        head.feed(b"x")
    assert (head.status, head.is_refused) == (None, True)


def test_an_answer_after_too_many_interim_answers_does_not_count() -> None:
    """It does not depend on how the bytes arrive, all at once or one by one, whether an answer is refused."""
    head = AnswerHead()
    head.feed(CONTINUE * INTERIM_LIMIT)
    with pytest.raises(AnswerWithoutStatus):
        head.feed(CONTINUE + OK)
    assert head.status is None
