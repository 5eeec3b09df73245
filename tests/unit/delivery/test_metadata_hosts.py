from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from otel_step_hook.delivery.metadata_hosts import is_metadata_address, is_metadata_host

_SPELLINGS_V4: dict[str, Callable[[int], str]] = {
    "dotted": lambda v4: str(IPv4Address(v4)),
    "decimal": str,
    "hexadecimal": hex,
    "octal": lambda v4: f"0{v4:o}",
    "hexadecimal parts": lambda v4: ".".join(hex(part) for part in v4.to_bytes(4)),
    "octal parts": lambda v4: ".".join(f"0{part:o}" for part in v4.to_bytes(4)),
    "two parts": lambda v4: f"{v4 >> 24}.{v4 & 0xFF_FFFF}",
    "three parts": lambda v4: f"{v4 >> 24}.{v4 >> 16 & 0xFF}.{v4 & 0xFFFF}",
    "mixed parts": lambda v4: f"{v4 >> 24:#x}.{v4 >> 16 & 0xFF}.0{v4 & 0xFFFF:o}",
}


def _local_nat64(v4: int, prefix: int) -> int:
    """Write *v4* behind a 64:ff9b:1:: prefix of that length, bit by bit as in RFC 6052 2.2."""
    bits = f"{int(IPv6Address('64:ff9b:1::')):0128b}"[:prefix] + f"{v4:032b}"
    if prefix < 96:
        bits = bits[:64] + "0" * 8 + bits[64:]
    return int(bits.ljust(128, "0"), 2)


_CARRIERS: dict[str, Callable[[int], int]] = {
    "compatible": lambda v4: v4,
    "mapped": lambda v4: 0xFFFF << 32 | v4,
    "translated": lambda v4: 0xFFFF << 48 | v4,
    "NAT64": lambda v4: int(IPv6Address("64:ff9b::")) | v4,
    "local NAT64 /48": lambda v4: _local_nat64(v4, 48),
    "local NAT64 /56": lambda v4: _local_nat64(v4, 56),
    "local NAT64 /64": lambda v4: _local_nat64(v4, 64),
    "local NAT64 /96": lambda v4: _local_nat64(v4, 96),
    "6to4": lambda v4: 0x2002 << 112 | v4 << 80 | 1,
    "Teredo server": lambda v4: 0x2001 << 112 | v4 << 64 | 0xFFFF_FFFF,
    "Teredo client": lambda v4: 0x2001 << 112 | v4 ^ 0xFFFF_FFFF,
    "ISATAP": lambda v4: int(IPv6Address("2001:db8::5efe:0:0")) | v4,
    "ISATAP, universal": lambda v4: int(IPv6Address("2001:db8::200:5efe:0:0")) | v4,
}
_SPELLINGS_V6: dict[str, Callable[[int], str]] = {
    "compressed": lambda v6: IPv6Address(v6).compressed,
    "exploded": lambda v6: IPv6Address(v6).exploded.upper(),
    "bracketed": lambda v6: f"[{IPv6Address(v6)}]",
    "zone": lambda v6: f"{IPv6Address(v6)}%eth0",
    "bracketed zone": lambda v6: f"[{IPv6Address(v6)}%25eth0]",
    "dotted tail": lambda v6: f"{IPv6Address(v6).exploded[:29]}:{IPv4Address(v6 & 0xFFFF_FFFF)}",
}

_NETWORKS = st.integers(int(IPv4Address("169.254.169.0")), int(IPv4Address("169.254.170.255")))
_SINGLE = st.sampled_from(
    ["169.254.0.23", "169.254.42.42", "100.100.100.200", "100.96.0.96", "168.63.129.16", "192.0.0.192"]
).map(lambda text: int(IPv4Address(text)))
_PODMAN = "169.254.1.2"  # its host.containers.internal
_ORDINARY = st.sampled_from(["127.0.0.1", "10.1.2.3", "172.16.0.9", "192.168.1.7", "8.8.8.8", _PODMAN]).map(
    lambda text: int(IPv4Address(text))
)


@given(v4=_NETWORKS | _SINGLE)
def test_a_metadata_ipv4_address_is_found_in_every_spelling(v4: int) -> None:
    """Each text that the C library reads as a metadata address is recognised as one."""
    written = {how: spell(v4) for how, spell in _SPELLINGS_V4.items()}
    missed = {how: text for how, text in written.items() if not (is_metadata_address(text) and is_metadata_host(text))}
    assert not missed, str(missed)


