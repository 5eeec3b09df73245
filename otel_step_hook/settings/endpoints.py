"""Makes the values that delivery works on from settings: each `Endpoint`, and the `RetryPolicy`. Pure."""

import base64
from urllib.parse import unquote, urlsplit

from otel_step_hook.delivery.model import Endpoint, TlsFiles
from otel_step_hook.delivery.retry import RetryPolicy
from otel_step_hook.settings.hook import StepHookSettings
from otel_step_hook.settings.parsing import name_from_url, without_user_info
from otel_step_hook.settings.receiver import EndpointSettings, ReceiverSettings

# An endpoint without its own takes that of all.
_SHARED = ("payload", "outcomes", "timeout", "certificate", "proxy", "http_client", "public_only")
_CLIENT_TLS = ("client_certificate", "client_key")  # shared together: a key belongs to its certificate


def endpoints_of(settings: StepHookSettings) -> tuple[Endpoint, ...]:
    """Return an `Endpoint` for each receiver of *settings*, each with a different name; empty without a webhook.

    A single URL in ``STEP_COMPLETE_WEBHOOK`` is named "default". Each of several is named by host and a short hash.
    """
    if settings.endpoints:
        return tuple(
            _endpoint(one.display_name, one.webhook, _with_shared(one, settings)) for one in settings.endpoints
        )
    urls = (settings.webhook or "").split()
    return tuple(_endpoint("default" if len(urls) == 1 else name_from_url(url), url, settings) for url in urls)


def retry_policy_of(settings: StepHookSettings) -> RetryPolicy:
    """Return when deliveries are tried again, and when they are given up, at every receiver of *settings*."""
    return RetryPolicy(
        initial_backoff=settings.initial_backoff,
        max_backoff=settings.max_backoff,
        backoff_multiplier=settings.backoff_multiplier,
        give_up_after=settings.give_up_after,
    )


def _with_shared(endpoint: EndpointSettings, settings: StepHookSettings) -> EndpointSettings:
    """*endpoint*, with the values of *settings* for what it does not set itself, except secrets."""
    own = endpoint.model_fields_set
    names = _SHARED if own.intersection(_CLIENT_TLS) else (*_SHARED, *_CLIENT_TLS)
    return endpoint.model_copy(update={name: getattr(settings, name) for name in names if name not in own})


def _endpoint(name: str, url: str, receiver: ReceiverSettings) -> Endpoint:
    authorization = _basic(url) if receiver.key is None else f"Bearer {receiver.key.get_secret_value()}"
    return Endpoint(
        name=name,
        url=without_user_info(url),
        headers=(*([("authorization", authorization)] if authorization else []), *receiver.headers),
        signing_keys=receiver.signing_keys,
        payload=receiver.payload,
        outcomes=receiver.outcomes,
        timeout=receiver.timeout,
        tls=TlsFiles(receiver.certificate, receiver.client_certificate, receiver.client_key),
        proxy=receiver.proxy,
        http_client=receiver.http_client,
        public_only=receiver.public_only,
    )


def _basic(url: str) -> str:
    """The Basic authorization (RFC 7617, in UTF-8) for the user name and password in *url*; empty without them."""
    parts = urlsplit(url)
    if parts.username is None:
        return ""
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode('ascii')}"
