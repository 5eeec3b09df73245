import asyncio
import contextlib
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
from pytest_httpserver import HTTPServer
from sending import Names, accepting_one, answering, endpoint_to, secured, server_context, silent

from otel_step_hook import ConfigurationError, __version__
from otel_step_hook.cli.listener import Arrival, Listener
from otel_step_hook.cli.probe import CheckResult, probe, send_one
from otel_step_hook.delivery.signing import new_secret
from otel_step_hook.receiver import verify
from otel_step_hook.testing import Answer, HostileReceiver, ScriptedReceiver, read_request


def _probe(url: str, *, limit: float = 5.0, **settings: str | None) -> list[CheckResult]:
    return asyncio.run(probe(endpoint_to(url, **settings), timeout=limit))


def _tried(findings: list[CheckResult]) -> list[tuple[str, bool]]:
    return [(finding.check, finding.is_ok) for finding in findings]


def test_a_receiver() -> None:
    """Our listener answers HEAD, and does not count it as a webhook."""
    arrivals: list[Arrival] = []
    with Listener(on_arrival=arrivals.append) as listener:
        findings = _probe(listener.url)
    assert _tried(findings) == [("connect", True), ("HTTP", True)]
    assert re.fullmatch(r"127\.0\.0\.1:\d+ accepts connections \(\d+ ms\)", findings[0].message)
    assert re.fullmatch(r"answers HEAD with \d{3}, so it speaks HTTP \(\d+ ms\)", findings[1].message)
    assert arrivals == []


@pytest.mark.parametrize(("user", "key"), [("", "sesame"), ("user:pass@", None)])
def test_what_is_sent(user: str, key: str | None) -> None:
    """One HEAD request with path and query goes over one connection, without any secret."""
    requests: list[bytes] = []

    def behave(connection: socket.socket, _: threading.Event) -> None:
        requests.append(read_request(connection))
        connection.sendall(b"HTTP/1.1 405 Method Not Allowed\r\nallow: POST\r\n\r\n")
        requests.append(connection.recv(1))

    with HostileReceiver(behave) as receiver:
        url = receiver.url.replace("http://", f"http://{user}") + "/a%20b?token=9#part"
        assert _probe(url, key=key, signing_secret=new_secret(), headers="x-token=abc")[-1].is_ok
        host = receiver.url.removeprefix("http://").removesuffix("/hook")
    head = (
        f"HEAD /hook/a%20b?token=9 HTTP/1.1\r\nHost: {host}\r\n"
        f"User-Agent: otel-step-hook/{__version__}\r\nConnection: close\r\n\r\n"
    )
    assert requests == [head.encode(), b""]
    assert receiver.connections == 1


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"HTTP/1.1 204 No Content\r\n", "204"),
        (b"HTTP/1.0 404\r\n", "404"),
        (b"HTTP/1.1 503 \n", "503"),
        (b"HTTP/1.1 999 Request denied\r\n", "999"),
    ],
)
def test_any_status_is_an_answer(line: bytes, status: str) -> None:
    """A status line with any status counts as an answer, and no more than that line is read."""
    with HostileReceiver(answering(line)) as receiver:
        finding = _probe(receiver.url)[-1]
    assert (finding.check, finding.is_ok) == ("HTTP", True)
    assert finding.message.startswith(f"answers HEAD with {status}, so it speaks HTTP (")


@pytest.mark.parametrize(
    "answer",
    [
        b"220 mail.example ESMTP secret\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",  # a TLS alert, which has no line break
        b"HTTP/2 200\r\n",
        b"HTTP/1.1 99 Balloons\r\n",
        b"HTTP/1.1 200 " + b"x" * 10_000,
    ],
)
def test_an_answer_that_is_no_http(answer: bytes) -> None:
    """An answer that is not HTTP is reported as such at once, and is not shown."""
    with HostileReceiver(answering(answer)) as receiver:
        assert _probe(receiver.url)[-1] == CheckResult(
            "HTTP",
            is_ok=False,
            message="answers with something that is no HTTP; does the endpoint speak http, not https?",
        )


def test_a_line_that_comes_in_pieces() -> None:
    """A status line that arrives in pieces is joined; one that breaks off is not an answer."""

    def behave(connection: socket.socket, closing: threading.Event) -> None:
        read_request(connection)
        for piece in (b"HT", b"TP/1.1 20", b"0 O"):
            connection.sendall(piece)
            closing.wait(0.05)  # so that the pieces arrive one by one
        if whole.is_set():
            connection.sendall(b"K\r\n")

    whole = threading.Event()
    with HostileReceiver(behave) as receiver:
        assert not _probe(receiver.url)[-1].is_ok
        whole.set()
        assert _probe(receiver.url)[-1].message.startswith("answers HEAD with 200, ")


def _hang_up(connection: socket.socket, _: threading.Event) -> None:
    read_request(connection)


