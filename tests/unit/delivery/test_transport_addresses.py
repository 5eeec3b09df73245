"""One attempt: link-local addresses, which have a zone."""

import socket

import pytest
from sending import Attempts, Names, accepting_one, endpoint_to, server_context

from otel_step_hook.delivery.origin import Origin


@pytest.mark.parametrize("written", ["[{address}%25{interface}]", "[{address}%25{index}]", "[{address}%{interface}]"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_link_local_address_is_connected_to(
    attempts: Attempts, linked: tuple[str, str], trusted: str, scheme: str, written: str
) -> None:
    """The zone of a literal address is used to connect; neither the host header nor the certificate has it."""
    address, interface = linked
    index = socket.if_nametoindex(interface)
    host = written.format(address=address, interface=interface, index=index)
    tls = server_context(address) if scheme == "https" else None
    with accepting_one(f"{address}%{interface}", tls=tls) as (port, requests):
        result = attempts.one(f"{scheme}://{host}:{port}/hook?a=%25b", certificate=trusted)
    assert (result.error_type, result.peer) == (None, (f"{address}%{index}", port))
    assert requests[0].startswith(b"POST /hook?a=%25b HTTP/1.1\r\n")
    assert b"\r\nhost: [%s]:%d\r\n" % (address.encode(), port) in requests[0].lower()


def test_a_name_may_have_a_link_local_address(attempts: Attempts, names: Names, linked: tuple[str, str]) -> None:
    """The zone of an address that a name resolves to is used to connect."""
    address, interface = linked
    names.lead_to("linked.test", [f"{address}%{interface}"])
    with accepting_one(f"{address}%{interface}") as (port, requests):
        result = attempts.one(f"http://linked.test:{port}/hook")
    assert (result.error_type, result.peer) == (None, (f"{address}%{socket.if_nametoindex(interface)}", port))
    assert b"\r\nhost: linked.test:%d\r\n" % port in requests[0].lower()


def test_a_proxy_may_have_a_link_local_address(attempts: Attempts, linked: tuple[str, str]) -> None:
    """The zone of the proxy's address is used to connect."""
    address, interface = linked
    with accepting_one(f"{address}%{interface}") as (port, requests):
        proxy = f"http://user:pa%20ss@[{address}%25{interface}]:{port}"
        result = attempts.one("http://receiver.test/hook", proxy=proxy)
    assert result.error_type is None
    assert requests[0].startswith(b"POST http://receiver.test/hook HTTP/1.1\r\n")
    assert b": Basic dXNlcjpwYSBzcw==\r\n" in requests[0]


@pytest.mark.parametrize(
    ("host", "looked_up"),
    [
        ("[fe80::1%25eth0]", "fe80::1%eth0"),
        ("[fe80::1%eth0]", "fe80::1%eth0"),
        ("[fe80::1%254]", "fe80::1%4"),
        ("[fe80::1%25]", "fe80::1%25"),  # no zone may be empty, so this is interface 25
        ("[fe80::1]", "fe80::1"),
    ],
)
def test_a_zone_is_only_for_the_look_up(host: str, looked_up: str) -> None:
    """What is looked up has the zone behind a plain percent sign; what is sent has none."""
    origin = Origin(endpoint_to(f"http://{host}:8080/hook"))
    assert origin.host == looked_up
    assert (str(origin.url), origin.netloc) == ("http://[fe80::1]:8080/hook", "[fe80::1]:8080")
    assert origin.tls_name == "fe80::1"
