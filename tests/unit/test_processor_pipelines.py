"""The processor among other processors, in one provider or several, under each kind of sampling."""

import gc
import json
import threading
from collections.abc import Iterator, MutableSequence
from typing import Any

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import (
    ConcurrentMultiSpanProcessor,
    ReadableSpan,
    Span,
    SpanProcessor,
    SynchronousMultiSpanProcessor,
    TracerProvider,
)
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import Status, StatusCode
from support import NewPipeline, log_lines

from otel_step_hook import StepHookProcessor, StepHookSettings
from otel_step_hook.testing import ScriptedReceiver


@pytest.fixture
def hook(step_receiver: ScriptedReceiver) -> Iterator[StepHookProcessor]:
    """A hook without a provider, which is shut down at the end."""
    made = StepHookProcessor(StepHookSettings(webhook=step_receiver.url, payload="full", shutdown_timeout=5))
    yield made
    made.shutdown()


def _provider(*processors: SpanProcessor, name: str = "tests", sampler: Sampler = ALWAYS_ON) -> TracerProvider:
    provider = TracerProvider(sampler, Resource({"service.name": name}), shutdown_on_exit=False)
    for processor in processors:
        provider.add_span_processor(processor)
    return provider


def _end_step(provider: TracerProvider, step_id: str = "step-1") -> None:
    provider.get_tracer("tests").start_span("step", attributes={"step_id": step_id}).end()


def _names(exporter: InMemorySpanExporter) -> list[str]:
    return sorted(span.name for span in exporter.get_finished_spans())


_ALL_SPANS = ["POST", "step", "step_hook.deliver"]


# Order


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("end", ["shutdown", "force_flush"])
def test_deliveries_are_exported_in_either_order(
    end: str, hook: StepHookProcessor, step_receiver: ScriptedReceiver, *, is_first: bool
) -> None:
    """A hook's spans are exported when the provider ends, whether it was added before the exporter or after."""
    exporter = InMemorySpanExporter()
    batch = BatchSpanProcessor(exporter)
    provider = _provider(*((hook, batch) if is_first else (batch, hook)))
    _end_step(provider)
    getattr(provider, end)()
    assert len(step_receiver.received) == 1
    assert _names(exporter) == _ALL_SPANS
    provider.shutdown()


@pytest.mark.parametrize("order", ["hook hook", "exporter hook hook", "hook exporter hook", "hook hook exporter"])
def test_a_hook_that_is_added_twice_sends_once(
    order: str, hook: StepHookProcessor, step_receiver: ScriptedReceiver
) -> None:
    """Two set-ups that both add the hook cause no second webhook."""
    exporter = SimpleSpanProcessor(InMemorySpanExporter())
    provider = _provider(*(hook if name == "hook" else exporter for name in order.split()))
    _end_step(provider)
    _end_step(provider, "step-2")
    provider.shutdown()
    assert sorted(webhook.step_id for webhook in step_receiver.received) == ["step-1", "step-2"]


def test_a_hook_that_is_added_again_later_sends_once(hook: StepHookProcessor, step_receiver: ScriptedReceiver) -> None:
    """A set-up that adds the hook again after the first step causes no second webhook."""
    provider = _provider(hook)
    _end_step(provider)
    provider.add_span_processor(hook)
    _end_step(provider, "step-2")
    provider.shutdown()
    assert sorted(webhook.step_id for webhook in step_receiver.received) == ["step-1", "step-2"]


class _Wrapper(SpanProcessor):
    """Passes every call on, like the wrappers of Logfire and other libraries."""

    def __init__(self, inner: SpanProcessor) -> None:
        self._inner = inner

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self._inner.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        self._inner.on_end(span)

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


def test_a_hook_inside_another_processor_sends_once(hook: StepHookProcessor, step_receiver: ScriptedReceiver) -> None:
    """A hook in a wrapper or a composite stays where it was put."""
    composite = SynchronousMultiSpanProcessor()  # type: ignore[no-untyped-call]  # -- the SDK has no annotation there
    composite.add_span_processor(_Wrapper(hook))
    exporter = InMemorySpanExporter()
    provider = _provider(composite, SimpleSpanProcessor(exporter))
    _end_step(provider)
    provider.shutdown()
    assert len(step_receiver.received) == 1
    assert _names(exporter) == _ALL_SPANS


