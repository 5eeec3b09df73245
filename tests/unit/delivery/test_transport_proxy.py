"""One attempt through a proxy."""

import base64
import gc
import select
import socket
import threading

import pytest
from delivering import wait_until
from sending import (
    CONTENT,
    NAME,
    OK,
    TO_CONNECT,
    Attempts,
    Behaviour,
    answering,
    dripping,
    endpoint_to,
    no_tls,
    port_of,
    secured,
    server_context,
    silent,
)

from otel_step_hook import ConfigurationError
from otel_step_hook.testing import HostileReceiver, ScriptedReceiver, read_request


def tunnelling(behave: Behaviour, heads: list[bytes]) -> Behaviour:
    """A proxy that accepts any CONNECT, and then does what *behave* does in place of the receiver."""

    def tunnel(connection: socket.socket, closing: threading.Event) -> None:
        heads.append(read_request(connection))
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        behave(connection, closing)

    return tunnel


def relay(near: socket.socket, far: socket.socket) -> None:
    """Pass on what either socket receives to the other, until one is closed."""
    while True:
        for one in select.select([near, far], [], [])[0]:
            received = one.recv(65_536)  # of TLS, one record: OpenSSL reads no further, so that select() sees the rest
            if not received:
                return
            (far if one is near else near).sendall(received)


def test_an_http_webhook_goes_through_the_proxy(attempts: Attempts) -> None:
    """The proxy gets the request in absolute form, with the proxy's own credentials, and resolves the name."""
    requests: list[bytes] = []

    def behave(connection: socket.socket, _: threading.Event) -> None:
        while request := read_request(connection):
            requests.append(request)
            connection.sendall(OK)

    with HostileReceiver(behave) as proxy:
        port = port_of(proxy.url)
        results = attempts("http://nowhere.test/hook", 2, proxy=f"http://user:pass@127.0.0.1:{port}")
    assert [result.status_code for result in results] == [204, 204]
    assert results[0].peer == ("127.0.0.1", int(port))
    assert requests[0].startswith(b"POST http://nowhere.test/hook HTTP/1.1\r\n")
    assert b"\r\nhost: nowhere.test\r\n" in requests[0].lower()
    assert b"proxy-authorization: basic " + base64.b64encode(b"user:pass").lower() in requests[0].lower()
    assert requests[0].endswith(CONTENT)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("user_info", "pair"),
    [("us%40er:p%3Aa%2Fss", "us@er:p:a/ss"), ("usér:5€", "usér:5€"), ("user", "user:"), (":pass", ":pass")],
)
def test_the_credentials_for_a_proxy_are_sent_in_utf_8(
    attempts: Attempts, scheme: str, user_info: str, pair: str
) -> None:
    """User name and password are decoded, and sent as RFC 7617 has it, with a request or with a CONNECT."""
    requests: list[bytes] = []

    def behave(connection: socket.socket, _: threading.Event) -> None:
        requests.append(read_request(connection))
        connection.sendall(b"HTTP/1.1 502 No\r\ncontent-length: 0\r\n\r\n")

    with HostileReceiver(behave) as proxy:
        attempts.one(f"{scheme}://nowhere.test/hook", proxy=f"http://{user_info}@127.0.0.1:{port_of(proxy.url)}")
    lines = [line for line in requests[0].split(b"\r\n") if line.lower().startswith(b"proxy-authorization: ")]
    assert [base64.b64decode(line.split()[2]).decode() for line in lines] == [pair]


def test_an_https_webhook_goes_through_a_tunnel(attempts: Attempts, trusted: str) -> None:
    """The proxy of an https webhook sees the name, but not the request."""
    heads: list[bytes] = []
    inside: list[bytes] = []

    def behave(connection: socket.socket, _: threading.Event) -> None:
        while request := read_request(connection):
            inside.append(request)
            connection.sendall(OK)

    with HostileReceiver(tunnelling(secured(server_context(), behave), heads)) as proxy:
        address = f"http://user:pass@127.0.0.1:{port_of(proxy.url)}"
        results = attempts(f"https://{NAME}/hook", 2, proxy=address, certificate=trusted)
        assert proxy.connections == 1
    assert [result.status_code for result in results] == [204, 204]
    assert heads[0].startswith(b"CONNECT receiver.test:443 HTTP/1.1\r\n")
    assert b"sekret" not in heads[0]
    assert b"POST /hook HTTP/1.1" in inside[0]
    assert b"proxy-authorization" not in inside[0].lower()


def test_the_proxy_itself_may_speak_tls(attempts: Attempts, trusted: str) -> None:
    """An https proxy is verified against the same authorities as the receiver."""
    with HostileReceiver(secured(server_context("127.0.0.1"))) as proxy:
        address = f"https://127.0.0.1:{port_of(proxy.url)}"
        assert attempts.one("http://nowhere.test/hook", proxy=address, certificate=trusted).is_success
        assert attempts.one("http://nowhere.test/hook", proxy=address).error_type == "SSLCertVerificationError"


