"""Where the requests to an endpoint go, and the limits of a connection: owns the look-up of addresses."""

import asyncio
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import httpx

from otel_step_hook.delivery.addresses import resolvable, without_zone
from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.metadata_hosts import is_metadata_address
from otel_step_hook.delivery.model import Endpoint, TlsFiles
from otel_step_hook.delivery.private_addresses import is_private_address
from otel_step_hook.delivery.tls import TlsContext
from otel_step_hook.errors import ConfigurationError

ANSWER_LIMIT = 4096  # bytes of an answer's body that are read
ANSWER_TIME = 1.0  # seconds that the body of an answer may take; the result is known before it
KEEP_ALIVE = 5.0  # seconds after which an idle connection is not used again
_ADDRESS_AGE = 30.0  # seconds for which a look-up is kept: a receiver that moves is followed within this time


class AddressRefused(Exception):  # noqa: N818 -- the names of its subclasses are an `error.type`, and read as one
    """The endpoint's name has no addresses but those that are refused."""


class MetadataAddressRefused(AddressRefused):
    """The endpoint's name has no addresses but those of cloud metadata services."""


class PrivateAddressRefused(AddressRefused):
    """The endpoint's name has no public address, and ``STEP_COMPLETE_PUBLIC_ONLY`` asks for one."""


@dataclass(slots=True)
class _LookUp:
    addresses: list[str]
    until: float


class Origin:
    """Where the requests to an endpoint go: URL, TLS context and addresses, shared by its connections.

    Raises `ConfigurationError` for a URL, a certificate or a key file that cannot be used.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        try:
            whole = httpx.URL(endpoint.url)
            self.url = _with_host(whole, without_zone)
            self.proxy = _with_host(httpx.URL(endpoint.proxy), resolvable) if endpoint.proxy else None
            for url in filter(None, (self.url, self.proxy)):
                _host_of(url).encode("idna")  # as the resolver does: refuses empty and overlong labels
        except (httpx.InvalidURL, ValueError):
            raise ConfigurationError(
                "STEP_COMPLETE_WEBHOOK or STEP_COMPLETE_PROXY is not a URL that can be used; "
                "expected an absolute URL such as https://example.com/hook"
            ) from None
        self.uses_tls = "https" in {self.url.scheme, self.proxy and self.proxy.scheme}
        self.tls = TlsContext(endpoint.tls, endpoint.name)
        if endpoint.tls != TlsFiles() or self.uses_tls:
            _ = self.tls.current  # now, to report an unusable file at start-up
        self.host = resolvable(_host_of(whole))
        # Certificates have neither a zone nor the dot that ends an absolute name.
        self.tls_name = _host_of(self.url).removesuffix(".")
        self.port = self.url.port or (443 if self.url.scheme == "https" else 80)
        self.netloc = self.url.netloc.decode("ascii")
        self._is_public_only = endpoint.public_only
        self._urls: dict[str, httpx.URL] = {}
        self._look_up = _LookUp([], 0.0)

    async def addresses(self) -> list[str]:
        """Return the endpoint's addresses; those that failed are at the end. A look-up is kept for 30 s.

        A link-local IPv6 address has its zone, as a number, behind a percent sign. Raises OSError when the name cannot
        be resolved, and `AddressRefused` when it has no addresses but those that are refused.
        """
        if monotonic() < self._look_up.until:
            return self._look_up.addresses
        loop = asyncio.get_running_loop()  # our own loop shares a look-up that is under way
        found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        allowed = self._allowed(dict.fromkeys(_address_of(item[4]) for item in found))
        known = self._look_up.addresses  # in the order that `forget` has left
        allowed.sort(key=lambda address: known.index(address) if address in known else len(known))
        self._look_up = _LookUp(allowed, monotonic() + _ADDRESS_AGE)
        return allowed

    def _allowed(self, addresses: Iterable[str]) -> list[str]:
        allowed = [address for address in addresses if not is_metadata_address(address)]
        if not allowed:
            raise MetadataAddressRefused
        if self._is_public_only:
            allowed = [address for address in allowed if not is_private_address(address)]
            if not allowed:
                raise PrivateAddressRefused
        return allowed

    def url_at(self, address: str) -> httpx.URL:
        """Return the endpoint's URL with *address* in place of its name."""
        if address not in self._urls:
            self._urls = {address: self.url.copy_with(host=address)}
        return self._urls[address]

    def forget(self, address: str) -> None:
        """Drop the look-up; the next attempt makes a new one, and tries *address* last."""
        self._look_up = _LookUp(sorted(self._look_up.addresses, key=lambda known: known == address), 0.0)


def _host_of(url: httpx.URL) -> str:
    return url.raw_host.decode("ascii")


def _with_host(url: httpx.URL, change: Callable[[str], str]) -> httpx.URL:
    host = _host_of(url)
    return url if change(host) == host else url.copy_with(host=change(host))


def _address_of(sockaddr: tuple[Any, ...]) -> str:
    """Return the address in *sockaddr*, an element of what `getaddrinfo` returns, with its IPv6 scope if it has one."""
    address, _, *more = sockaddr  # more, of IPv6: flow info and scope id
    return f"{address}%{more[1]}" if any(more[1:]) else str(address)