def test_two_hooks_do_not_change_places_for_ever(step_receiver: ScriptedReceiver) -> None:
    """Both come before the exporter; of two with the same webhook always the same one sends it."""
    hooks = [
        StepHookProcessor(StepHookSettings(webhook=step_receiver.url, payload=payload, shutdown_timeout=5))
        for payload in ("full", "step_id")
    ]
    batch = BatchSpanProcessor(InMemorySpanExporter())
    provider = _provider(batch, *hooks)
    for number in range(6):
        _end_step(provider, f"step-{number}")
    processors = provider._active_span_processor
    assert isinstance(processors, SynchronousMultiSpanProcessor)
    assert {*processors._span_processors[:2]} == {*hooks}
    provider.shutdown()
    bodies = [webhook.body for webhook in step_receiver.received]
    assert len(bodies) == 6
    assert len({b"outcome" in body for body in bodies}) == 1


def test_the_order_is_left_alone_while_its_lock_is_held(
    hook: StepHookProcessor, step_receiver: ScriptedReceiver
) -> None:
    """A step that a signal handler ends inside ``add_span_processor()`` does not wait for its own thread's lock."""
    batch = BatchSpanProcessor(InMemorySpanExporter())
    provider = _provider(batch, hook)
    processors = provider._active_span_processor
    assert isinstance(processors, SynchronousMultiSpanProcessor)
    with processors._lock:
        _end_step(provider)
    assert [*processors._span_processors] == [batch, hook]
    _end_step(provider, "step-2")
    assert [*processors._span_processors] == [hook, batch]
    provider.shutdown()
    assert len(step_receiver.received) == 2


class _Holder(SpanProcessor):
    """Holds the processors of a provider in a list, and has no lock."""

    _span_processors: MutableSequence[SpanProcessor] | tuple[SpanProcessor, ...]

    def __init__(self) -> None:
        self._span_processors = []

    def add_span_processor(self, processor: SpanProcessor) -> None:
        self._span_processors = [*self._span_processors, processor]

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        for processor in self._span_processors:
            processor.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        for processor in self._span_processors:
            processor.on_end(span)


class _LockedHolder(_Holder):
    """Holds them in a list, and has a lock."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()


class _TupleHolder(_Holder):
    """Holds them in a tuple, and has no lock."""

    def add_span_processor(self, processor: SpanProcessor) -> None:
        self._span_processors = (*self._span_processors, processor)


@pytest.mark.parametrize("holder", [_Holder, _LockedHolder, _TupleHolder])
def test_a_holder_that_is_not_the_sdks(
    holder: type[_Holder],
    hook: StepHookProcessor,
    step_receiver: ScriptedReceiver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its order is left alone; what is known of a span at its start counts, and delivery spans are exported."""
    exporter, processors = InMemorySpanExporter(), holder()
    provider = TracerProvider(active_span_processor=processors, shutdown_on_exit=False)  # type: ignore[arg-type]  # -- on purpose
    order = SimpleSpanProcessor(exporter), hook
    for processor in order:
        provider.add_span_processor(processor)
    try:
        raise KeyboardInterrupt  # noqa: TRY301 -- it is to be in flight
    except KeyboardInterrupt:
        _end_step(provider)  # it is no cancellation: it was in flight before the step began
    assert hook.force_flush()
    assert tuple(processors._span_processors) == order
    assert _names(exporter) == _ALL_SPANS
    assert [json.loads(webhook.body)["data"]["outcome"] for webhook in step_receiver.received] == ["success"]
    assert not [line for line in log_lines(caplog) if line.startswith("ERROR")]


# Several providers


def _services(exporter: InMemorySpanExporter) -> set[object]:
    return {span.resource.attributes["service.name"] for span in exporter.get_finished_spans()}


