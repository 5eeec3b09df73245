"""One attempt: addresses that are not public, and link-local addresses, which have a zone."""

import asyncio
import socket

import pytest
from sending import OK, Attempts, Names, accepting_one, answering, endpoint_to, port_of, server_context

from otel_step_hook.delivery.origin import Origin
from otel_step_hook.testing import HostileReceiver

# Addresses that are not public


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1"])
def test_a_name_that_leads_to_a_private_address_is_refused_if_asked(
    attempts: Attempts, names: Names, address: str
) -> None:
    """With public_only, no connection is made to an address that is not public, whatever the name resolves to."""
    names.lead_to("inside.test", [address])
    with HostileReceiver(answering(OK)) as receiver:
        url = f"http://inside.test:{port_of(receiver.url)}/hook"
        refused, allowed = attempts.one(url, public_only=True), attempts.one(url)
    assert (refused.error_type, refused.peer) == ("PrivateAddressRefused", None)
    assert allowed.is_success
    assert receiver.connections == 1


def test_a_name_that_flips_to_a_private_address_is_refused_if_asked(
    attempts: Attempts, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look-up is checked; a name that has only metadata services is refused as such."""
    monkeypatch.setattr("otel_step_hook.delivery.origin._ADDRESS_AGE", 0.0)
    names.lead_to("flip.test", ["169.254.169.254"], ["10.0.0.1", "169.254.169.254", "fe80::1", "100.64.0.1"])
    results = attempts("http://flip.test/hook", 2, public_only=True)
    assert [result.error_type for result in results] == ["MetadataAddressRefused", "PrivateAddressRefused"]


def test_only_the_public_addresses_are_used_if_asked(names: Names) -> None:
    """Private addresses among others are left out."""
    names.lead_to("mixed.test", ["10.0.0.1", "8.8.8.8", "fd00::1", "2606:4700::1"])
    asked, other = (
        asyncio.run(Origin(endpoint_to("http://mixed.test/", public_only=asks)).addresses()) for asks in (True, False)
    )
    assert asked == ["8.8.8.8", "2606:4700::1"]
    assert other == ["10.0.0.1", "8.8.8.8", "fd00::1", "2606:4700::1"]


def test_a_proxy_may_have_a_private_address(attempts: Attempts) -> None:
    """With public_only, a proxy on loopback is used, and it resolves the name."""
    with HostileReceiver(answering(OK)) as proxy:
        result = attempts.one("http://inside.test/hook", proxy=proxy.url.removesuffix("/hook"), public_only=True)
    assert result.is_success


# Zones


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
