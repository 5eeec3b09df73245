import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager

import pytest

import otel_step_hook.cli.listener
from otel_step_hook import ConfigurationError
from otel_step_hook.cli.listener import BODY_LIMIT, Arrival, Listener, Plan
from otel_step_hook.delivery.signing import new_secret, parse_secrets, sign

_BODY = b'{"step_id": "step-1"}'


@contextmanager
def _connection(listener: Listener, timeout: float = 10) -> Iterator[http.client.HTTPConnection]:
    port = int(listener.url.rpartition(":")[2].strip("/"))
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)) as connection:
        yield connection


def _post(
    listener: Listener, body: bytes = _BODY, headers: Mapping[str, str] | None = None, timeout: float = 10
) -> tuple[int, str, Mapping[str, str]]:
    """Post a webhook; returns status, body and headers of the answer."""
    with _connection(listener, timeout) as connection:
        connection.request("POST", "/", body, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.getheaders())


def _raw(listener: Listener, request: bytes) -> bytes:
    """Send the bytes of *request*; returns what the listener sends until it closes the connection."""
    port = int(listener.url.rpartition(":")[2].strip("/"))
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def test_a_genuine_webhook() -> None:
    """A webhook is reported to `on_arrival` and answered with 204, without a body."""
    arrivals: list[Arrival] = []
    with Listener(on_arrival=arrivals.append) as listener:
        before = time.time()
        status, text, headers = _post(listener, headers={"Webhook-Id": "msg_1", "Authorization": "Bearer k"})
    assert (status, text) == (204, "")
    assert "content-length" not in {name.lower() for name in headers}
    (arrival,) = arrivals
    assert before <= arrival.at <= time.time()
    assert (arrival.attempt, arrival.step_id, arrival.body, arrival.status) == (1, "step-1", _BODY, 204)
    assert (arrival.is_verified, arrival.verdict) == (True, "genuine")
    assert arrival.headers == {"webhook-id": "msg_1"}


def test_many_webhooks_on_one_connection() -> None:
    """A connection stays open, after a refusal too, and answers follow each other without delay."""
    with Listener(Plan(refusals=300)) as listener, _connection(listener) as connection:
        began = time.monotonic()
        connection.connect()
        kept = connection.sock
        for number in range(400):
            connection.request("POST", "/", _BODY, {"webhook-id": str(number)})
            assert connection.getresponse().read() is not None
        assert connection.sock is kept
        assert time.monotonic() - began < 10  # without TCP_NODELAY, 300 refusals would take 40 ms each


def test_a_wrong_key() -> None:
    """Without the right key the answer is 401 and says why, and the arrival has no step id."""
    arrivals: list[Arrival] = []
    with Listener(key="sesame", on_arrival=arrivals.append) as listener:
        status, text, _ = _post(listener)
        assert _post(listener, headers={"authorization": "Bearer sesame"})[0] == 204
    assert status == 401
    assert text.startswith("the authorization header is missing")
    assert (arrivals[0].is_verified, arrivals[0].step_id, arrivals[0].status) == (False, None, 401)
    assert arrivals[0].verdict == text


def test_signatures() -> None:
    """With a signing secret, only webhooks that are signed with it are accepted."""
    secret, now = new_secret(), int(time.time())
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(now)}

    def signed_with(key: str) -> dict[str, str]:
        signature = sign(parse_secrets(key), webhook_id="msg_1", timestamp=now, body=_BODY)
        return headers | {"webhook-signature": signature}

    with Listener(signing_secret=secret) as listener:
        assert _post(listener, headers=signed_with(secret))[0] == 204
        assert _post(listener, headers=signed_with(new_secret()))[0] == 401


def test_no_step() -> None:
    """A body without a step is answered with 400."""
    with Listener() as listener:
        assert _post(listener, b"no JSON")[0] == 400


