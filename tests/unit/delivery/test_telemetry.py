"""The spans of a delivery: names, parents and attributes, the trace headers, and where the spans are exported."""

import hashlib
import time

import pytest
from delivering import DELIVERED, ONE_ATTEMPT, NewRig, Script, event, failed
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, TraceFlags, TraceState
from support import pipeline

from otel_step_hook import __version__
from otel_step_hook.delivery.log import RateLimitedLog
from otel_step_hook.delivery.model import Delivery, Endpoint, Pipeline
from otel_step_hook.delivery.request import webhook_id
from otel_step_hook.delivery.retry import AttemptResult, Finish
from otel_step_hook.delivery.telemetry import Telemetry, span_id_of
from otel_step_hook.steps.event import Outcome
from otel_step_hook.testing import ScriptedReceiver

URL = "https://receiver.test:8443/hook?token=abc"
END = Finish("delivered")


def telemetry(url: str = URL) -> Telemetry:
    """Telemetry for one endpoint."""
    return Telemetry(Endpoint("default", url), RateLimitedLog())


def delivery_to(processor: SpanProcessor | None, **more: object) -> Delivery:
    """A delivery whose spans go to *processor*."""
    step = event(**more)  # type: ignore[arg-type]  # -- see `event`
    return Delivery(webhook_id(step), step, Pipeline(processor, Resource({"service.name": "tests"})), 0.0)


def attributes_of(span: ReadableSpan) -> dict[str, object]:
    """The attributes of *span* as a dictionary."""
    return dict(span.attributes or {})


def test_a_delivery_and_its_attempts_are_recorded_below_the_step(rigged: NewRig) -> None:
    """Two attempts are two spans below the delivery span, which is a child of the step span."""
    script = Script(failed(503, peer=("192.0.2.1", 8443)), AttemptResult(status_code=204, peer=("192.0.2.2", 8443)))
    rig = rigged(script, webhook=URL)
    step = event("step-7", Outcome.FAILED)
    rig.deliver(step)
    first, second, delivery = rig.exporter.get_finished_spans()
    assert (delivery.name, delivery.kind) == ("step_hook.deliver", SpanKind.INTERNAL)
    assert delivery.parent == step.context
    assert attributes_of(delivery) == {
        "step_hook.step_id": "step-7",
        "step_hook.outcome": "failed",
        "step_hook.webhook_id": webhook_id(step),
        "step_hook.attempts": 2,
        "step_hook.result": "delivered",
        "step_hook.endpoint": "default",
        "server.address": "receiver.test",
    }
    assert delivery.status.status_code is StatusCode.UNSET
    for attempt in (first, second):
        assert (attempt.name, attempt.kind, attempt.parent) == ("POST", SpanKind.CLIENT, delivery.context)
    common = {
        "http.request.method": "POST",
        "server.address": "receiver.test",
        "server.port": 8443,
        "url.full": "https://receiver.test:8443/REDACTED",
        "step_hook.endpoint": "default",
        "network.peer.port": 8443,
    }
    assert attributes_of(first) == common | {
        "network.peer.address": "192.0.2.1",
        "http.response.status_code": 503,
        "error.type": "503",
    }
    assert attributes_of(second) == common | {
        "network.peer.address": "192.0.2.2",
        "http.response.status_code": 204,
        "http.request.resend_count": 1,
    }
    assert [attempt.status.status_code for attempt in (first, second)] == [StatusCode.ERROR, StatusCode.UNSET]
    assert all(span.status.description is None for span in (first, second, delivery))
    for span in (first, second, delivery):
        assert span.context.trace_id == step.context.trace_id
        assert span.resource == rig.pipeline.resource
        scope = span.instrumentation_scope
        assert scope is not None
        assert (scope.name, scope.version) == ("otel_step_hook", __version__)
    times = [delivery.start_time, first.start_time, first.end_time, second.start_time, second.end_time]
    assert times == sorted(times, key=lambda moment: moment or 0)
    assert delivery.start_time == step.end_time
    assert (delivery.end_time or 0) >= (second.end_time or 0)


def test_a_discarded_delivery_is_an_error_with_a_reason(rigged: NewRig) -> None:
    """The spans of a discarded delivery and of its last attempt are errors with the same error type."""
    rig = rigged(Script(AttemptResult(error_type="ConnectionRefusedError")), **ONE_ATTEMPT)
    rig.deliver()
    attempt, delivery = rig.exporter.get_finished_spans()
    for span in (attempt, delivery):
        assert span.status.status_code is StatusCode.ERROR
        assert attributes_of(span)["error.type"] == "ConnectionRefusedError"
    assert attributes_of(delivery)["step_hook.result"] == "discarded"
    assert "http.response.status_code" not in attributes_of(attempt)
    assert "network.peer.address" not in attributes_of(attempt)


