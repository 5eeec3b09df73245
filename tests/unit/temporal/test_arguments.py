"""What Temporal keeps of a delivery."""

import dataclasses
import json
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanContext, TraceFlags, TraceState, format_trace_id
from temporalio.converter import DataConverter

from otel_step_hook import Outcome
from otel_step_hook.delivery.model import Delivery, Pipeline
from otel_step_hook.delivery.request import webhook_id
from otel_step_hook.delivery.serialization import resource_from_json
from otel_step_hook.steps.event import MAX_STEP_ID, StepEvent
from otel_step_hook.temporal.arguments import (
    WebhookArguments,
    activity_id,
    arguments_of,
    event_of,
    event_of_workflow,
    resource_of,
    summary,
)

_CONTEXT = SpanContext(
    0x11, 0x22, is_remote=False, trace_flags=TraceFlags(1), trace_state=TraceState([("vendor", "value")])
)


@dataclass(frozen=True)
class _Workflow:
    """What identifies a workflow."""

    namespace: str = "default"
    workflow_id: str = "agent-1"
    first_execution_run_id: str = "run-1"
    workflow_type: str = "Agent"


def _delivery(step_id: str = "step-1", **details: str) -> Delivery:
    event = StepEvent(step_id, Outcome.FAILED, "step", _CONTEXT, 1, 2, details)
    resource = Resource({"service.name": "tests", "ports": (1, 2)}, "https://example.com/schema")
    return Delivery(webhook_id(event), event, Pipeline(None, resource), 0.0, b'{"step_id": "step-1"}')


def _arguments(step_id: str = "step-1", **details: str) -> WebhookArguments:
    return arguments_of(_delivery(step_id, **details), "billing", start_to_close=15, schedule_to_close=30)


@pytest.mark.anyio
@given(step_id=st.text(min_size=1))
async def test_they_come_back(step_id: str) -> None:
    """Event, resource and body come back from the JSON that Temporal keeps; details are in the body alone."""
    given_arguments = _arguments(step_id, run_id="run-1")
    (payload,) = await DataConverter.default.encode([given_arguments])
    (found,) = await DataConverter.default.decode([payload], [WebhookArguments])
    assert found == given_arguments
    event = event_of(found)
    assert (event.step_id, event.outcome, event.context, event.details) == (step_id, Outcome.FAILED, _CONTEXT, {})
    resource = resource_from_json(resource_of(found)[1])
    assert dict(resource.attributes) == {"service.name": "tests", "ports": (1, 2)}
    assert resource.schema_url == "https://example.com/schema"


def test_what_is_kept() -> None:
    """Nothing is kept but names, ids, times, the body and the resource."""
    assert list(dataclasses.asdict(_arguments())) == [
        "endpoint",
        "webhook_id",
        "body",
        "event",
        "resource",
        "start_to_close",
        "schedule_to_close",
    ]


@given(step_id=st.text(min_size=1, max_size=MAX_STEP_ID))
@example("шаг" * 100)
@example("🧭" * 200)
def test_the_summary_is_short(step_id: str) -> None:
    """The summary is what the server accepts, as JSON and with its metadata, and has no control characters."""
    shown = summary({"step_id": step_id, "outcome": "success"})
    assert len(DataConverter.default.payload_converter.to_payload(shown).SerializeToString()) <= 400  # bytes
    assert shown.isprintable()
    assert shown.endswith(" success")


def test_ids() -> None:
    """An activity's id is that of endpoint and webhook; one that somebody has asked for again has its own."""
    delivery = _delivery()
    assert activity_id(delivery, "billing") == f"billing/{delivery.id}"
    delivery.redeliveries = 2
    assert activity_id(delivery, "billing") == f"billing/{delivery.id}/redelivery-2"
    assert summary({"step_id": "step-1", "outcome": "failed"}) == "step-1 failed"


def test_a_step_of_a_workflow() -> None:
    """The same step of the same workflow has the same webhook id, also after a reset, and another one elsewhere."""
    first = event_of_workflow("step-1", "success", _Workflow(), 5)
    assert first == event_of_workflow("step-1", "success", _Workflow(), 5)
    assert first.webhook_id == event_of_workflow("step-1", "success", _Workflow(), 6).webhook_id
    others = (
        event_of_workflow("step-1", "failed", _Workflow(), 5),
        event_of_workflow("step-2", "success", _Workflow(), 5),
        event_of_workflow("step-1", "success", _Workflow(workflow_id="agent-2"), 5),
        event_of_workflow("step-1", "success", _Workflow(namespace="other"), 5),
        event_of_workflow("step-1", "success", _Workflow(first_execution_run_id="run-2"), 5),
    )
    assert len({first.webhook_id, *(other.webhook_id for other in others)}) == 6
    assert json.loads(json.dumps(first.fields)) == first.fields
    with pytest.raises(ValueError, match="'done' is not a valid Outcome"):
        event_of_workflow("step-1", "done", _Workflow(), 5)


def test_a_step_of_a_traced_workflow() -> None:
    """Where a workflow is traced, its steps are in its trace."""
    with TracerProvider(shutdown_on_exit=False).get_tracer("tests").start_as_current_span("workflow") as span:
        fields = event_of_workflow("step-1", "success", _Workflow(), 5).fields
    assert fields["trace_id"] == format_trace_id(span.get_span_context().trace_id)
