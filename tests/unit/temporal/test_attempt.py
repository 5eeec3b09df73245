"""One attempt of the activity, in the environment that Temporal's SDK has for tests of activities."""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, TraceFlags, format_trace_id
from temporalio.api.failure.v1 import Failure
from temporalio.converter import DataConverter
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.testing import ActivityEnvironment

from otel_step_hook import Outcome, StepHookSettings, _sdk
from otel_step_hook.delivery.model import Delivery, Pipeline
from otel_step_hook.delivery.request import webhook_id
from otel_step_hook.settings import endpoints_of, retry_policy_of
from otel_step_hook.steps.event import StepEvent
from otel_step_hook.temporal.activity import WebhookActivities
from otel_step_hook.temporal.arguments import WebhookArguments, WebhookResult, arguments_of
from otel_step_hook.testing import Answer, ScriptedReceiver

pytestmark = pytest.mark.anyio
_CONTEXT = SpanContext(0x11, 0x22, is_remote=False, trace_flags=TraceFlags(1))
_LIMITS = {"schedule_to_close_timeout": timedelta(seconds=30), "start_to_close_timeout": timedelta(seconds=15)}
_ACCEPTED = datetime(2000, 1, 1, tzinfo=UTC)  # by the clock of the server, which may be another than here
_TIMES = {"scheduled_time": _ACCEPTED, "started_time": _ACCEPTED}
Attempt = Callable[..., Any]


def _webhook(endpoint: str = "default", context: SpanContext = _CONTEXT, body: bytes = b"{}") -> WebhookArguments:
    event = StepEvent("step-1", Outcome.SUCCESS, "step", context, 1, 2)
    delivery = Delivery(webhook_id(event), event, Pipeline(None, TracerProvider().resource), 0.0, body)
    return arguments_of(delivery, endpoint, start_to_close=15, schedule_to_close=30)


@pytest.fixture
def spans() -> InMemorySpanExporter:
    """The spans that the activity's processor got."""
    return InMemorySpanExporter()


@pytest.fixture
async def attempt(step_receiver: ScriptedReceiver, spans: InMemorySpanExporter) -> AsyncIterator[Attempt]:
    """Makes one attempt of a webhook, with fields of the activity's info and with settings; all by one worker."""
    made: dict[tuple[object, ...], WebhookActivities] = {}
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    async with contextlib.AsyncExitStack() as workers:

        async def run(
            given: WebhookArguments, info: dict[str, object] | None = None, **settings: object
        ) -> WebhookResult:
            key = tuple(sorted(settings.items()))
            if key not in made:
                chosen = StepHookSettings(**{"webhook": step_receiver.url, **settings})
                pipeline = Pipeline(*_sdk.pipeline_of(provider))
                made[key] = WebhookActivities(endpoints_of(chosen), retry_policy_of(chosen), lambda: pipeline)
                await workers.enter_async_context(made[key].run())
            environment = ActivityEnvironment()
            fields: dict[str, Any] = {**_TIMES, **_LIMITS, **(info or {})}
            environment.info = replace(environment.info, **fields)
            result: WebhookResult = await environment.run(made[key].send_step_complete_webhook, given)
            return result

        yield run
    provider.shutdown()


def _named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == name]


async def _error(work: Any) -> ApplicationError:
    with pytest.raises(ApplicationError) as caught:
        await work
    return caught.value


async def test_delivered(attempt: Attempt, step_receiver: ScriptedReceiver, spans: InMemorySpanExporter) -> None:
    """A delivered webhook is the activity's result, and has its attempt below its delivery, in the step's trace."""
    webhook = _webhook()
    assert await attempt(webhook, {"attempt": 2}) == WebhookResult("delivered", 204, 2)
    (received,) = step_receiver.received
    assert (received.headers["webhook-id"], received.body) == (webhook.webhook_id, b"{}")
    (delivery,), (post,) = _named(spans, "step_hook.deliver"), _named(spans, "POST")
    assert delivery.parent is not None
    assert (delivery.parent.trace_id, delivery.parent.span_id) == (0x11, 0x22)
    assert post.parent == delivery.context
    assert dict(delivery.attributes or {})["step_hook.attempts"] == 2
    assert received.headers["traceparent"].split("-")[1] == format_trace_id(0x11)