def test_a_tunnel_may_go_through_a_proxy_that_speaks_tls(attempts: Attempts, trusted: str) -> None:
    """TLS with the receiver goes inside TLS with the proxy, each verified by its own name, over one connection."""

    def behave(connection: socket.socket, _: threading.Event) -> None:
        heads.append(read_request(connection))
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with socket.create_connection(("127.0.0.1", int(port_of(receiver.url)))) as far:
            relay(connection, far)

    heads: list[bytes] = []
    with (
        HostileReceiver(secured(server_context())) as receiver,
        HostileReceiver(secured(server_context("127.0.0.1"), behave)) as proxy,
    ):
        address = f"https://127.0.0.1:{port_of(proxy.url)}"
        results = attempts(f"https://{NAME}/hook", 3, proxy=address, certificate=trusted)
    assert [result.status_code for result in results] == [204] * 3
    assert [head.partition(b"\r\n")[0] for head in heads] == [b"CONNECT receiver.test:443 HTTP/1.1"]


def test_a_proxy_that_refuses_is_a_failure_with_a_type(attempts: Attempts) -> None:
    """A proxy that refuses the tunnel is an error each time, and its text is not kept."""
    refusing = answering(b"HTTP/1.1 407 sekret\r\ncontent-length: 0\r\n\r\n")
    with HostileReceiver(refusing) as proxy:
        results = attempts("https://nowhere.test/hook", 2, proxy=f"http://127.0.0.1:{port_of(proxy.url)}")
    assert [result.error_type in attempts.own_errors for result in results] == [True, True]
    assert not any("sekret" in f"{result}" for result in results)


def test_a_proxy_that_breaks_is_a_failure_with_a_type(attempts: Attempts) -> None:
    """A proxy that closes on CONNECT, or answers with no HTTP, is an error each time, and the request is not resent."""
    for answer in (b"", b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 2"):
        with HostileReceiver(answering(answer, then_close=True)) as proxy:
            results = attempts("https://nowhere.test/hook", 2, proxy=f"http://127.0.0.1:{port_of(proxy.url)}")
        assert [one.error_type in attempts.own_errors for one in results] == [True, True]
        assert [(one.status_code, one.is_stale) for one in results] == [(None, False)] * 2


@pytest.mark.parametrize("url", ["http://nowhere.test/hook", "https://nowhere.test/hook"])
def test_no_proxy_at_the_address_is_a_failure_with_a_type(attempts: Attempts, closed_port: int, url: str) -> None:
    """If no proxy listens, the webhook is not sent without one."""
    result = attempts.one(url, proxy=f"http://127.0.0.1:{closed_port}")
    assert (result.error_type, result.status_code) == ("ConnectionRefusedError", None)


@pytest.mark.parametrize("behave", [silent, dripping(b"HTTP/1.1 200 OK\r\n", b"x: 1\r\n")])
def test_a_proxy_that_hangs_is_a_timeout(attempts: Attempts, behave: Behaviour) -> None:
    """The timeout holds for CONNECT too, whatever bytes the proxy sends."""
    with HostileReceiver(behave) as proxy:
        address = f"http://127.0.0.1:{port_of(proxy.url)}"
        results = attempts("https://nowhere.test/hook", 2, proxy=address, timeout=TO_CONNECT)
        wait_until(lambda: proxy.connections == 2)  # the proxy may accept the second one after its attempt has ended
    gc.collect()  # would warn of an open socket, and every warning is an error here
    assert [result.error_type for result in results] == ["timeout"] * 2


@pytest.mark.parametrize(("behave", "error_type"), [(no_tls, "SSLError"), (silent, "timeout")])
def test_a_tunnel_that_breaks_is_replaced(attempts: Attempts, behave: Behaviour, error_type: str) -> None:
    """After an attempt that has failed, the next one has a tunnel of its own."""
    heads: list[bytes] = []
    timeout = TO_CONNECT if error_type == "timeout" else 10.0
    with HostileReceiver(tunnelling(behave, heads)) as proxy:
        results = attempts(f"https://{NAME}/hook", 3, proxy=f"http://127.0.0.1:{port_of(proxy.url)}", timeout=timeout)
    assert [result.error_type for result in results] == [error_type] * 3
    assert len(heads) == 3


def test_the_proxies_of_the_environment_are_ignored(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch, step_receiver: ScriptedReceiver
) -> None:
    """HTTP_PROXY and similar variables do not affect webhooks."""
    with HostileReceiver(answering(OK)) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert attempts.one(step_receiver.url).is_success
        assert proxy.connections == 0
    assert len(step_receiver.received) == 1


@pytest.mark.parametrize("proxy", ["http://a..b:3128", "http://[::1:3128"])
def test_a_proxy_that_cannot_be_used_is_refused_at_once(attempts: Attempts, proxy: str) -> None:
    """A proxy's URL is checked like the webhook's own."""
    with pytest.raises(ConfigurationError, match="STEP_COMPLETE_PROXY"):
        attempts.connector(endpoint_to("https://example.test/hook", proxy=proxy))
