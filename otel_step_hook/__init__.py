"""An OpenTelemetry SpanProcessor that tells a webhook when a step ends."""

from otel_step_hook.errors import ConfigurationError, StepHookError, VerificationError
from otel_step_hook.processor import StepHookProcessor
from otel_step_hook.sampler import StepSampler
from otel_step_hook.settings import EndpointSettings, StepHookSettings
from otel_step_hook.steps.event import Outcome
from otel_step_hook.steps.profile import NOT_TERMINAL, Profile
from otel_step_hook.version import __version__

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
