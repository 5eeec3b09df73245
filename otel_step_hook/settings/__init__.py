"""All settings: their names, their values, and the messages about values that cannot be used."""

from otel_step_hook.settings.endpoints import endpoints_of, retry_policy_of
from otel_step_hook.settings.hook import (
    SettingRow,
    StepHookSettings,
    effective_settings,
    setting_rows,
    settings_of,
    unknown_variables,
)
from otel_step_hook.settings.receiver import EndpointSettings

__all__ = [
    "EndpointSettings",
    "SettingRow",
    "StepHookSettings",
    "effective_settings",
    "endpoints_of",
    "retry_policy_of",
    "setting_rows",
    "settings_of",
    "unknown_variables",
]
