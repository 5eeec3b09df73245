"""All settings: what they are called, what they may hold, and every sentence about a wrong one."""

from otel_step_hook.settings.hook import (
    SettingRow,
    StepHookSettings,
    has_webhook,
    in_force,
    setting_rows,
    unknown_variables,
)

__all__ = ["SettingRow", "StepHookSettings", "has_webhook", "in_force", "setting_rows", "unknown_variables"]