def test_one_hook_serves_two_providers(hook: StepHookProcessor, step_receiver: ScriptedReceiver) -> None:
    """Each delivery is recorded with the processors, the resource and the trace of its step."""
    exporters = InMemorySpanExporter(), InMemorySpanExporter()
    providers = [
        _provider(SimpleSpanProcessor(exporter), hook, name=name)
        for name, exporter in zip(("one", "two"), exporters, strict=True)
    ]
    for number in range(3):
        for provider in providers:
            _end_step(provider, f"step-{number}")
    for provider in providers:
        assert provider.force_flush()
    assert [_services(exporter) for exporter in exporters] == [{"one"}, {"two"}]
    assert [_names(exporter) for exporter in exporters] == [sorted(_ALL_SPANS * 3)] * 2
    for exporter in exporters:
        spans = exporter.get_finished_spans()
        steps = {span.context.span_id for span in spans if span.name == "step"}
        parents = [span.parent for span in spans if span.name == "step_hook.deliver"]
        assert {parent.span_id for parent in parents if parent is not None} == steps
    assert len(step_receiver.received) == 6
    for provider in providers:
        provider.shutdown()


def _begin_forgotten_step(provider: TracerProvider, step_id: str) -> None:
    """Start a step that ends when the garbage collector closes the generator that has started it."""

    def work() -> Iterator[None]:
        span = provider.get_tracer("tests").start_span("step", attributes={"step_id": step_id})
        try:
            yield
        finally:
            span.end()

    cycle: list[object] = [working := work()]
    cycle.append(cycle)
    next(working)


def test_the_garbage_collector_ends_a_step_of_a_second_provider(
    hook: StepHookProcessor, step_receiver: ScriptedReceiver
) -> None:
    """The delivery of such a step is recorded with its own provider."""
    exporters = InMemorySpanExporter(), InMemorySpanExporter()
    one, two = (_provider(hook, SimpleSpanProcessor(exporter)) for exporter in exporters)
    _end_step(one)
    for number in range(3):
        _begin_forgotten_step(two, f"forgotten-{number}")
        gc.collect()
    assert two.force_flush()
    assert [_names(exporter) for exporter in exporters] == [_ALL_SPANS, sorted(_ALL_SPANS * 3)]
    for provider in (one, two):
        provider.shutdown()
    assert len(step_receiver.received) == 4


def test_two_hooks_serve_a_provider_each(pipeline: NewPipeline, step_receiver: ScriptedReceiver) -> None:
    """Two providers, each with a hook of its own, do not affect each other."""
    one, two = pipeline(), pipeline()
    one.end_step("one")
    two.end_step("two")
    assert [len(hooked.spans) for hooked in (one, two)] == [3, 3]
    assert one.named("step")[0].context.trace_id == one.named("POST")[0].context.trace_id
    assert sorted(webhook.step_id for webhook in step_receiver.received) == ["one", "two"]


def test_two_endpoints_of_one_step_are_two_deliveries(step_receiver: ScriptedReceiver) -> None:
    """Each endpoint has a delivery span of its own, with its own attempts below it."""
    exporter = InMemorySpanExporter()
    with ScriptedReceiver() as other:
        settings = [StepHookSettings(webhook=url, shutdown_timeout=5) for url in (step_receiver.url, other.url)]
        provider = _provider(SimpleSpanProcessor(exporter), *map(StepHookProcessor, settings))
        _end_step(provider)
        provider.shutdown()
    deliveries = {span.context.span_id for span in exporter.get_finished_spans() if span.name == "step_hook.deliver"}
    attempts = [span for span in exporter.get_finished_spans() if span.name == "POST"]
    assert {attempt.parent and attempt.parent.span_id for attempt in attempts} == deliveries
    assert len(deliveries) == 2


