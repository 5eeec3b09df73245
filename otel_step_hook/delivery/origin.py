"""Where the requests to an endpoint go, and the limits of a connection: owns the look-up of addresses."""

import asyncio
import socket
from dataclasses import dataclass

import httpx

from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.metadata_hosts import is_metadata_address
from otel_step_hook.delivery.model import Endpoint, TlsFiles
from otel_step_hook.delivery.tls import TlsContext
from otel_step_hook.errors import ConfigurationError

ANSWER_LIMIT = 4096  # bytes of an answer's body that are read
ANSWER_TIME = 1.0  # seconds that the body of an answer may take; the result is known before it
KEEP_ALIVE = 5.0  # seconds after which an idle connection is not used again
_ADDRESS_AGE = 30.0  # seconds for which a look-up is kept: a receiver that moves is followed within this time


class MetadataAddressRefused(Exception):  # noqa: N818 -- its name is an `error.type`, and reads as one
    """The endpoint's name has no addresses but those of cloud metadata services."""


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
            self.url = httpx.URL(endpoint.url)
            self.proxy = httpx.URL(endpoint.proxy) if endpoint.proxy else None
            for url in filter(None, (self.url, self.proxy)):
                url.raw_host.decode("ascii").encode("idna")  # as the resolver does: refuses empty and overlong labels
        except (httpx.InvalidURL, ValueError):
            raise ConfigurationError(
                "STEP_COMPLETE_WEBHOOK or STEP_COMPLETE_PROXY is not a URL that can be used; "
                "expected an absolute URL such as https://example.com/hook"
            ) from None
        self.uses_tls = "https" in {self.url.scheme, self.proxy and self.proxy.scheme}
        self.tls = TlsContext(endpoint.tls, endpoint.name)
        if endpoint.tls != TlsFiles() or self.uses_tls:
            _ = self.tls.current  # now, to report an unusable file at start-up
        self.host = self.url.raw_host.decode("ascii")
        self.tls_name = self.host.removesuffix(".")  # certificates do not have the dot that ends an absolute name
        self.port = self.url.port or (443 if self.url.scheme == "https" else 80)
        self.netloc = self.url.netloc.decode("ascii")
        self._urls: dict[str, httpx.URL] = {}
        self._look_up = _LookUp([], 0.0)

    async def addresses(self) -> list[str]:
        """Return the endpoint's addresses; those that failed are at the end. A look-up is kept for 30 s.

        Raises OSError when the name cannot be resolved, and `MetadataAddressRefused` when it has no
        addresses but those of metadata services.
        """
        if monotonic() < self._look_up.until:
            return self._look_up.addresses
        loop = asyncio.get_running_loop()  # our own loop shares a look-up that is under way
        found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(item[4][0]) for item in found))
        allowed = [address for address in addresses if not is_metadata_address(address)]
        if not allowed:
            raise MetadataAddressRefused
        known = self._look_up.addresses  # in the order that `forget` has left
        allowed.sort(key=lambda address: known.index(address) if address in known else len(known))
        self._look_up = _LookUp(allowed, monotonic() + _ADDRESS_AGE)
        return allowed

    def url_at(self, address: str) -> httpx.URL:
        """Return the endpoint's URL with *address* in place of its name."""
        if address not in self._urls:
            self._urls = {address: self.url.copy_with(host=address)}
        return self._urls[address]

    def forget(self, address: str) -> None:
        """Drop the look-up; the next attempt makes a new one, and tries *address* last."""
        self._look_up = _LookUp(sorted(self._look_up.addresses, key=lambda known: known == address), 0.0)
