"""From the text of a host to the IP addresses that a connection to it may reach. Pure."""

import socket
import stringprep
import unicodedata
from collections.abc import Iterator
from ipaddress import AddressValueError, IPv4Address, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address

_TEREDO = IPv6Network("2001::/32")  # RFC 4380: holds two IPv4 addresses, the server's and the client's
# IPv6 networks that carry an IPv4 address at a fixed place, and the number of bits to the right of it.
_CARRIERS = (
    (IPv6Network("::/96"), 0),  # v4-compatible, RFC 4291 2.5.5.1
    (IPv6Network("::ffff:0:0/96"), 0),  # v4-mapped, RFC 4291 2.5.5.2
    (IPv6Network("::ffff:0:0:0/96"), 0),  # v4-translated, RFC 2765
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64, RFC 6052
    (IPv6Network("2002::/16"), 80),  # 6to4, RFC 3056
    (_TEREDO, 64),  # the server's
)
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")  # RFC 8215: its operator chooses the prefix length
_LOCAL_NAT64_SHIFTS = (40, 32, 24)  # prefixes /48, /56, /64, once the always empty octet 8 is cut out
_ISATAP = (0x5EFE, 0x0200_5EFE)  # RFC 5214: the upper half of the interface id, under any prefix
_V4_BITS = 0xFFFF_FFFF


def normalised(host: str) -> str:
    """Return *host* as a resolver reads it: after IDNA's mapping (RFC 3490), but not split into labels."""
    text = unicodedata.normalize("NFKC", host).replace("\u3002", ".")  # NFKC leaves the ideographic dot
    visible = "".join(letter for letter in text if not stringprep.in_table_b1(letter))
    return visible.strip().rstrip(".").casefold()


def reached_by(host: str) -> list[Address]:
    """Return the addresses that a connection to the literal address *host* may reach; empty for any other text.

    They are the address itself and each IPv4 address inside it: mapped, compatible, translated, NAT64, 6to4, Teredo,
    ISATAP. In an address under 64:ff9b:1::/48, that is every place where its IPv4 part may stand. Recognises every
    spelling of an IPv4 address that the C library accepts (decimal, hexadecimal, octal, short), and IPv6 with or
    without brackets and zone.
    """
    literal = normalised(host).partition("%")[0].strip("[]")
    try:
        v6 = IPv6Address(literal)
    except AddressValueError:
        return _v4_literal(literal)
    return [v6, *map(IPv4Address, _v4_inside(v6))]


def resolvable(host: str) -> str:
    """Return *host* of a URL as a resolver takes it: before an IPv6 zone, a URL has %25 in place of % (RFC 6874 2)."""
    address, percent, zone = host.partition("%")
    if not percent or ":" not in address:
        return host
    return f"{address}%{zone.removeprefix('25') or zone}"


def without_zone(host: str) -> str:
    """Return *host* without the zone of an IPv6 address, which no request may carry (RFC 6874 4)."""
    return host.partition("%")[0] if ":" in host else host


def _v4_literal(literal: str) -> list[Address]:
    try:
        packed = socket.inet_aton(literal)
    except (OSError, ValueError):  # no address, or text with a NUL or a lone surrogate
        return []
    return [IPv4Address(packed)]


def _v4_inside(v6: IPv6Address) -> Iterator[int]:
    number = int(v6)
    for network, shift in _CARRIERS:
        if v6 in network:
            yield number >> shift & _V4_BITS
    if v6 in _TEREDO:
        yield ~number & _V4_BITS  # the client, stored with all bits inverted
    if v6 in _LOCAL_NAT64:
        yield number & _V4_BITS  # prefix /96
        without_octet_8 = number >> 64 << 56 | number & (1 << 56) - 1
        for shift in _LOCAL_NAT64_SHIFTS:
            yield without_octet_8 >> shift & _V4_BITS
    if number >> 32 & _V4_BITS in _ISATAP:
        yield number & _V4_BITS
