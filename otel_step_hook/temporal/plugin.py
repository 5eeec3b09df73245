"""`StepHookPlugin`: adds activity and workflow to somebody's own Temporal worker."""

from dataclasses import replace
from typing import Any

from opentelemetry.trace import get_tracer_provider
from temporalio.plugin import SimplePlugin
from temporalio.worker import WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from otel_step_hook import _sdk
from otel_step_hook.delivery.model import Pipeline
from otel_step_hook.errors import hide_arguments
from otel_step_hook.settings import StepHookSettings, endpoints_of, retry_policy_of, settings_of
from otel_step_hook.temporal.activity import WebhookActivities
from otel_step_hook.temporal.workflow import SendStepCompleteWebhook


class StepHookPlugin(SimplePlugin):
    """Adds the activity ``send_step_complete_webhook``, and its workflow for older servers, to Temporal workers.

    ``Worker(…, plugins=[StepHookPlugin()])``; given to a client, it is that of all of the client's workers. Settings
    are given as to `StepHookProcessor`, by name or from ``STEP_COMPLETE_…`` variables; without a webhook nothing is
    sent for a workflow, and what an application has handed over fails. Spans of deliveries go to the global
    TracerProvider. Raises `ConfigurationError` for settings that cannot be used.
    """

    @hide_arguments
    def __init__(self, webhook: str | StepHookSettings | None = None, /, **settings: Any) -> None:
        chosen = settings_of("StepHookPlugin", webhook, settings)
        activities = WebhookActivities(endpoints_of(chosen), retry_policy_of(chosen), _pipeline)
        super().__init__(
            "otel-step-hook",
            activities=[activities.send_step_complete_webhook],
            workflows=[SendStepCompleteWebhook],
            workflow_runner=_with_passthrough,
            run_context=activities.run,
        )


def _pipeline() -> Pipeline:
    """Return where the spans of the global provider go."""
    return Pipeline(*_sdk.pipeline_of(get_tracer_provider()))


def _with_passthrough(runner: WorkflowRunner | None) -> WorkflowRunner:
    """Let a sandbox use this package as it is: it is deterministic, and importing it again takes long."""
    if isinstance(runner, SandboxedWorkflowRunner):
        return replace(runner, restrictions=runner.restrictions.with_passthrough_modules("otel_step_hook"))
    return runner or SandboxedWorkflowRunner()
