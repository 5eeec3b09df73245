"""What the activity gets of a delivery, in the form in which Temporal keeps it: JSON without secrets. Pure."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from opentelemetry.trace import SpanContext, get_current_span

from otel_step_hook.delivery.log import printable
from otel_step_hook.delivery.model import Delivery
from otel_step_hook.delivery.request import webhook_id
from otel_step_hook.delivery.serialization import event_from_json, event_json, resource_json
from otel_step_hook.steps.event import Outcome, StepEvent

ACTIVITY = "send_step_complete_webhook"  # the name that the specification gives the activity
WORKFLOW = "SendStepCompleteWebhook"
_MAX_SUMMARY = 350  # characters of a summary as JSON; a server refuses more than 400 bytes, with those of its metadata


@dataclass(frozen=True)
class WebhookArguments:
    """One delivery: *event* and *resource* as JSON objects, and *body*, which is empty where the worker makes it.

    *endpoint* is the name of the receiver: the worker finds its URL and its secrets in its own settings.
    *start_to_close* and *schedule_to_close* are in seconds.
    """

    endpoint: str
    webhook_id: str
    body: str
    event: Mapping[str, Any]
    resource: Mapping[str, Any]
    start_to_close: float
    schedule_to_close: float


@dataclass(frozen=True)
class WebhookResult:
    """How the delivery of a webhook has ended: ``delivered``, or ``skipped`` where none is wanted."""

    result: str
    status_code: int | None = None
    attempts: int = 0


def arguments_of(
    delivery: Delivery, endpoint: str, *, start_to_close: float, schedule_to_close: float
) -> WebhookArguments:
    """Return the arguments for *delivery* to *endpoint*; the times are in seconds."""
    event = json.loads(event_json(delivery.event))
    return WebhookArguments(
        endpoint,
        delivery.id,
        delivery.body.decode("ascii"),
        event | {"details": {}},  # they are in the body, if anywhere
        json.loads(resource_json(delivery.pipeline.resource)[1]),
        start_to_close,
        schedule_to_close,
    )


def event_of(webhook: WebhookArguments) -> StepEvent:
    """Return the step of *webhook*."""
    return event_from_json(json.dumps(webhook.event))


def resource_of(webhook: WebhookArguments) -> tuple[str, str]:
    """Return a hash and the JSON of the resource of the step's span. A step of a workflow has none."""
    content = json.dumps(webhook.resource, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest(), content


def activity_id(delivery: Delivery, endpoint: str) -> str:
    """Return the id of the activity or workflow for *delivery*: the same in every process that submits the step.

    A delivery that somebody has asked for again has one of its own, under the same webhook id: Temporal may have sent
    it after the application had given the handover up.
    """
    again = f"/redelivery-{delivery.redeliveries}" if delivery.redeliveries else ""
    return f"{endpoint}/{delivery.id}{again}"


def summary(event: Mapping[str, Any]) -> str:
    """Return what Temporal's web page shows beside an activity: step id and outcome."""
    step_id = printable(event["step_id"])
    while len(json.dumps(step_id)) + len(event["outcome"]) >= _MAX_SUMMARY:  # JSON has 6 characters for many a letter
        step_id = step_id[:-1]
    return f"{step_id} {event['outcome']}"


class WorkflowIdentity(Protocol):
    """What identifies a workflow, also after a reset: see `temporalio.workflow.Info`."""

    @property
    def namespace(self) -> str:
        """Its namespace."""

    @property
    def workflow_id(self) -> str:
        """Its id."""

    @property
    def first_execution_run_id(self) -> str:
        """The id of its first run."""

    @property
    def workflow_type(self) -> str:
        """The name of its class."""


class WorkflowEvent(NamedTuple):
    """A step that has ended in a workflow, as JSON objects, with its webhook id."""

    fields: Mapping[str, Any]
    webhook_id: str


def event_of_workflow(step_id: str, outcome: str, workflow: WorkflowIdentity, now: int) -> WorkflowEvent:
    """Return the step that a *workflow* reports at *now* (unix nanoseconds): the same each time it is replayed.

    Its span context is the current one. Where no tracing is set up there is none; then its span id is 0, and its trace
    id a hash of workflow and step. Raises ValueError for an *outcome* that there is not.
    """
    context = get_current_span().get_span_context()
    if not context.is_valid:
        named = f"{workflow.namespace}\0{workflow.workflow_id}\0{workflow.first_execution_run_id}\0{step_id}"
        digest = hashlib.sha256(named.encode("utf-8", "surrogatepass")).digest()
        context = SpanContext(int.from_bytes(digest[:16], "big"), 0, is_remote=True)
    event = StepEvent(step_id, Outcome(outcome), workflow.workflow_type, context, now, now)
    return WorkflowEvent(json.loads(event_json(event)), webhook_id(event))
