"""Registration without code, by the entry points of OpenTelemetry's auto-instrumentation. Owns what it has registered.

Nothing here raises: an exception would keep all other instrumentations from being loaded.
"""

import logging
import weakref

from opentelemetry.trace import get_tracer_provider

from otel_step_hook.errors import ConfigurationError
from otel_step_hook.processor import StepHookProcessor
from otel_step_hook.settings import StepHookSettings, has_webhook

_log = logging.getLogger("otel_step_hook")
_registered: "weakref.WeakKeyDictionary[object, StepHookProcessor]" = weakref.WeakKeyDictionary()  # by provider


def pre_instrument() -> None:
    """Register with the global provider, if ``STEP_COMPLETE_WEBHOOK`` is set (``opentelemetry_pre_instrument``)."""
    if has_webhook():
        register()


def register(**options: object) -> StepHookProcessor | None:
    """Register a `StepHookProcessor` with the global provider, once; *options* are settings beside the environment's.

    Returns the one that is registered, or None where nothing is: a setting cannot be used, or there
    is no provider of the SDK, both of which are logged; or there is no webhook.
    """
    provider = get_tracer_provider()
    if not hasattr(provider, "add_span_processor"):
        _log.warning(
            "otel-step-hook is not registered: expected a TracerProvider of the OpenTelemetry SDK, and the global one "
            "is a %s; install opentelemetry-distro, or set one up before",
            type(provider).__name__,
        )
        return None
    if provider in _registered:
        if options:
            _log.warning("otel-step-hook is registered already: the settings %s are ignored", ", ".join(options))
        return _registered[provider]
    try:
        settings = StepHookSettings(**options)
        hook = StepHookProcessor(settings)
    except ConfigurationError as error:
        _log.error("otel-step-hook is not registered: %s", error)
        return None
    if settings.webhook is None:
        return None
    provider.add_span_processor(hook)
    _registered[provider] = hook
    return hook


class StepHookInstrumentor:
    """``step_hook`` among the instrumentors: a file of the declarative configuration gives it its settings.

    Not OpenTelemetry's `BaseInstrumentor`, which would be one more package to depend on.
    """

    def instrument(self, **options: object) -> None:
        """Register with the global provider; *options* are settings, under their names."""
        # What OpenTelemetry passes on to every instrumentor.
        settings = {
            name: value
            for name, value in options.items()
            if name not in {"skip_dep_check", "raise_exception_on_conflict"}
        }
        if settings or has_webhook():
            register(**settings)

    def uninstrument(self, **_: object) -> None:
        """Nothing: a provider lets go of no processor."""
