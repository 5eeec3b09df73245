"""Whether a host is a cloud metadata service, however it is spelled: owns their names and addresses.

A webhook sent there could give a machine's credentials to the person who set the URL. Loopback and private
addresses are allowed: users deliver to services inside their own network.
"""

import socket
import stringprep
import unicodedata
from collections.abc import Iterator
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network

_METADATA_V4 = (
    IPv4Network("169.254.0.0/16"),  # link-local: AWS, Azure, GCP .169.254, ECS .170.2, EKS .170.23, GKE .252
    IPv4Network("100.100.100.200"),  # Alibaba
    IPv4Network("168.63.129.16"),  # Azure wireserver, in public address space
    IPv4Network("192.0.0.192"),  # Oracle Classic
)
_METADATA_V6 = (
    IPv6Network("fd00:ec2::/32"),  # AWS: metadata ::254, EKS ::23
    IPv6Network("fd20:ce::254"),  # GCP
    IPv6Network("fd00:c1::a9fe:a9fe"),  # Oracle
    IPv6Network("fd00:42::42"),  # Scaleway
    IPv6Network("fd00:a9fe:a9fe::1"),  # Linode
    IPv6Network("fd00:100::100:200"),  # Alibaba
    IPv6Network("fe80::a9fe:a9fe"),  # OpenStack
)
_METADATA_NAMES = frozenset(
    {
        "metadata",
        "metadata.google.internal",
        "metadata.goog",
        "instance-data",
        "instance-data.ec2.internal",
    }
)

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


def is_metadata_host(host: str) -> bool:
    """Whether *host*, as it stands in a URL, is the name or the address of a cloud metadata service.

    Case, a trailing dot and Unicode's look-alike letters, digits and dots make no difference. Names are not
    resolved: call `is_metadata_address` with each address that the resolver returns.
    """
    return _normalised(host) in _METADATA_NAMES or is_metadata_address(host)


def is_metadata_address(address: str) -> bool:
    """Whether *address* is a literal address of a cloud metadata service; False for text that is no address.

    Recognises every spelling of an IPv4 address that the C library accepts (decimal, hexadecimal, octal, short),
    IPv6 with or without brackets and zone, and IPv4 inside IPv6: mapped, compatible, translated, NAT64, 6to4,
    Teredo, ISATAP. In an address under 64:ff9b:1::/48, every place where its IPv4 part may stand is checked.
    """
    literal = _normalised(address).partition("%")[0].strip("[]")
    try:
        v6 = IPv6Address(literal)
    except AddressValueError:
        return _is_metadata_v4_literal(literal)
    return any(v6 in network for network in _METADATA_V6) or any(map(_is_metadata_v4, _v4_inside(v6)))


def _normalised(host: str) -> str:
    """Return *host* as a resolver reads it: after IDNA's mapping (RFC 3490), but not split into labels."""
    text = unicodedata.normalize("NFKC", host).replace("\u3002", ".")  # NFKC leaves the ideographic dot
    visible = "".join(letter for letter in text if not stringprep.in_table_b1(letter))
    return visible.strip().rstrip(".").casefold()


def _is_metadata_v4_literal(literal: str) -> bool:
    try:
        packed = socket.inet_aton(literal)
    except (OSError, ValueError):  # no address, or text with a NUL or a lone surrogate
        return False
    return _is_metadata_v4(int.from_bytes(packed))


def _is_metadata_v4(number: int) -> bool:
    v4 = IPv4Address(number)
    return any(v4 in network for network in _METADATA_V4)


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
