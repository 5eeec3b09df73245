"""Whether a host is a cloud metadata service, however it is spelled: owns their names and addresses.

A webhook sent there could give a machine's credentials to the person who set the URL. Loopback, private and other
link-local addresses are allowed: users deliver to services inside their own network, and to the host of a container.
"""

from ipaddress import IPv4Network, IPv6Network

from otel_step_hook.delivery.addresses import normalised, reached_by

_METADATA_NETWORKS = (
    # Metadata of AWS, Azure, GCP, OpenStack and most others (.254), GKE (.252), DNS of AWS (.253), Rancher (.250)
    IPv4Network("169.254.169.0/24"),
    IPv4Network("169.254.170.0/24"),  # AWS: credentials of ECS tasks (.2) and of EKS pods (.23)
    IPv4Network("169.254.0.23"),  # Tencent
    IPv4Network("169.254.42.42"),  # Scaleway
    IPv4Network("100.100.100.200"),  # Alibaba
    IPv4Network("100.96.0.96"),  # Volcengine, BytePlus
    IPv4Network("168.63.129.16"),  # Azure's wire server, in public address space
    IPv4Network("192.0.0.192"),  # Oracle Classic
    IPv6Network("fd00:ec2::254"),  # AWS
    IPv6Network("fd00:ec2::23"),  # AWS: credentials of EKS pods
    IPv6Network("fd20:ce::254"),  # GCP
    IPv6Network("fd00:c1::a9fe:a9fe"),  # Oracle
    IPv6Network("fd00:42::42"),  # Scaleway
    IPv6Network("fd00:a9fe:a9fe::1"),  # Akamai (Linode)
    IPv6Network("fd00:100::100:200"),  # Alibaba
    IPv6Network("fe80::a9fe:a9fe"),  # OpenStack, Akamai
)
# Full names only. Behind a proxy nobody here learns where they lead. A short one, such as "metadata", may be the
# user's own service; without a proxy, its address decides.
_METADATA_NAMES = frozenset(
    {
        "metadata.google.internal",
        "metadata.goog",  # Google's, too
        "instance-data.ec2.internal",  # AWS
        "metadata.tencentyun.com",
        "api.metadata.cloud.ibm.com",
        "metadata.exoscale.com",
    }
)


def is_metadata_host(host: str) -> bool:
    """Whether *host*, as it stands in a URL, is the name or the address of a cloud metadata service.

    Case, a trailing dot and Unicode's look-alike letters, digits and dots make no difference. Names are not
    resolved: call `is_metadata_address` with each address that the resolver returns.
    """
    return normalised(host) in _METADATA_NAMES or is_metadata_address(host)


def is_metadata_address(address: str) -> bool:
    """Whether *address* is a literal address of a cloud metadata service; False for text that is no address.

    Every spelling is recognised, and an IPv4 address inside an IPv6 address, too: see `reached_by`.
    """
    return any(reached in network for reached in reached_by(address) for network in _METADATA_NETWORKS)
