"""Which addresses are public: the same ones on every Python."""

from ipaddress import IPv4Address, IPv6Address

import pytest

from otel_step_hook.delivery.private_addresses import is_private_address

_PRIVATE = [
    *("10.0.0.0", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.1.1"),  # RFC 1918
    *("127.0.0.1", "127.255.255.255", "::1"),  # loopback
    *("169.254.0.1", "169.254.1.2", "fe80::1", "fe80::1%eth0", "febf::1"),  # link-local
    *("fc00::1", "fd12:3456::1", "fec0::1"),  # unique-local, and site-local before it
    *("100.64.0.0", "100.127.255.255"),  # carrier-grade NAT
    *("0.0.0.0", "0.1.2.3", "::"),  # unspecified
    *("224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"),  # multicast
    *("240.0.0.1", "255.255.255.255", "4000::1", "5f00::1", "e000::1"),  # reserved
    *("192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"),  # documentation
    *("192.0.0.8", "192.0.0.9", "192.0.0.170", "192.88.99.1", "198.18.0.1", "198.19.255.255"),  # special
    *("2001::1", "2001:20::1", "2001:1ff::1", "100::1", "64:ff9b:1::8.8.8.8"),  # the same of IPv6
    *("2002:808:808::1", "::8.8.8.8", "::ffff:0:8.8.8.8"),  # carriers that are out of use, even of a public address
    *("::ffff:10.0.0.1", "64:ff9b::7f00:1", "2606:4700::5efe:10.0.0.1"),  # private inside of a public one
    *("2130706433", "0x7f000001", "0177.0.0.1", "127.1", "[::1]", "127.0.0.1.", "\u2460\u2461\u2466.0.0.1"),  # spelled
]
_PUBLIC = [
    *("8.8.8.8", "1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "172.15.0.1", "172.32.0.1"),
    *("169.253.0.1", "169.255.0.1", "192.0.1.1", "192.88.98.1", "198.17.0.1", "198.20.0.1", "223.255.255.255"),
    *("2606:4700::1", "2a00:1450:4001::200e", "2001:4860:4860::8888", "2001:200::1", "3ffe::1", "2003::1"),
    *("::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2606:4700::5efe:8.8.8.8", "[2606:4700::1]", "134744072"),
]


@pytest.mark.parametrize("address", _PRIVATE)
def test_an_address_that_is_not_public_is_recognised(address: str) -> None:
    """Every kind of address that is not public is recognised, in every spelling."""
    assert is_private_address(address)


@pytest.mark.parametrize("address", _PUBLIC)
def test_a_public_address_is_recognised(address: str) -> None:
    """Neighbours of special ranges are public, and so are mapped and translated public addresses."""
    assert not is_private_address(address)


@pytest.mark.parametrize("text", ["", "localhost", "example.com", "1.2.3.4.5", "[::g]", "%"])
def test_what_is_no_address_is_not_private(text: str) -> None:
    """A name is left to the resolver, whose answer is checked."""
    assert not is_private_address(text)


def test_the_ends_of_ipv6_global_unicast() -> None:
    """Only 2000::/3 is given out by IANA."""
    first, last = int(IPv6Address("2000::")), int(IPv6Address("3fff:ffff::"))
    assert not is_private_address(str(IPv6Address(first)))
    assert not is_private_address(str(IPv6Address(last)))
    assert is_private_address(str(IPv6Address(first - 1)))
    assert is_private_address(str(IPv6Address("4000::")))
    assert is_private_address(str(IPv4Address(0xE000_0000)))