def test_a_header_in_two_values() -> None:
    """A webhook with two ids is refused: neither is taken for the one."""
    head = b"POST / HTTP/1.1\r\nconnection: close\r\nwebhook-id: msg_1\r\nWebhook-Id: msg_2\r\n"
    with Listener() as listener:
        answer = _raw(listener, head + b"content-length: %d\r\n\r\n" % len(_BODY) + _BODY)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"2 different values of webhook-id" in answer


def test_refusals() -> None:
    """The first webhooks are refused, the later ones accepted; attempts are counted for each webhook id."""
    arrivals: list[Arrival] = []
    plan = Plan(refusals=2, status=429, retry_after=7)
    with Listener(plan, on_arrival=arrivals.append) as listener:
        answers = [_post(listener, headers={"webhook-id": name}) for name in ("a", "b", "b", "a")]
    assert [status for status, _, _ in answers] == [429, 429, 204, 204]
    assert [headers.get("retry-after") for _, _, headers in answers] == ["7", "7", None, None]
    assert [arrival.attempt for arrival in arrivals] == [1, 1, 2, 2]
    assert answers[0][1] == "refused on purpose, as this receiver was asked to"


def test_refusals_of_one_step() -> None:
    """With a step id in its plan, the listener refuses only webhooks of that step."""
    with Listener(Plan(refusals=1, step_id="step-2")) as listener:
        assert _post(listener)[0] == 204
        assert _post(listener, b'{"step_id": "step-2"}')[0] == 503
        assert _post(listener, b'{"step_id": "step-2"}')[0] == 204


def test_a_refusal_below_400() -> None:
    """A refusal may have a status below 400, such as a redirect; it has no body then."""
    with Listener(Plan(refusals=1, status=302)) as listener:
        status, text, headers = _post(listener)
    assert (status, text, headers["content-length"]) == (302, "", "0")


@pytest.mark.parametrize(("plan", "slow"), [(Plan(delay=60), [0, 1]), (Plan(refusals=1, delay=60), [0])])
def test_delays(plan: Plan, slow: list[int]) -> None:
    """The delay applies to each refusal; without refusals, to each answer."""
    arrived = threading.Semaphore(0)
    with Listener(plan, on_arrival=lambda _: arrived.release()) as listener:
        for attempt in range(2):
            if attempt in slow:
                with pytest.raises(TimeoutError):
                    _post(listener, headers={"webhook-id": "a"}, timeout=0.2)
                assert arrived.acquire(timeout=10)  # before the next one
            else:
                assert _post(listener, headers={"webhook-id": "a"})[0] == 204


@contextmanager
def _no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_closing_during_a_delay() -> None:
    """Closing the listener disconnects a client whose answer is being delayed."""
    arrived = threading.Event()
    listener = Listener(Plan(delay=60), on_arrival=lambda _: arrived.set())
    with _connection(listener) as connection, _no_threads_left():
        with listener:
            connection.request("POST", "/", _BODY)
            assert arrived.wait(10)
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            connection.getresponse()


def test_closing_ends_kept_connections() -> None:
    """Closing the listener closes the connections that clients keep open."""
    listener = Listener()
    with _connection(listener) as connection, _no_threads_left():
        with listener:
            connection.request("POST", "/", _BODY)
            assert connection.getresponse().status == 204
            kept = connection.sock
        assert kept.recv(1) == b""