async def test_retried(attempt: Attempt, step_receiver: ScriptedReceiver, spans: InMemorySpanExporter) -> None:
    """After an everyday failure Temporal learns the delay of our policy; the delivery has not ended, nor its span."""
    step_receiver.answers(Answer(503, {"retry-after": "7"}), 503)
    error = await _error(attempt(_webhook()))
    assert error.message == "the receiver of endpoint default answered 503; next attempt in 7 s"
    assert (error.type, error.non_retryable) == ("503", False)
    assert error.category is ApplicationErrorCategory.BENIGN
    assert error.next_retry_delay == timedelta(seconds=7)
    failure = Failure()
    DataConverter.default.failure_converter.to_failure(error, DataConverter.default.payload_converter, failure)
    assert (failure.message, failure.stack_trace) == (error.message, "")
    again = await _error(attempt(_webhook(), {"attempt": 2}))
    assert timedelta(seconds=1) <= again.next_retry_delay <= timedelta(seconds=2)  # type: ignore[operator]  # -- it has one
    assert not _named(spans, "step_hook.deliver")
    first, second = _named(spans, "POST")
    assert first.parent == second.parent


@pytest.mark.parametrize(
    ("answer", "error_type"),
    [
        (410, "410"),
        (Answer(500, {"webhook-delivery": "abort-message"}), "500"),
        (Answer(503, {"retry-after": "40"}), "503"),
    ],
    ids=["gone", "abort-message", "beyond schedule-to-close"],
)
async def test_discarded(
    attempt: Attempt,
    step_receiver: ScriptedReceiver,
    spans: InMemorySpanExporter,
    answer: int | Answer,
    error_type: str,
) -> None:
    """A refusal for good, and a delay beyond schedule-to-close, end the activity; the delivery's span says why."""
    step_receiver.answers(answer)
    error = await _error(attempt(_webhook()))
    assert (error.type, error.non_retryable) == (error_type, True)
    (delivery,) = _named(spans, "step_hook.deliver")
    attributes = dict(delivery.attributes or {})
    assert (attributes["step_hook.result"], attributes["error.type"]) == ("discarded", error_type)


async def test_no_connection(attempt: Attempt, closed_port: int) -> None:
    """A receiver that cannot be reached is an error in the worker's log and metrics, and is tried again."""
    error = await _error(attempt(_webhook(), webhook=f"http://127.0.0.1:{closed_port}/"))
    assert error.message.startswith(
        "the receiver of endpoint default refuses connections: nothing listens there; next attempt in "
    )
    assert error.category is ApplicationErrorCategory.UNSPECIFIED


async def test_the_request_ends_first(attempt: Attempt, step_receiver: ScriptedReceiver) -> None:
    """The request ends a second before Temporal ends the attempt, so that Temporal gets its result and its delay."""
    step_receiver.answers(Answer(204, delay=30))
    error = await _error(attempt(_webhook(), {"start_to_close_timeout": timedelta(seconds=1.5)}))
    assert error.message.startswith("the receiver of endpoint default did not answer within 0.75 s; next attempt in ")
    assert (error.type, error.category) == ("timeout", ApplicationErrorCategory.BENIGN)


async def test_what_has_passed_counts(attempt: Attempt, step_receiver: ScriptedReceiver) -> None:
    """The time since Temporal's acceptance is that of its own clock: 20 of 30 seconds have passed."""
    step_receiver.answers(503)
    started = {"started_time": _ACCEPTED + timedelta(seconds=20)}
    error = await _error(attempt(_webhook(), started, initial_backoff=20.0))
    assert (error.type, error.non_retryable) == ("503", True)


async def test_without_limits(attempt: Attempt, step_receiver: ScriptedReceiver) -> None:
    """An activity that somebody starts without schedule-to-close timeout is tried again for ever."""
    step_receiver.answers(503)
    error = await _error(attempt(_webhook(), {"schedule_to_close_timeout": None, "attempt": 50}, max_backoff=60))
    assert not error.non_retryable


