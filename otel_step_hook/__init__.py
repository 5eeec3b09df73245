"""An OpenTelemetry SpanProcessor that tells a webhook when a step ends."""

from otel_step_hook.errors import ConfigurationError, StepHookError, VerificationError
from otel_step_hook.processor import StepHookProcessor
from otel_step_hook.settings import StepHookSettings
from otel_step_hook.version import __version__

__all__ = [
    "ConfigurationError",
    "StepHookError",
    "StepHookProcessor",
    "StepHookSettings",
    "VerificationError",
    "__version__",
]
