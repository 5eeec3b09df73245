"""Registration without code, by the entry points of OpenTelemetry's auto-instrumentation. Owns what it has registered.

Nothing here raises: an exception would keep all other instrumentations from being loaded. Every instrumented
process imports this module where the package is installed: what is heavy is imported once there is something to do.
"""

import logging
import os
import weakref
from typing import TYPE_CHECKING

from opentelemetry.trace import get_tracer_provider

from otel_step_hook.errors import ConfigurationError

if TYPE_CHECKING:
    from otel_step_hook.processor import StepHookProcessor

_log = logging.getLogger("otel_step_hook")
# Pairs, not a dict: a provider may have no hash.
_registered: "list[tuple[weakref.ref[object], StepHookProcessor]]" = []
_logged: set[str] = set()  # what has been logged of settings, which are read once by each of the two entry points


def has_webhook() -> bool:
    """Whether the environment names a receiver or a file of them, whatever is wrong with it."""
    named = {"STEP_COMPLETE_WEBHOOK", "STEP_COMPLETE_ENDPOINTS"}
    return any(value.strip() for name, value in os.environ.items() if name.upper() in named)


def pre_instrument() -> None:
    """Register with the global provider, if the environment names a receiver (``opentelemetry_pre_instrument``).

    Not where ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS`` names ``step_hook``, of which OpenTelemetry asks
    the instrumentors alone.
    """
    disabled = os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")
    if has_webhook() and "step_hook" not in map(str.strip, disabled):
        register()


def register(**options: object) -> "StepHookProcessor | None":
    """Register a `StepHookProcessor` with the global provider, once; *options* are settings beside the environment's.

    Returns the one that is registered, or None where nothing is: a setting cannot be used, there is no provider
    of the SDK, or something has failed, all of which are logged; or there is no webhook.
    """
    try:
        return _register(options)
    except ConfigurationError as error:
        _log_once(str(error))
    except Exception as error:  # noqa: BLE001 -- an exception would keep other instrumentations from being loaded
        _log_once(type(error).__name__)  # no more of it: it may hold a secret
    return None


def _log_once(reason: str) -> None:
    if reason not in _logged:
        _logged.add(reason)
        _log.error("otel-step-hook is not registered: %s", reason)


def _register(options: dict[str, object]) -> "StepHookProcessor | None":
    provider = get_tracer_provider()
    if not hasattr(provider, "add_span_processor"):
        _log.warning(
            "otel-step-hook is not registered: expected a TracerProvider of the OpenTelemetry SDK, and the global one "
            "is a %s; install opentelemetry-distro, or set one up before",
            type(provider).__name__,
        )
        return None
    registered = next((hook for known, hook in _registered if known() is provider), None)
    if registered is not None:
        if options:
            _log.warning("otel-step-hook is registered already: the settings %s are ignored", ", ".join(options))
        return registered
    # Not at the top: where nothing is configured nobody pays for pydantic and the SDK.
    from otel_step_hook.processor import StepHookProcessor  # noqa: PLC0415 -- see above
    from otel_step_hook.settings import StepHookSettings  # noqa: PLC0415 -- see above

    settings = StepHookSettings(**options)
    hook = StepHookProcessor(settings)
    if settings.webhook is None and not settings.endpoints:
        return None
    provider.add_span_processor(hook)
    _registered[:] = [*((known, other) for known, other in _registered if known()), (weakref.ref(provider), hook)]
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
