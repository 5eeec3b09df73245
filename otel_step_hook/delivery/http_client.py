"""Which HTTP library sends the webhooks: chosen at start-up, since no worker thread may import a module."""

import importlib
import importlib.metadata
from collections.abc import Callable

from otel_step_hook.delivery.model import Endpoint, HttpClient
from otel_step_hook.delivery.sender import Transport
from otel_step_hook.errors import ConfigurationError, hide_arguments

_MODULES = {
    "aiohttp": "otel_step_hook.delivery.aiohttp_transport",
    "httpx": "otel_step_hook.delivery.transport",
}
_OLDEST_AIOHTTP = (3, 12)


@hide_arguments
def connector(endpoint: Endpoint) -> Callable[[], Transport]:
    """Return a function that makes connections to *endpoint*, for any event loop.

    Raises `ConfigurationError` for a URL, a certificate or a key file that cannot be used, and for a library that is
    not there.
    """
    module = importlib.import_module(_MODULES[_chosen(endpoint.http_client)])
    connect: Callable[[], Transport] = module.connector(endpoint)
    return connect


def client_label(wanted: HttpClient) -> str:
    """Return name and version of the library that is used where *wanted* is set, such as ``aiohttp 3.14.5``."""
    name = _chosen(wanted)
    return f"{name} {importlib.metadata.version(name)}"


def _chosen(wanted: HttpClient) -> HttpClient:
    """Return the library for *wanted*: where that is ``auto``, aiohttp if it can be used, and else httpx."""
    if wanted == "httpx":
        return wanted
    lack = _lack_of_aiohttp()
    if lack and wanted == "aiohttp":
        oldest = ".".join(map(str, _OLDEST_AIOHTTP))
        raise ConfigurationError(
            f"STEP_COMPLETE_HTTP_CLIENT=aiohttp needs aiohttp {oldest} or newer, {lack}; "
            "install it with: pip install 'otel-step-hook[fast]'"
        )
    return "httpx" if lack else "aiohttp"


def _lack_of_aiohttp() -> str:
    """Return why aiohttp cannot be used; empty if it can."""
    try:
        version = importlib.metadata.version("aiohttp")
        importlib.import_module("aiohttp")
    except ImportError as error:
        return f"which is not there ({error.name})"
    except Exception as error:  # noqa: BLE001 -- a broken installation must not keep the application from starting
        return f"which cannot be imported ({type(error).__name__})"
    is_old = tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_AIOHTTP
    return f"and this is {version}" if is_old else ""
