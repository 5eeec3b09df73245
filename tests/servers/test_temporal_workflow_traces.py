"""The trace of a webhook that a workflow has asked for, and what a hook in the same worker reports."""

from collections.abc import Iterator, Sequence

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, format_span_id, format_trace_id
from servers import thinking
from servers.temporal_workers import Server, Tracing, Workflows
from temporalio.client import Client

from otel_step_hook import StepHookProcessor
from otel_step_hook.temporal import StepHookPlugin
from otel_step_hook.testing import ScriptedReceiver

pytest_plugins = ["servers.temporal_fixtures"]
pytestmark = [pytest.mark.servers, pytest.mark.anyio]


@pytest.fixture
def receiver() -> Iterator[ScriptedReceiver]:
    """The receiver of the webhooks that workflows ask for."""
    with ScriptedReceiver() as receiver:
        yield receiver


def _context(span: ReadableSpan) -> SpanContext:
    context: SpanContext | None = span.context
    assert context is not None
    return context


def _traces(spans: Sequence[ReadableSpan]) -> set[int]:
    return {_context(span).trace_id for span in spans}


async def _delivered_at_third_attempt(workflows: Workflows, receiver: ScriptedReceiver, tracing: Tracing) -> None:
    """Run the example's workflow, and compare spans and requests of its webhook."""
    receiver.answers(503, 503, 204)
    async with workflows.working(StepHookPlugin(webhook=receiver.url, initial_backoff=0.01)):
        await (await workflows.start()).result()
    (deliver,), posts = tracing.named("step_hook.deliver"), tracing.named("POST")
    assert [span.parent.span_id if span.parent else 0 for span in posts] == [_context(deliver).span_id] * 3
    assert _traces(posts) == _traces([deliver])
    assert [webhook.headers["traceparent"][:52] for webhook in receiver.received] == [
        f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}" for context in map(_context, posts)
    ]
    assert {span.resource.attributes["service.name"] for span in (deliver, *posts)} == {"tests"}


async def test_all_attempts_are_in_the_trace_of_the_workflow(
    temporal_server: Server, tracing: Tracing, receiver: ScriptedReceiver
) -> None:
    """They are children of one `step_hook.deliver`; without tracing, they have a trace of their own."""
    await _delivered_at_third_attempt(await tracing.connect(temporal_server), receiver, tracing)
    (deliver,) = tracing.named("step_hook.deliver")
    starts = tracing.named("StartWorkflow:Agent")
    # The span that Temporal's SDK makes the current one in a workflow: the plugin's lasts as long as the workflow.
    current = {"interceptor": starts, "plugin": tracing.named("RunWorkflow:Agent"), "none": []}[tracing.kind]
    assert ([deliver.parent.span_id] if deliver.parent else []) == [_context(one).span_id for one in current]
    assert _traces(starts) <= _traces([deliver])


@pytest.mark.parametrize("tracing", ["interceptor"], indirect=True)
async def test_all_attempts_are_in_one_trace_if_the_worker_alone_is_traced(
    newer_temporal: Server, tracing: Tracing, receiver: ScriptedReceiver
) -> None:
    """The workflow has no trace then, and the interceptor makes a new one for each attempt."""
    workflows = Workflows(await Client.connect(newer_temporal.address), tracing.interceptors)
    await _delivered_at_third_attempt(workflows, receiver, tracing)
    assert len(_traces(tracing.named("RunActivity:send_step_complete_webhook"))) == 3


async def test_without_a_provider_no_trace_is_sent(
    newer_temporal: Server, receiver: ScriptedReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trace id without a span would be no valid `traceparent`."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    workflows = Workflows(await Client.connect(newer_temporal.address))
    async with workflows.working(StepHookPlugin(webhook=receiver.url)):
        await (await workflows.start()).result()
    (webhook,) = receiver.received
    assert "traceparent" not in webhook.headers


@pytest.mark.parametrize("tracing", ["interceptor", "plugin"], indirect=True)
@pytest.mark.parametrize("last_answer", [204, 410])
async def test_our_own_activity_is_no_step(
    temporal_server: Server,
    tracing: Tracing,
    receiver: ScriptedReceiver,
    step_receiver: ScriptedReceiver,
    last_answer: int,
) -> None:
    """A hook in the worker's process reports each activity of the application, and none that sends a webhook."""
    tracing.provider.add_span_processor(StepHookProcessor(webhook=step_receiver.url, payload="full"))
    workflows = await tracing.connect(temporal_server)
    receiver.answers(503, last_answer)
    async with workflows.working(StepHookPlugin(webhook=receiver.url, initial_backoff=0.01)):
        await (await workflows.start()).result()
    assert len(tracing.named("RunActivity:send_step_complete_webhook")) == 2
    assert tracing.provider.force_flush()
    assert _reported(step_receiver) == [("RunActivity:create_step", "success")]


@pytest.mark.parametrize("tracing", ["interceptor", "plugin"], indirect=True)
async def test_a_replay_reports_no_step(
    temporal_server: Server, tracing: Tracing, receiver: ScriptedReceiver, step_receiver: ScriptedReceiver
) -> None:
    """Without a cache each workflow task replays all before it; each step is still one webhook, as is `notify`."""
    tracing.provider.add_span_processor(StepHookProcessor(webhook=step_receiver.url, payload="full"))
    workflows = await tracing.connect(temporal_server)
    async with workflows.working(StepHookPlugin(webhook=receiver.url), max_cached_workflows=0):
        step_id = await (await workflows.start(thinking.Thinking)).result()
    assert tracing.provider.force_flush()
    activities = [("RunActivity:create_step", "success")] * thinking.ACTIVITIES
    assert _reported(step_receiver) == activities + [("think", "success")] * thinking.ACTIVITIES
    assert [webhook.step_id for webhook in receiver.received] == [step_id]


def _reported(receiver: ScriptedReceiver) -> list[tuple[object, object]]:
    """Names and outcomes of all steps that the hook has reported, sorted: deliveries may overtake each other."""
    reported = [(webhook.data["name"], webhook.data["outcome"]) for webhook in receiver.received]
    return sorted(reported, key=str)