def test_get() -> None:
    """A browser, which sends GET, is shown what the listener is for."""
    with Listener() as listener:
        answer = _raw(listener, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"allow: POST\r\n" in answer
    assert b"receives step webhooks" in answer


def test_head() -> None:
    """HEAD, as `check` sends it, is answered without a body and is not reported as an arrival."""
    arrivals: list[Arrival] = []
    with Listener(on_arrival=arrivals.append) as listener:
        answer = _raw(listener, b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert arrivals == []
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 405 ")
    assert b"allow: POST" in head
    assert body == b""


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"", 411),
        (b"transfer-encoding: chunked\r\n", 411),
        (b"transfer-encoding: chunked\r\ncontent-length: 3\r\n", 411),
        (b"content-length: many\r\n", 400),
        (b"content-length: -1\r\n", 400),
        (b"content-length: +1\r\n", 400),
        (b"content-length: \xb2\r\n", 400),
        (b"content-length: %d\r\n" % (BODY_LIMIT + 1), 413),
        (b"content-length: " + b"9" * 5000 + b"\r\n", 413),
        (b"x: y\r\n" * 200, 431),
    ],
)
def test_bad_heads(head: bytes, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A request with a malformed head is refused and not reported as an arrival; the next request is served."""
    arrivals: list[Arrival] = []
    with Listener(on_arrival=arrivals.append) as listener:
        answer = _raw(listener, b"POST / HTTP/1.1\r\nhost: x\r\n" + head + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert arrivals == []
        assert _post(listener)[0] == 204
    assert capsys.readouterr() == ("", "")


def test_the_largest_body() -> None:
    """A body of exactly the limit is accepted."""
    body = json.dumps({"step_id": "s", "x": ""}).encode()
    body = body[:-2] + b"x" * (BODY_LIMIT - len(body)) + body[-2:]
    with Listener() as listener:
        assert len(body) == BODY_LIMIT
        assert _post(listener, body)[0] == 204


def test_other_methods() -> None:
    """Other methods are refused with 501, by http.server itself."""
    with Listener() as listener:
        assert _raw(listener, b"BREW / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 501 ")


def test_a_body_that_breaks_off() -> None:
    """A request whose client disconnects in the middle of the body is not reported as an arrival."""
    arrivals: list[Arrival] = []
    with Listener(on_arrival=arrivals.append) as listener:
        port = int(listener.url.rpartition(":")[2].strip("/"))
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"POST / HTTP/1.1\r\ncontent-length: 99\r\n\r\n{")
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
    assert arrivals == []


def test_a_client_that_leaves_before_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """A client that resets its connection leaves nothing on stderr."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing sends a reset
    left = threading.Event()

    def leave(_: Arrival) -> None:
        client.close()
        left.set()

    with Listener(Plan(refusals=1), on_arrival=leave) as listener:
        client.connect(("127.0.0.1", int(listener.url.rpartition(":")[2].strip("/"))))
        client.sendall(b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(_BODY) + _BODY)
        assert left.wait(10)
    assert capsys.readouterr() == ("", "")


def test_an_exception_in_on_arrival(capfd: pytest.CaptureFixture[str]) -> None:
    """An exception in `on_arrival` is printed and costs that one answer; later webhooks are answered."""

    def fail(arrival: Arrival) -> None:
        if arrival.attempt == 1:
            raise LookupError("raised by the test")

    with Listener(on_arrival=fail) as listener:
        with pytest.raises(http.client.RemoteDisconnected):
            _post(listener)
        assert _post(listener)[0] == 204
    assert "LookupError: raised by the test" in capfd.readouterr().err


def test_ports() -> None:
    """A given port is used; one that is taken raises OSError."""
    with Listener() as listener:
        port = int(listener.url.rpartition(":")[2].strip("/"))
        with pytest.raises(OSError, match="in use"):
            Listener(port=port)
    with Listener(port=port) as listener:
        assert listener.url == f"http://127.0.0.1:{port}/"


def test_secrets_that_no_webhook_can_match() -> None:
    """A blank key and a malformed signing secret raise ConfigurationError at once."""
    with pytest.raises(ConfigurationError):
        Listener(key=" ")
    with pytest.raises(ConfigurationError):
        Listener(signing_secret="whsec_short")


def test_the_oldest_webhook_id_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of counted webhook ids is bounded; the one that has not arrived for longest starts again at 1."""
    monkeypatch.setattr(otel_step_hook.cli.listener, "_MAX_COUNTED", 2)
    arrivals: list[Arrival] = []
    with Listener(on_arrival=arrivals.append) as listener:
        for webhook_id in ("a", "b", "a", "c", "a", "b"):
            _post(listener, headers={"webhook-id": webhook_id})
    assert [arrival.attempt for arrival in arrivals] == [1, 1, 2, 1, 3, 1]