def test_a_hook_may_take_the_place_of_one_that_was_shut_down(
    hook: StepHookProcessor, step_receiver: ScriptedReceiver
) -> None:
    """A hook that has been shut down does not keep a second hook from sending to the same webhook."""
    other = StepHookProcessor(StepHookSettings(webhook=step_receiver.url, shutdown_timeout=5))
    provider = _provider(hook)
    hook.shutdown()
    provider.add_span_processor(other)
    _end_step(provider)
    provider.shutdown()
    assert [webhook.step_id for webhook in step_receiver.received] == ["step-1"]


def test_a_late_step_is_dropped_once(
    hook: StepHookProcessor, step_receiver: ScriptedReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """If several hooks with the same webhook have been shut down, one of them logs the step."""
    other = StepHookProcessor(StepHookSettings(webhook=step_receiver.url, shutdown_timeout=5))
    provider = _provider(hook, other)
    provider.shutdown()
    _end_step(provider)
    for one in (hook, other):  # logs all counts
        one.shutdown()
    assert log_lines(caplog) == ["ERROR dropped a step (shutdown, endpoint default): the step ended after shutdown()"]


# Copies of spans


class _Copying(SpanProcessor):
    """Passes copies of ended spans to *hook*, like Logfire: attributes scrubbed, status changed."""

    def __init__(self, hook: StepHookProcessor) -> None:
        self._hook = hook

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self._hook.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        scrubbed = dict.fromkeys(span.attributes or (), "[Scrubbed due to 'session']")
        self._hook.on_end(
            ReadableSpan(
                "[Scrubbed]",
                context=span.context,
                attributes=scrubbed,
                resource=span.resource,
                status=Status(StatusCode.OK),
                instrumentation_scope=span.instrumentation_scope,
                start_time=span.start_time,
                end_time=span.end_time,
            )
        )


def test_a_changed_copy_of_a_span_does_not_count(hook: StepHookProcessor, step_receiver: ScriptedReceiver) -> None:
    """Step id, name and outcome are those that the original span had at its end, those set late included."""
    provider = _provider(_Copying(hook))
    span = provider.get_tracer("tests").start_span("step")
    span.set_attribute("step_id", "session-42")
    span.set_status(Status(StatusCode.ERROR))
    span.end()
    assert hook.force_flush()
    provider.shutdown()
    hook.shutdown()
    (webhook,) = step_receiver.received
    assert (webhook.step_id, webhook.data["outcome"], webhook.data["name"]) == ("session-42", "failed", "step")


class _Other(SpanProcessor):
    """Holds a provider's processors together, in another way than the SDK's composites."""

    def __init__(self, *processors: SpanProcessor) -> None:
        self._all = processors

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        for processor in self._all:
            processor.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        for processor in self._all:
            processor.on_end(span)


def test_a_provider_that_holds_its_processors_in_another_way(
    hook: StepHookProcessor, step_receiver: ScriptedReceiver
) -> None:
    """The order of its processors is left alone, and they record the deliveries."""
    exporter = InMemorySpanExporter()
    other = _Other(SimpleSpanProcessor(exporter), hook)
    provider = TracerProvider(active_span_processor=other, shutdown_on_exit=False)  # type: ignore[arg-type]  # -- on purpose
    for number in range(2):
        _end_step(provider, f"step-{number}")
    assert hook.force_flush()
    hook.shutdown()
    assert len(step_receiver.received) == 2
    assert _names(exporter).count("step_hook.deliver") == 2


# Sampling


class _RecordOnly(Sampler):
    """Records every span and samples none, so that unsampled steps reach a processor."""

    def should_sample(self, *given: Any, **named: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_ONLY, ALWAYS_ON.should_sample(*given, **named).attributes)

    def get_description(self) -> str:
        return "record only"


@pytest.mark.parametrize("sampler", [_RecordOnly(), ParentBased(_RecordOnly())])
def test_a_step_that_is_recorded_and_not_sampled_is_sent(
    sampler: Sampler, hook: StepHookProcessor, step_receiver: ScriptedReceiver
) -> None:
    """The webhook's traceparent says that the trace is not sampled, and no span is exported."""
    exporter = InMemorySpanExporter()
    provider = _provider(hook, BatchSpanProcessor(exporter), sampler=sampler)
    _end_step(provider)
    provider.shutdown()
    (webhook,) = step_receiver.received
    assert int(webhook.headers["traceparent"].rpartition("-")[2], 16) & 1 == 0
    assert _names(exporter) == []


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, TraceIdRatioBased(0)])
def test_a_step_that_is_not_recorded_cannot_be_sent(
    sampler: Sampler, hook: StepHookProcessor, step_receiver: ScriptedReceiver
) -> None:
    """The SDK passes such a span to no processor, so that no webhook is sent."""
    provider = _provider(hook, sampler=sampler)
    _end_step(provider)
    provider.shutdown()
    assert step_receiver.received == []