def test_the_id_of_a_delivery_span_derives_from_webhook_id_and_endpoint() -> None:
    """Any process derives the same span id, so that attempts after a restart have the same parent."""
    exporter = InMemorySpanExporter()
    processor = SimpleSpanProcessor(exporter)
    first = delivery_to(processor)
    again = Delivery(first.id, first.event, first.pipeline, first.submitted_at)
    for delivery in (first, again):  # as two processes would
        each = telemetry()
        each.end_attempt(each.start_attempt(delivery), DELIVERED)
    each.end_delivery(again, END)
    *attempts, span = exporter.get_finished_spans()
    assert {attempt.parent and attempt.parent.span_id for attempt in attempts} == {span.context.span_id}
    named = f"{first.id}\0default\0{URL}".encode()
    endpoint = Endpoint("default", URL)
    assert span.context.span_id == span_id_of(first.id, endpoint) == int(hashlib.sha256(named).hexdigest()[:16], 16)
    for other in (Endpoint("other", URL), Endpoint("default", f"{URL}/other")):
        assert span_id_of(first.id, other) != span.context.span_id
    assert len({span.context.span_id for span in exporter.get_finished_spans()}) == 3


def test_an_attempt_that_was_cancelled_is_no_error() -> None:
    """A cancellation leaves the status unset, as the semantic conventions say."""
    exporter = InMemorySpanExporter()
    delivery = delivery_to(SimpleSpanProcessor(exporter))
    each = telemetry()
    each.end_attempt(each.start_attempt(delivery), None)
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.UNSET
    assert "error.type" not in attributes_of(span)


def test_a_clock_that_was_set_back_makes_no_span_that_ends_before_it_starts() -> None:
    """The delivery span of a step that ends in the future has no duration."""
    exporter = InMemorySpanExporter()
    later = time.time_ns() + 3_600_000_000_000
    telemetry().end_delivery(delivery_to(SimpleSpanProcessor(exporter), end_time=later), END)
    (span,) = exporter.get_finished_spans()
    assert (span.start_time, span.end_time) == (later, later)


def test_a_step_id_that_no_exporter_can_encode_is_recorded_as_it_is_sent() -> None:
    """A lone surrogate, which would make an exporter lose the whole batch, is written as in the webhook."""
    exporter = InMemorySpanExporter()
    telemetry().end_delivery(delivery_to(SimpleSpanProcessor(exporter), step_id="a\ud800b"), END)
    (span,) = exporter.get_finished_spans()
    assert attributes_of(span)["step_hook.step_id"] == "a\\ud800b"


@pytest.mark.parametrize(
    ("url", "address", "port"),
    [("http://a.test/h", "a.test", 80), ("https://a.test/h", "a.test", 443), ("http://[::1]:81/h", "::1", 81)],
)
def test_the_server_is_named(url: str, address: str, port: int) -> None:
    """server.address and server.port are those of the URL, or the default port of its scheme."""
    exporter = InMemorySpanExporter()
    each = telemetry(url)
    delivery = delivery_to(SimpleSpanProcessor(exporter))
    each.end_attempt(each.start_attempt(delivery), DELIVERED)
    (span,) = exporter.get_finished_spans()
    assert (attributes_of(span)["server.address"], attributes_of(span)["server.port"]) == (address, port)


# What the receiver gets


def test_the_receiver_joins_the_trace_at_the_attempt(step_receiver: ScriptedReceiver) -> None:
    """The header traceparent has the attempt's span id, tracestate is the trace's, and baggage is not sent."""
    step_receiver.answers(503)
    remote = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("vendor", "value")]))
    parent = trace.set_span_in_context(trace.NonRecordingSpan(remote))
    with pipeline(step_receiver.url) as hooked:
        token = context.attach(baggage.set_baggage("secret", "sekret", parent))
        try:
            hooked.end_step()
        finally:
            context.detach(token)
        attempts = hooked.named("POST")
    for webhook, attempt in zip(step_receiver.received, attempts, strict=True):
        assert webhook.headers["traceparent"] == f"00-{1:032x}-{attempt.context.span_id:016x}-01"
        assert webhook.headers["tracestate"] == "vendor=value"
        assert "baggage" not in webhook.headers
        assert "sekret" not in str(webhook.headers)