@given(v4=_NETWORKS | _SINGLE)
def test_a_metadata_ipv4_address_is_found_inside_ipv6(v4: int) -> None:
    """An IPv6 address that leads to a metadata address through a gateway or a tunnel is recognised."""
    written = {
        f"{carrier}, {how}": spell(carry(v4))
        for carrier, carry in _CARRIERS.items()
        for how, spell in _SPELLINGS_V6.items()
    }
    missed = {how: text for how, text in written.items() if not is_metadata_address(text)}
    assert not missed, str(missed)


@given(v4=_ORDINARY)
def test_other_ipv4_addresses_are_allowed(v4: int) -> None:
    """Loopback, private, public and other link-local addresses are allowed in every spelling."""
    written = {how: spell(v4) for how, spell in _SPELLINGS_V4.items()}
    refused = {how: text for how, text in written.items() if is_metadata_address(text) or is_metadata_host(text)}
    assert not refused, str(refused)


@given(v4=_ORDINARY)
def test_other_ipv4_addresses_inside_ipv6_are_allowed(v4: int) -> None:
    """Addresses of gateways and tunnels are refused only if they lead to a metadata address."""
    written = {carrier: str(IPv6Address(carry(v4))) for carrier, carry in _CARRIERS.items()}
    refused = {carrier: text for carrier, text in written.items() if is_metadata_address(text)}
    assert not refused, str(refused)


def test_documented_metadata_addresses_are_known() -> None:
    """Each metadata address in the documentation of a cloud is recognised."""
    addresses = [
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "169.254.169.252",
        "fd00:ec2::254",
        "FD00:EC2:0::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "fd00:c1::a9fe:a9fe",
        "fd00:42::42",
        "fd00:a9fe:a9fe::1",
        "fd00:100::100:200",
        "fe80::a9fe:a9fe%eth0",
        "[fe80::a9fe:a9fe]%eth0",
        " 169.254.169.254 ",
        "169.254.169.254.",
    ]
    missed = [address for address in addresses if not is_metadata_address(address)]
    assert not missed, str(missed)


def test_neighbours_of_metadata_addresses_are_allowed() -> None:
    """An address next to a metadata address is allowed."""
    addresses = [
        "::1",
        "fd00:ec3::254",
        "fd00:ec2::1",
        _PODMAN,
        "169.254.0.22",
        "169.254.42.41",
        "169.254.168.255",
        "169.254.171.0",
        "100.100.100.100",  # Tailscale's DNS
        "100.96.0.97",
        "fd20:ce::253",
        "fe80::1",
        "2001:db8::a9fe:a9fe",
        "2001:db8::5601:5601",
        "::",
        "169.253.0.1",
    ]
    refused = [address for address in addresses if is_metadata_address(address)]
    assert not refused, str(refused)


def test_metadata_hosts_are_known_as_a_resolver_reads_them() -> None:
    """Case, a trailing dot, look-alike letters and invisible characters hide no metadata host."""
    hosts = [
        "Metadata.Google.Internal",
        "metadata.google.internal.",
        "metadata.goog",
        "instance-data.ec2.internal",
        "metadata.tencentyun.com",
        "api.metadata.cloud.ibm.com",
        "metadata.exoscale.com",
        "\uff4detadata.goog",  # fullwidth m
        "metadata\uff0egoogle\u3002internal\uff61",  # the three other dots of IDNA
        "meta\u00addata.goog",  # soft hyphen, which a resolver drops
        "\uff11\uff16\uff19\u3002254\uff61169\uff0e254",
        "\u2460\u2465\u2468.254.169.254",  # circled digits
        "[fd00:ec2::254]",
    ]
    missed = [host for host in hosts if not is_metadata_host(host)]
    assert not missed, str(missed)


def test_other_hosts_are_allowed() -> None:
    """A name that merely resembles a metadata host is allowed, and so is a short one: its address decides."""
    hosts = ["example.com", "localhost", "metadata.example.com", "metadata", "instance-data", "my-metadata", "", "."]
    refused = [host for host in hosts if is_metadata_host(host)]
    assert not refused, str(refused)


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_is_judged_without_an_exception(text: str) -> None:
    """Any text, lone surrogates and NUL included, gets the answer True or False."""
    assert is_metadata_host(text) in {True, False}
    assert is_metadata_address(f"1{text}") in {True, False}


def test_what_is_no_address_is_no_metadata_address() -> None:
    """A text that is no address is left to the resolver, whose answer is checked again."""
    texts = ["1\0", "\ud800", "1.2.3.4.5", "256.1.1.1", "0x100000000", "[::g]", "%", "[]"]
    refused = [text for text in texts if is_metadata_address(text)]
    assert not refused, str(refused)
