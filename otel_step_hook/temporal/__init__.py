"""The same delivery on Temporal: what a Temporal worker and a workflow need. Needs the extra ``temporal``."""

from typing import TYPE_CHECKING

from otel_step_hook.lazy import importing

if TYPE_CHECKING:
    from otel_step_hook.temporal.plugin import StepHookPlugin
    from otel_step_hook.temporal.workflow import notify_step_complete

__all__ = ["StepHookPlugin", "notify_step_complete"]

# Imported at first use (PEP 562): a workflow's sandbox imports this package again, and needs one of them alone.
_MODULES = {"StepHookPlugin": "plugin", "notify_step_complete": "workflow"}

if not TYPE_CHECKING:  # pragma: no branch -- type checkers would accept any attribute of this module
    __getattr__ = importing(__name__, _MODULES, globals())