# Processors of other libraries


def test_processors_may_run_in_parallel(hook: StepHookProcessor, step_receiver: ScriptedReceiver) -> None:
    """With a ConcurrentMultiSpanProcessor, where no exception is in flight, steps are sent and deliveries recorded."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(active_span_processor=ConcurrentMultiSpanProcessor(2), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.add_span_processor(hook)
    for number in range(20):
        _end_step(provider, f"step-{number}")
    assert hook.force_flush()
    assert len(step_receiver.received) == 20
    assert _names(exporter) == sorted(_ALL_SPANS * 20)
    provider.shutdown()


class _Faulty(SpanProcessor):
    def on_end(self, span: ReadableSpan) -> None:
        raise RuntimeError(f"cannot take {span.name}")


def test_a_processor_that_raises_costs_no_webhook(
    hook: StepHookProcessor, step_receiver: ScriptedReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """The SDK lets the exception reach the application; the hook, which comes first, has sent the step."""
    provider = _provider(_Faulty(), hook)
    for step_id in ("step-1", "step-2"):
        with pytest.raises(RuntimeError, match="cannot take step"):
            _end_step(provider, step_id)
    provider.shutdown()
    assert len(step_receiver.received) == 2
    assert log_lines(caplog)[0].startswith("ERROR a delivery could not be recorded: RuntimeError")


def test_a_span_of_our_own_scope_is_never_a_step(
    pipeline: NewPipeline, hook: StepHookProcessor, step_receiver: ScriptedReceiver
) -> None:
    """Delivery spans are not reported, not even by a rule that takes every span for a step."""
    provider = _provider(hook)
    provider.get_tracer("otel_step_hook").start_span("step", attributes={"step_id": "step-1"}).end()
    provider.shutdown()
    assert step_receiver.received == []
    hooked = pipeline(is_step=lambda _: True)
    hooked.tracer.start_span("step").end()
    assert hooked.provider.force_flush()
    assert len(hooked.spans) == 3
    assert len(step_receiver.received) == 1


def test_a_hook_may_be_the_only_processor(hook: StepHookProcessor, step_receiver: ScriptedReceiver) -> None:
    """A provider may have the hook where the SDK keeps the composite of all processors."""
    provider = TracerProvider(active_span_processor=hook, shutdown_on_exit=False)  # type: ignore[arg-type]  # -- it works
    _end_step(provider)
    provider.shutdown()
    assert [webhook.step_id for webhook in step_receiver.received] == ["step-1"]


def test_a_span_that_does_not_show_its_processors_uses_the_known_ones(
    hook: StepHookProcessor, step_receiver: ScriptedReceiver
) -> None:
    """The step of such a span is sent, and its delivery is recorded by the processors of earlier spans."""
    exporter = InMemorySpanExporter()
    provider = _provider(hook, SimpleSpanProcessor(exporter))
    _end_step(provider)
    span = provider.get_tracer("tests").start_span("step")
    vars(span)["_span_processor"] = None
    hook.on_start(span)  # type: ignore[arg-type]  # -- a span of the SDK's
    span.set_attribute("step_id", "step-2")
    hook.on_end(span)  # type: ignore[arg-type]  # -- as above
    assert hook.force_flush()
    provider.shutdown()
    assert sorted(webhook.step_id for webhook in step_receiver.received) == ["step-1", "step-2"]
    assert _names(exporter).count("step_hook.deliver") == 2