async def test_a_disabled_endpoint(
    attempt: Attempt, step_receiver: ScriptedReceiver, spans: InMemorySpanExporter
) -> None:
    """After `webhook-delivery: disable` this worker sends nothing to the endpoint any more."""
    step_receiver.answers(Answer(503, {"webhook-delivery": "disable"}))
    first = await _error(attempt(_webhook()))
    assert (first.type, first.non_retryable) == ("503", True)
    second = await _error(attempt(_webhook()))
    assert (second.type, second.non_retryable) == ("endpoint_disabled", True)
    assert "webhook-delivery: disable" in second.message
    assert len(step_receiver.received) == 1
    reasons = [dict(span.attributes or {})["error.type"] for span in _named(spans, "step_hook.deliver")]
    assert reasons == ["503", "endpoint_disabled"]


async def test_an_unknown_endpoint(
    attempt: Attempt, step_receiver: ScriptedReceiver, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that does not know the endpoint fails the activity for good, with a sentence, records and logs it."""
    error = await _error(attempt(_webhook("billing")))
    assert (error.type, error.non_retryable) == ("unknown_endpoint", True)
    assert error.message == (
        "this worker knows no endpoint 'billing'; expected one of: default; give worker and application the same "
        "STEP_COMPLETE_WEBHOOK or STEP_COMPLETE_ENDPOINTS"
    )
    (delivery,) = _named(spans, "step_hook.deliver")
    assert dict(delivery.attributes or {})["error.type"] == "unknown_endpoint"
    assert any(line.startswith("discarded step step-1: unknown_endpoint (success, ") for line in caplog.messages)
    assert not step_receiver.received


async def test_what_no_setting_wants_is_skipped(
    attempt: Attempt, step_receiver: ScriptedReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """A workflow's step is, without a webhook or with an unwanted outcome; that of an application is not."""
    caplog.set_level(logging.DEBUG, "otel_step_hook")
    failed_alone = frozenset({"failed"})
    assert await attempt(_webhook(body=b""), outcomes=failed_alone) == WebhookResult("skipped")
    assert caplog.messages == []
    assert await attempt(_webhook(body=b""), webhook=None) == WebhookResult("skipped")
    assert caplog.messages == ["STEP_COMPLETE_WEBHOOK is not set: no webhook is sent"]
    error = await _error(attempt(_webhook(), webhook=None))
    assert error.message.startswith("this worker knows no endpoint 'default'; expected one of: none, since ")
    assert not step_receiver.received
    assert (await attempt(_webhook(), outcomes=failed_alone)).result == "delivered"  # the application has looked at it


async def test_the_worker_makes_the_body(attempt: Attempt, step_receiver: ScriptedReceiver) -> None:
    """Of a step that a workflow reports, the worker makes the body as its settings say."""
    assert (await attempt(_webhook(body=b""))).result == "delivered"
    assert step_receiver.received[0].body == b'{"step_id": "step-1"}'


async def test_no_span(attempt: Attempt, step_receiver: ScriptedReceiver, spans: InMemorySpanExporter) -> None:
    """All attempts of a step without a span are in the trace that the workflow has named."""
    step_receiver.answers(503)
    webhook = _webhook(context=SpanContext(0x33, 0, is_remote=True))
    await _error(attempt(webhook))
    await attempt(webhook, {"attempt": 2})
    assert {span.context.trace_id for span in spans.get_finished_spans()} == {0x33}
    (delivery,) = _named(spans, "step_hook.deliver")
    assert delivery.parent is None
    assert len(_named(spans, "POST")) == 2


async def test_several_workers_on_one_loop(step_receiver: ScriptedReceiver) -> None:
    """The connections of an event loop are closed when the last of its workers has ended, and not sooner."""
    settings = StepHookSettings(webhook=step_receiver.url)
    pipeline = Pipeline(None, Resource({}))
    activities = WebhookActivities(endpoints_of(settings), retry_policy_of(settings), lambda: pipeline)
    environment = ActivityEnvironment()
    fields: dict[str, Any] = {**_TIMES, **_LIMITS}
    environment.info = replace(environment.info, **fields)
    async with activities.run():
        async with activities.run():
            await environment.run(activities.send_step_complete_webhook, _webhook())
        await environment.run(activities.send_step_complete_webhook, _webhook())
    first, second = step_receiver.received
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