def _reset(connection: socket.socket, _: threading.Event) -> None:
    read_request(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("behave", [_hang_up, _reset])
def test_no_answer_at_all(behave: Callable[[socket.socket, threading.Event], None]) -> None:
    """A receiver that closes or resets the connection after the request has not answered."""
    with HostileReceiver(behave) as receiver:
        findings = _probe(receiver.url)
    assert findings[-1] == CheckResult("HTTP", is_ok=False, message="closes the connection without an answer")


def test_a_closed_port(closed_port: int) -> None:
    """A refused connection is reported as refused."""
    assert _probe(f"http://127.0.0.1:{closed_port}/") == [
        CheckResult(
            "connect", is_ok=False, message=f"127.0.0.1:{closed_port} refuses connections: nothing listens there"
        )
    ]


def test_an_address_without_a_route() -> None:
    """For an address without a route, the message holds the system's own description of the error."""
    (finding,) = _probe("http://255.255.255.255:9/")
    assert not finding.is_ok
    assert finding.message.startswith("255.255.255.255:9 cannot be reached: ")


def test_ipv6_is_written_with_brackets() -> None:
    """Brackets separate an IPv6 address from its port."""
    (finding,) = _probe("http://[::1]:9/")
    assert finding.message.startswith("[::1]:9 ")


def test_a_name(names: Names, step_receiver: ScriptedReceiver) -> None:
    """All addresses of a name are shown, and tried until one accepts."""
    names.lead_to("hook.example", ["127.0.0.2", "127.0.0.1", "127.0.0.3"])
    findings = _probe(step_receiver.url.replace("127.0.0.1", "hook.example"))
    assert findings[0] == CheckResult("name", is_ok=True, message="hook.example is 127.0.0.2, 127.0.0.1, 127.0.0.3")
    assert _tried(findings[1:]) == [("connect", False), ("connect", True), ("HTTP", True)]


def test_a_name_all_of_whose_addresses_refuse(names: Names, closed_port: int) -> None:
    """The endpoint cannot be reached when its last address refuses too."""
    names.lead_to("hook.example", ["127.0.0.1", "127.0.0.1", "127.0.0.2"])
    findings = _probe(f"http://hook.example:{closed_port}/")
    assert [finding.is_ok for finding in findings] == [True, False, False]


@pytest.mark.parametrize("error", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long")])
def test_an_unknown_name(names: Names, error: Exception) -> None:
    """A name that does not exist, or is no valid name, is reported as unknown."""

    def unknown() -> list[str]:
        raise error

    names.lead_to("hook.example", unknown)
    assert _probe("http://hook.example/") == [
        CheckResult(
            "name",
            is_ok=False,
            message="hook.example cannot be resolved: no such name, or no name server that knows it",
        )
    ]


def test_a_name_that_leads_to_a_metadata_service(names: Names) -> None:
    """No connection is made to the address of a cloud metadata service."""
    names.lead_to("hook.example", ["169.254.169.254"])
    (finding,) = _probe("http://hook.example/")
    assert (finding.is_ok, finding.message) == (
        False,
        "hook.example leads to a cloud metadata service, which is refused",
    )


def test_a_name_that_leads_to_a_private_address(names: Names) -> None:
    """Where only public addresses are allowed, no connection is made to another one."""
    names.lead_to("hook.example", ["127.0.0.1", "10.0.0.1"])
    (finding,) = _probe("http://hook.example/", public_only="true")
    assert (finding.is_ok, finding.message) == (
        False,
        "hook.example leads to no public address, and STEP_COMPLETE_PUBLIC_ONLY refuses all others",
    )


def test_a_link_local_address(linked: tuple[str, str]) -> None:
    """The zone of a receiver's address, and of a proxy's, is used to connect; the host header does not have it."""
    address, interface = linked
    with accepting_one(f"{address}%{interface}") as (port, requests):
        assert _tried(_probe(f"http://[{address}%25{interface}]:{port}/"))[1:] == [("connect", True), ("HTTP", True)]
    assert b"\r\nhost: [%s]:%d\r\n" % (address.encode(), port) in requests[0].lower()
    with socket.create_server(("::", 0), family=socket.AF_INET6) as proxy:
        through = f"http://[{address}%25{interface}]:{proxy.getsockname()[1]}"
        assert _tried(_probe("http://hook.example/", proxy=through)) == [("proxy", True)]


@pytest.fixture
def tls_server() -> Iterator[HTTPServer]:
    """An https server with a certificate of the test authority."""
    with HTTPServer(host="127.0.0.1", ssl_context=server_context("127.0.0.1")) as server:
        yield server


def test_tls(tls_server: HTTPServer, trusted: str) -> None:
    """With a trusted certificate, TLS version and expiry of the certificate are shown, and HEAD is sent."""
    tls_server.expect_request("/hook", method="HEAD", query_string="a=1").respond_with_data(status=405)
    findings = _probe(tls_server.url_for("/hook?a=1"), certificate=trusted)
    assert _tried(findings) == [("connect", True), ("TLS", True), ("HTTP", True)]
    assert findings[1].message.startswith("TLSv1.3, certificate valid until ")
    assert findings[2].message.startswith("answers HEAD with 405, ")
    assert len(tls_server.log) == 1


def test_no_http_inside_of_tls(trusted: str) -> None:
    """After a TLS handshake, the message does not suggest that the endpoint speaks http."""
    with HostileReceiver(secured(server_context("127.0.0.1"), answering(b"* OK IMAP4\r\n"))) as receiver:
        finding = _probe(receiver.url.replace("http://", "https://"), certificate=trusted)[-1]
    assert finding == CheckResult("HTTP", is_ok=False, message="answers with something that is no HTTP")


def test_a_client_certificate_that_is_missing(trusted: str) -> None:
    """If the endpoint demands a client certificate, the message names the setting.

    In TLS 1.3 the client learns of that only after its handshake.
    """
    context = server_context("127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED

    def refuse(connection: socket.socket, closing: threading.Event) -> None:
        with context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as inside:
            with contextlib.suppress(ssl.SSLError):
                inside.do_handshake()
            closing.wait()  # a reset could overtake the TLS alert

    with HostileReceiver(refuse) as receiver:
        finding = _probe(receiver.url.replace("http://", "https://"), certificate=trusted)[-1]
    assert (finding.check, finding.is_ok) == ("HTTP", False)
    assert finding.message.startswith("refuses our certificate, or that we have none, ")
    assert finding.message.endswith("; see STEP_COMPLETE_CLIENT_CERTIFICATE")


def test_an_untrusted_certificate(tls_server: HTTPServer) -> None:
    """For a certificate of an unknown authority, the message names the setting."""
    finding = _probe(tls_server.url_for("/"))[-1]
    assert (finding.check, finding.is_ok) == ("TLS", False)
    assert finding.message.startswith("certificate not trusted, ")
    assert finding.message.endswith("; see STEP_COMPLETE_CERTIFICATE")


def test_https_to_a_port_that_speaks_http(step_receiver: ScriptedReceiver) -> None:
    """The message suggests that the endpoint speaks http, a common mistake."""
    finding = _probe(step_receiver.url.replace("http://", "https://"))[-1]
    assert (finding.check, finding.is_ok) == ("TLS", False)
    assert finding.message.endswith("does the endpoint speak https, not http?")


@pytest.mark.parametrize(("scheme", "check"), [("http", "HTTP"), ("https", "TLS")])
def test_a_server_that_says_nothing(names: Names, scheme: str, check: str) -> None:
    """A silent server costs no more than the timeout; after a connection, no other address is tried."""
    names.lead_to("hook.example", ["127.0.0.1", "127.0.0.2"])
    with HostileReceiver(silent) as receiver:
        findings = _probe(receiver.url.replace("http://127.0.0.1", f"{scheme}://hook.example"), limit=1.0)
    assert _tried(findings) == [("name", True), ("connect", True), (check, False)]
    assert findings[-1].message == "gives no answer within 1 s"


def test_a_shorter_timeout_of_attempts() -> None:
    """A check takes no longer than an attempt may."""
    with HostileReceiver(silent) as receiver:
        findings = _probe(receiver.url, timeout="1")
    assert findings[-1] == CheckResult("HTTP", is_ok=False, message="gives no answer within 1 s")


def test_a_proxy(closed_port: int) -> None:
    """With a proxy, `probe` only connects to the proxy, sends nothing, and does not look up the endpoint's name."""
    received: SimpleQueue[bytes] = SimpleQueue()
    url = "http://hook.invalid/"
    with HostileReceiver(lambda connection, _: received.put(connection.recv(1))) as proxy:
        assert _tried(_probe(url, proxy=proxy.url)) == [("proxy", True)]
        assert received.get(timeout=10) == b""  # the connection may be accepted after it was closed
    assert _tried(_probe(url, proxy=f"http://127.0.0.1:{closed_port}")) == [("proxy", False)]


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    """A certificate file that cannot be read raises ConfigurationError."""
    with pytest.raises(ConfigurationError):
        _probe("https://127.0.0.1:9/", certificate=str(tmp_path / "none.pem"))


# `send_one`


def test_send_one(step_receiver: ScriptedReceiver) -> None:
    """`send_one` makes one attempt like those of the processor, with a trace context that is not sampled."""
    secret = new_secret()
    endpoint = endpoint_to(step_receiver.url, key="sesame", signing_secret=secret)
    step_receiver.answers(Answer(503, body=b"later"))
    sent = asyncio.run(send_one(endpoint, "step-mine"))
    assert (sent.step_id, sent.result.status_code, sent.result.excerpt) == ("step-mine", 503, b"later")
    assert 0 < sent.took < 10
    (received,) = step_receiver.received
    step = verify(received.body, received.headers, key="sesame", signing_secret=secret)
    assert (step.step_id, step.webhook_id) == ("step-mine", sent.webhook_id)
    assert received.headers["traceparent"].endswith("-00")


def test_send_one_under_a_new_id(step_receiver: ScriptedReceiver) -> None:
    """Without a step id, each webhook gets a new one."""
    endpoint = endpoint_to(step_receiver.url)
    first, second = (asyncio.run(send_one(endpoint)) for _ in range(2))
    assert first.step_id.startswith("step-")
    assert first.step_id != second.step_id
    assert first.result.is_success
