"""Whether an address is public: owns the ranges that `ipaddress` takes for public in some Pythons and not in others."""

from ipaddress import IPv4Network, IPv6Address, IPv6Network

from otel_step_hook.delivery.addresses import Address, reached_by

_GLOBAL_UNICAST = IPv6Network("2000::/3")  # all that IANA gives out; the rest is reserved, local or multicast
# Where IPv6 is only the way to an IPv4 address, which alone decides: v4-mapped, and NAT64 (RFC 6052).
_CARRIERS = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))
# Not reachable from everywhere, by IANA's registries of special-purpose addresses, or out of use. Python's `is_global`
# knows them only since 3.11.10 and 3.12.4 (python/cpython#113171), or not at all.
_SPECIAL = (
    IPv4Network("192.0.0.0/24"),  # IETF protocol assignments
    IPv4Network("192.88.99.0/24"),  # relays of 6to4, RFC 7526
    IPv6Network("2001::/23"),  # IETF protocol assignments, Teredo among them
    IPv6Network("2002::/16"),  # 6to4
    IPv6Network("3fff::/20"),  # documentation, RFC 9637
)


def is_private_address(address: str) -> bool:
    """Whether *address* is a literal address that is not public; False for text that is no address.

    Not public are private, unique-local, link-local, loopback, unspecified, multicast and reserved addresses, and
    those of carrier-grade NAT. Every spelling is recognised, and an IPv4 address inside an IPv6 address, too: see
    `reached_by`.
    """
    return not all(map(_is_public, reached_by(address)))


def _is_public(address: Address) -> bool:
    if any(address in network for network in _CARRIERS):
        return True
    if any(address in network for network in _SPECIAL):
        return False
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    return address.is_global and not address.is_multicast
