"""One attempt: the look-up of the endpoint's name, and which of its addresses is tried."""

import contextlib
import gc
import socket
import threading
from collections.abc import Iterator

import pytest
from sending import CONTENT, OK, SHORT, TO_CONNECT, Attempts, Names, accepting_one, answering, endpoint_to, port_of

from otel_step_hook import ConfigurationError
from otel_step_hook.testing import HostileReceiver, read_request


@pytest.fixture
def receiver() -> Iterator[HostileReceiver]:
    """A receiver on 127.0.0.1 that accepts every webhook."""
    with HostileReceiver(answering(OK)) as running:
        yield running


@contextlib.contextmanager
def unreachable(port: int) -> Iterator[str]:
    """An address at which a connection is neither accepted nor refused: the queue of its listener is full."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.3", port), backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0)
            waiting.connect_ex(listening.getsockname())
        yield "127.0.0.3"


# Names


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "a..test"])
def test_a_name_that_no_resolver_takes_is_refused_at_once(attempts: Attempts, host: str) -> None:
    """A host with a label that is empty or too long raises when the processor is made."""
    endpoint = endpoint_to(f"https://{host}/hook")
    with pytest.raises(ConfigurationError, match="STEP_COMPLETE_WEBHOOK"):
        attempts.connector(endpoint)


def test_an_unknown_name_is_a_failure_with_a_type(attempts: Attempts, names: Names) -> None:
    """A name that does not exist is a gaierror, and is looked up again for the next attempt."""

    def unknown() -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    names.lead_to("gone.test", unknown)
    results = attempts("http://gone.test/hook", 2)
    assert [(result.error_type, result.peer) for result in results] == [("gaierror", None)] * 2
    assert len(names.looked_up) == 2


def test_a_look_up_that_hangs_is_a_timeout(attempts: Attempts, names: Names, caplog: pytest.LogCaptureFixture) -> None:
    """The timeout holds for the look-up too; one that hangs is shared by later attempts and leaves nothing behind."""
    release = threading.Event()

    def hang() -> list[str]:
        release.wait(30)
        return ["127.0.0.1"]

    names.lead_to("slow.test", hang)
    try:
        results = attempts("http://slow.test/hook", 3, timeout=SHORT)
        gc.collect()
    finally:
        release.set()
    assert [(result.error_type, result.peer) for result in results] == [("timeout", None)] * 3
    assert len(names.looked_up) == 1
    assert caplog.records == []


@pytest.mark.parametrize("address", ["169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254"])
def test_a_name_that_leads_to_a_metadata_service_is_refused(attempts: Attempts, names: Names, address: str) -> None:
    """No connection is made to a cloud's metadata service, whatever the name resolves to."""
    names.lead_to("evil.test", [address])
    result = attempts.one("http://evil.test/latest/meta-data")
    assert (result.error_type, result.peer) == ("MetadataAddressRefused", None)