def test_a_step_that_is_not_sampled_is_sent_and_not_recorded() -> None:
    """Without a sampled step there are no delivery spans, and traceparent says that it is not sampled."""
    exporter = InMemorySpanExporter()
    unsampled = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(0))
    delivery = delivery_to(SimpleSpanProcessor(exporter), context=unsampled)
    each = telemetry()
    span = each.start_attempt(delivery)
    headers = dict(each.trace_headers(span))
    each.end_attempt(span, DELIVERED)
    each.end_delivery(delivery, END)
    assert headers["traceparent"].startswith(f"00-{1:032x}-")
    assert headers["traceparent"].endswith("-00")
    assert exporter.get_finished_spans() == ()


# Where the spans go


def test_the_spans_of_each_step_go_to_its_own_provider() -> None:
    """Delivery spans are recorded in the pipeline of their step, even if a process has many."""
    each = telemetry()
    exporters = [InMemorySpanExporter() for _ in range(40)]  # more than telemetry remembers
    processors = [SimpleSpanProcessor(exporter) for exporter in exporters]
    for _ in range(2):
        for processor in processors:
            each.end_delivery(delivery_to(processor), END)
    assert [len(exporter.get_finished_spans()) for exporter in exporters] == [2] * 40


def test_a_pipeline_that_is_not_known_falls_back_on_the_global_provider() -> None:
    """Without the step's processors spans go to the global provider; where none is set, no trace is made up."""
    delivery = delivery_to(None)
    each = telemetry()
    span = each.start_attempt(delivery)
    trace_id = f"00-{delivery.event.context.trace_id:032x}-"
    # Older versions of the API have no trace at all without a provider.
    assert dict(each.trace_headers(span)).get("traceparent", trace_id).startswith(trace_id)
    each.end_attempt(span, DELIVERED)
    each.end_delivery(delivery, END)
    assert each.trace_headers(each.start_attempt(delivery_to(None, context=SpanContext(1, 0, is_remote=True)))) == []


class _Raising(SpanProcessor):
    """Raises an error in on_start, in on_end, or in both."""

    def __init__(self, error: type[BaseException], methods: str) -> None:
        self._error = error
        self._methods = methods

    def on_start(self, span: Span, parent_context: context.Context | None = None) -> None:  # noqa: ARG002 -- the SDK's
        if "start" in self._methods:
            raise self._error("sekret")

    def on_end(self, span: ReadableSpan) -> None:  # noqa: ARG002 -- the SDK's signature
        if "end" in self._methods:
            raise self._error("sekret")


class _RaisingExporter(SpanExporter):
    def export(self, spans: object) -> SpanExportResult:  # noqa: ARG002 -- the SDK's signature
        raise RuntimeError("sekret")


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
@pytest.mark.parametrize("methods", ["start", "end", "start and end"])
def test_a_processor_that_raises_harms_no_delivery(
    rigged: NewRig, error: type[BaseException], methods: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The webhook is sent, and the log says that recording has failed, without the error's message."""
    script = Script(failed(), DELIVERED)
    rig = rigged(script)
    rig.pipeline = Pipeline(_Raising(error, methods), rig.pipeline.resource)
    rig.deliver()
    assert len(script.posts) == 2
    assert f"a delivery could not be recorded: {error.__name__}" in caplog.text
    assert "sekret" not in caplog.text


def test_an_exporter_that_raises_harms_no_delivery(step_receiver: ScriptedReceiver) -> None:
    """An exporter that raises, which the SDK logs itself, costs no webhook."""
    with pipeline(step_receiver.url) as hooked:
        hooked.provider.add_span_processor(SimpleSpanProcessor(_RaisingExporter()))
        hooked.end_step()
    assert len(step_receiver.received) == 1


def test_the_current_span_and_baggage_do_not_affect_delivery_spans(rigged: NewRig) -> None:
    """A span and baggage that are current at submission are no parent of the delivery spans."""
    seen: list[object] = []

    class Watching(SpanProcessor):
        def on_start(self, span: Span, parent_context: context.Context | None = None) -> None:
            seen.append((span.context.trace_id, dict(baggage.get_all(parent_context))))

    rig = rigged(Script())
    rig.pipeline = Pipeline(Watching(), rig.pipeline.resource)
    token = context.attach(baggage.set_baggage("secret", "sekret"))
    try:
        with trace.use_span(trace.NonRecordingSpan(SpanContext(5, 6, is_remote=False))):
            step = event()
            rig.deliver(step)
    finally:
        context.detach(token)
    assert seen == [(step.context.trace_id, {})] * 2
