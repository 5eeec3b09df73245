"""The same delivery on Temporal: what a Temporal worker and a workflow need. Needs the extra ``temporal``."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from otel_step_hook.temporal.plugin import StepHookPlugin
    from otel_step_hook.temporal.workflow import notify_step_complete

__all__ = ["StepHookPlugin", "notify_step_complete"]

# Imported at first use (PEP 562): a workflow's sandbox imports this package again, and needs one of them alone.
_MODULES = {"StepHookPlugin": "plugin", "notify_step_complete": "workflow"}

if not TYPE_CHECKING:  # pragma: no branch -- type checkers would accept any attribute of this module

    def __getattr__(name: str) -> object:
        """Import the public *name* at its first use, and keep it."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
