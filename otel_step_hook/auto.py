"""Registration without code, by the entry points of OpenTelemetry's auto-instrumentation. Owns the registered hooks.

Nothing here raises: an exception would keep all other instrumentations from being loaded. Every instrumented
process imports this module where the package is installed, so slow modules are imported only when they are needed.
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
# Pairs, not a dict: a provider may be unhashable.
_registered: "list[tuple[weakref.ref[object], StepHookProcessor]]" = []
_logged: set[str] = set()  # the reasons that have been logged: each of the two entry points reads the settings


def has_webhook() -> bool:
    """Whether the environment names a receiver or a file of receivers, valid or not."""
    named = {"STEP_COMPLETE_WEBHOOK", "STEP_COMPLETE_ENDPOINTS"}
    return any(value.strip() for name, value in os.environ.items() if name.upper() in named)


def pre_instrument() -> None:
    """Register with the global provider, if the environment names a receiver (``opentelemetry_pre_instrument``).

    Does nothing where ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS`` names ``step_hook``, or is ``*``.
    """
    if has_webhook() and not _is_disabled():
        register()


def _is_disabled() -> bool:
    # OpenTelemetry applies this variable to instrumentors only, and its older releases do not know "*".
    disabled = os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")
    return not {"step_hook", "*"}.isdisjoint(map(str.strip, disabled))


def register(**options: object) -> "StepHookProcessor | None":
    """Register a `StepHookProcessor` with the global provider, once; *options* are settings besides the environment's.

    Returns the registered processor, or None where there is none: without a webhook, or, with a log line, when a
    setting cannot be used, the global provider is not the SDK's, or anything else has failed.
    """
    try:
        return _register(options)
    except ConfigurationError as error:
        _log_once(str(error))
    except Exception as error:  # noqa: BLE001 -- an exception would keep other instrumentations from being loaded
        _log_once(type(error).__name__)  # without the message, which may hold a secret
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
    # Not at the top: a process without a receiver must not pay for pydantic and the SDK.
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
    """The instrumentor ``step_hook``: a file of the declarative configuration gives it its settings.

    It does not extend OpenTelemetry's `BaseInstrumentor`, which would be one more package to depend on.
    """

    def instrument(self, **options: object) -> None:
        """Register with the global provider, unless it is disabled; *options* are settings by their names."""
        # OpenTelemetry passes these two to every instrumentor.
        settings = {
            name: value
            for name, value in options.items()
            if name not in {"skip_dep_check", "raise_exception_on_conflict"}
        }
        if (settings or has_webhook()) and not _is_disabled():
            register(**settings)

    def uninstrument(self, **_: object) -> None:
        """Do nothing: a `TracerProvider` cannot unregister a processor."""
