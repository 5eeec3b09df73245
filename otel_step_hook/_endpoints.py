"""From settings to endpoints."""

import base64
from urllib.parse import unquote, urlsplit, urlunsplit

from otel_step_hook.delivery.model import Endpoint, TlsFiles
from otel_step_hook.settings import StepHookSettings


def endpoints_of(settings: StepHookSettings) -> tuple[Endpoint, ...]:
    """The endpoints that *settings* name."""
    if settings.webhook is None:
        return ()
    parts = urlsplit(settings.webhook)
    headers = settings.headers
    if settings.key is not None:
        headers = (("authorization", f"Bearer {settings.key.get_secret_value()}"), *headers)
    elif parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers = (("authorization", f"Basic {base64.b64encode(pair.encode()).decode('ascii')}"), *headers)
    url = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, parts.query, ""))
    return (
        Endpoint(
            "default",
            url,
            headers,
            settings.signing_keys,
            settings.payload,
            settings.outcomes,
            settings.timeout,
            TlsFiles(settings.certificate, settings.client_certificate, settings.client_key),
            settings.proxy,
        ),
    )
