"""What the benchmarks share: spans for a hook, and the time that calls and deliveries take."""

import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from otel_step_hook import StepHookProcessor, StepHookSettings

IN_FLIGHT = 32
ROUNDS = 7


class _Discarding(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: ARG002 -- the SDK's signature
        return SpanExportResult.SUCCESS


class Passing(SpanProcessor):
    """Passes `on_start` to *hook*, and collects the ended spans without passing `on_end`."""

    def __init__(self, hook: SpanProcessor | None) -> None:
        self._hook = hook
        self.spans: list[ReadableSpan] = []
        self._begun: list[Span] = []  # keeps them from being garbage collected

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Pass *span* to the hook."""
        self._begun.append(span)
        if self._hook is not None:
            self._hook.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        """Collect *span*."""
        self.spans.append(span)


class _Counting(SpanProcessor):
    """Sets *is_done* after *count* deliveries."""

    def __init__(self, count: int) -> None:
        self._left = count
        self.is_done = threading.Event()

    def on_end(self, span: ReadableSpan) -> None:
        self._left -= span.name == "step_hook.deliver"
        if self._left <= 0:
            self.is_done.set()


def make_spans(passing: Passing, count: int, attributes: int, **own: str) -> list[ReadableSpan]:
    """*count* spans for the `on_end` of a hook, each with a number of *attributes* besides its *own*."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(passing)
    tracer = provider.get_tracer("bench")
    for _ in range(count):
        tracer.start_span("span", attributes={**{f"key.{n}": "value" for n in range(attributes)}, **own}).end()
    return passing.spans


def exporting() -> BatchSpanProcessor:
    """Return a processor that keeps spans for an exporter, and does not export them during the benchmark."""
    return BatchSpanProcessor(
        _Discarding(), max_queue_size=1_000_000, max_export_batch_size=1_000_000, schedule_delay_millis=3_600_000
    )


def per_call(on_end: Callable[[ReadableSpan], None], spans: list[ReadableSpan]) -> float:
    """Microseconds per call of *on_end*."""
    started = time.perf_counter_ns()
    for span in spans:
        on_end(span)
    return (time.perf_counter_ns() - started) / len(spans) / 1000


def median(rows: Sequence[tuple[float, float]], column: int) -> float:
    """Return the median of one *column* of *rows*."""
    return statistics.median(row[column] for row in rows)


def make_provider(url: str, count: int, **more: object) -> TracerProvider:
    """Return a provider with a hook that has room for *count* steps."""
    provider = TracerProvider(shutdown_on_exit=False)
    settings = {"concurrency": IN_FLIGHT, "max_queue_size": count, "give_up_after": 600, "shutdown_timeout": 60}
    provider.add_span_processor(StepHookProcessor(StepHookSettings(webhook=url, **(settings | more))))
    return provider


def deliver(url: str, count: int, **settings: object) -> None:
    """Send *count* steps through all of it: span, hook, delivery spans, batch processor. More *settings* by name."""
    provider = make_provider(url, count, **settings)
    provider.add_span_processor(BatchSpanProcessor(_Discarding(), max_queue_size=1_000_000))
    provider.add_span_processor(counting := _Counting(count))
    tracer = provider.get_tracer("bench")
    for number in range(count):
        tracer.start_span("step", attributes={"step_id": f"step-{number}"}).end()
    # Not force_flush: with an outbox it returns as soon as everything is stored.
    if not counting.is_done.wait(120):
        sys.exit("not everything was delivered in time")
    provider.shutdown()


def timed(run: Callable[[], object], count: int) -> tuple[float, float]:
    """Deliveries per second, and CPU milliseconds of this process per delivery."""
    started, cpu = time.perf_counter(), time.process_time()
    run()
    return count / (time.perf_counter() - started), (time.process_time() - cpu) / count * 1000
