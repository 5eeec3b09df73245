"""An OpenTelemetry SpanProcessor that sends a webhook when a step ends."""

from typing import TYPE_CHECKING

from otel_step_hook.lazy import importing
from otel_step_hook.version import __version__

if TYPE_CHECKING:
    from otel_step_hook.errors import ConfigurationError, StepHookError, VerificationError
    from otel_step_hook.processor import StepHookProcessor
    from otel_step_hook.sampler import StepSampler
    from otel_step_hook.settings import EndpointSettings, StepHookSettings
    from otel_step_hook.steps.event import Outcome
    from otel_step_hook.steps.profile import NOT_TERMINAL, Profile

__all__ = [
    "NOT_TERMINAL",
    "ConfigurationError",
    "EndpointSettings",
    "Outcome",
    "Profile",
    "StepHookError",
    "StepHookProcessor",
    "StepHookSettings",
    "StepSampler",
    "VerificationError",
    "__version__",
]

# Imported at first use (PEP 562): pydantic and the SDK are slow to import, and every instrumented process imports
# `otel_step_hook.auto`.
_MODULES = {
    "NOT_TERMINAL": "steps.profile",
    "ConfigurationError": "errors",
    "EndpointSettings": "settings",
    "Outcome": "steps.event",
    "Profile": "steps.profile",
    "StepHookError": "errors",
    "StepHookProcessor": "processor",
    "StepHookSettings": "settings",
    "StepSampler": "sampler",
    "VerificationError": "errors",
}

if not TYPE_CHECKING:  # pragma: no branch -- type checkers would accept any attribute of this module
    __getattr__ = importing(__name__, _MODULES, globals())


def __dir__() -> list[str]:
    """All public names, imported yet or not, and the other names of this module."""
    return sorted({*globals(), *__all__})
