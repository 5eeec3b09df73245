"""Ends one step and exits; its arguments tell where the hook stands. Prints the names of the exported spans."""

import sys

from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

from otel_step_hook import StepHookProcessor

order, kind = sys.argv[1:]
hooks: list[SpanProcessor] = [StepHookProcessor()] if order == "made first" else []
provider = TracerProvider()
hooks = hooks or [StepHookProcessor()]
exporter = ConsoleSpanExporter(formatter=lambda span: f"{span.name}\n")
exporters: list[SpanProcessor] = [BatchSpanProcessor(exporter) if kind == "batch" else SimpleSpanProcessor(exporter)]
for processor in hooks + exporters if order == "added first" else exporters + hooks:
    provider.add_span_processor(processor)
provider.get_tracer("tests").start_span("step", attributes={"step_id": "step-0"}).end()