def test_a_name_that_flips_to_a_metadata_service_is_refused(
    attempts: Attempts, names: Names, receiver: HostileReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look-up is checked, not only the first one."""
    monkeypatch.setattr("otel_step_hook.delivery.origin._ADDRESS_AGE", 0.0)
    names.lead_to("flip.test", ["127.0.0.1"], ["169.254.169.254"])
    results = attempts(f"http://flip.test:{port_of(receiver.url)}/hook", 2)
    assert [result.error_type for result in results] == [None, "MetadataAddressRefused"]


def test_a_receiver_that_moves_is_followed(
    attempts: Attempts, names: Names, receiver: HostileReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the name resolves to another address, the next attempt goes there, although the old connection is kept."""
    monkeypatch.setattr("otel_step_hook.delivery.origin._ADDRESS_AGE", 0.0)
    port = port_of(receiver.url)
    names.lead_to("moving.test", ["127.0.0.1"], ["127.0.0.2"])
    with accepting_one("127.0.0.2", int(port)):
        results = attempts(f"http://moving.test:{port}/hook", 2)
    assert [(result.error_type, result.peer and result.peer[0]) for result in results] == [
        (None, "127.0.0.1"),
        (None, "127.0.0.2"),
    ]


def test_a_metadata_address_among_others_is_left_out(
    attempts: Attempts, names: Names, receiver: HostileReceiver
) -> None:
    """If a name has other addresses too, those are used, and only those."""
    names.lead_to("mixed.test", ["169.254.169.254", "127.0.0.1"])
    result = attempts.one(f"http://mixed.test:{port_of(receiver.url)}/hook")
    assert (result.is_success, result.peer) == (True, ("127.0.0.1", int(port_of(receiver.url))))


def test_a_look_up_serves_many_attempts(attempts: Attempts, names: Names, receiver: HostileReceiver) -> None:
    """The name is not looked up for every attempt."""
    names.lead_to("good.test", ["127.0.0.1"])
    results = attempts(f"http://good.test:{port_of(receiver.url)}/hook", 5)
    assert all(result.is_success for result in results)
    assert names.looked_up == ["good.test"]


def test_the_request_has_the_configured_host(attempts: Attempts, names: Names) -> None:
    """The connection goes to the address that was checked; the host header is the configured name."""
    requests: list[bytes] = []

    def behave(connection: socket.socket, _: threading.Event) -> None:
        requests.append(read_request(connection))
        connection.sendall(OK)

    names.lead_to("good.test", ["127.0.0.1"])
    with HostileReceiver(behave) as receiver:
        port = port_of(receiver.url)
        assert attempts.one(f"http://good.test:{port}/hook?a=b").is_success
    assert requests[0].startswith(b"POST /hook?a=b HTTP/1.1\r\n")
    assert b"\r\nhost: good.test:%s\r\n" % port.encode() in requests[0].lower()
    assert requests[0].endswith(b"\r\n\r\n" + CONTENT)


def test_an_address_that_hangs_is_a_timeout(attempts: Attempts) -> None:
    """The timeout holds for the connection too, and a half-open connection is closed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with unreachable(port) as address:
        result = attempts.one(f"http://{address}:{port}/hook", timeout=TO_CONNECT)
        gc.collect()  # would warn of an open socket, and every warning is an error here
    assert (result.error_type, result.peer) == ("timeout", (address, port))


# Several addresses


def test_an_address_that_refuses_is_skipped(attempts: Attempts, names: Names, receiver: HostileReceiver) -> None:
    """If the first address refuses, the second is used at once, and from then on first."""
    names.lead_to("two.test", ["127.0.0.2", "127.0.0.1"])
    results = attempts(f"http://two.test:{port_of(receiver.url)}/hook", 5)
    assert [result.peer and result.peer[0] for result in results] == ["127.0.0.1"] * 5
    assert all(result.is_success for result in results)
    assert receiver.connections == 1  # kept, although the name was looked up again
    assert len(names.looked_up) == 2


def test_an_address_that_hangs_is_skipped(attempts: Attempts, names: Names, receiver: HostileReceiver) -> None:
    """An address that neither accepts nor refuses takes its share of the timeout, and no more."""
    port = port_of(receiver.url)
    with unreachable(int(port)) as address:
        names.lead_to("two.test", [address, "127.0.0.1"])
        results = attempts(f"http://two.test:{port}/hook", 2, timeout=3.0)
    assert [result.peer and result.peer[0] for result in results] == ["127.0.0.1"] * 2
    assert all(result.is_success for result in results)


def test_an_address_that_never_answers_is_tried_last_next_time(
    attempts: Attempts, names: Names, receiver: HostileReceiver
) -> None:
    """An address that accepts connections and never answers costs one attempt, not all of them."""
    port = port_of(receiver.url)
    with socket.create_server(("127.0.0.3", int(port))):
        names.lead_to("two.test", ["127.0.0.3", "127.0.0.1"])
        results = attempts(f"http://two.test:{port}/hook", 2, timeout=1.0)
    assert [(result.error_type, result.peer and result.peer[0]) for result in results] == [
        ("timeout", "127.0.0.3"),
        (None, "127.0.0.1"),
    ]


def test_all_addresses_are_tried_before_an_attempt_fails(
    attempts: Attempts, names: Names, receiver: HostileReceiver
) -> None:
    """If no address accepts, the error is the last one's; an address that comes back is found."""
    port = port_of(receiver.url)
    names.lead_to("three.test", ["127.0.0.2", "127.0.0.3"], ["127.0.0.2", "127.0.0.3", "127.0.0.1"])
    results = attempts(f"http://three.test:{port}/hook", 2)
    assert [(result.error_type, result.peer and result.peer[0]) for result in results] == [
        ("ConnectionRefusedError", "127.0.0.3"),
        (None, "127.0.0.1"),
    ]


def test_when_every_address_hangs_it_is_a_timeout(attempts: Attempts, names: Names) -> None:
    """An attempt that ends with an address whose share has run out is a timeout, not an error."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with unreachable(port) as address:
        names.lead_to("slow.test", ["127.0.0.2", address])
        result = attempts.one(f"http://slow.test:{port}/hook", timeout=TO_CONNECT)
    assert (result.error_type, result.peer) == ("timeout", ("127.0.0.3", port))


@pytest.mark.parametrize("host", ["[::1]", "[0:0:0:0:0:0:0:1]"])
def test_an_ipv6_address_is_connected_to(attempts: Attempts, host: str) -> None:
    """A literal IPv6 address, however it is written, is connected to."""
    with accepting_one("::1") as (port, requests):
        result = attempts.one(f"http://{host}:{port}/hook")
    assert (result.is_success, result.peer) == (True, ("::1", port))
    assert b"\r\nhost: %s:%d\r\n" % (host.encode(), port) in requests[0].lower()


def test_a_name_may_have_an_ipv6_address(attempts: Attempts, names: Names) -> None:
    """A name that resolves to an IPv6 address is connected to there, and is the host header."""
    names.lead_to("six.test", ["::1"])
    with accepting_one("::1") as (port, requests):
        result = attempts.one(f"http://six.test:{port}/hook")
    assert (result.is_success, result.peer) == (True, ("::1", port))
    assert b"\r\nhost: six.test:%d\r\n" % port in requests[0].lower()


def test_bytes_that_arrive_during_the_look_up_are_no_answer(
    attempts: Attempts, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kept connection on which bytes arrive while the name is looked up again is not used for the next request."""
    monkeypatch.setattr("otel_step_hook.delivery.origin._ADDRESS_AGE", 0.0)
    is_looked_up, is_sent = threading.Event(), threading.Event()

    def behave(connection: socket.socket, _: threading.Event) -> None:
        is_first = not is_looked_up.is_set()
        read_request(connection)
        connection.sendall(OK)
        if is_first:
            is_looked_up.wait(10)
            connection.sendall(OK)
            is_sent.set()
        read_request(connection)  # or the end of the connection

    def look_up() -> list[str]:
        is_looked_up.set()
        is_sent.wait(10)
        return ["127.0.0.1"]

    names.lead_to("moving.test", ["127.0.0.1"], look_up)
    with HostileReceiver(behave) as receiver:
        results = attempts(f"http://moving.test:{port_of(receiver.url)}/hook", 2)
    assert [result.status_code for result in results] == [204, 204]
    assert receiver.connections == 2
