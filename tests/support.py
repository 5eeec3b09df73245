"""What several test files share: a provider with a hook and an exporter in memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer

from otel_step_hook import StepHookProcessor, StepHookSettings


@dataclass
class Pipeline:
    """A provider with a hook and an exporter that keeps everything in memory."""

    provider: TracerProvider
    hook: StepHookProcessor
    exporter: InMemorySpanExporter

    @property
    def tracer(self) -> Tracer:
        return self.provider.get_tracer("tests")

    def end_step(self, step_id: str = "step-1", **attributes: str) -> None:
        """End one successful step, and wait until it is delivered or discarded."""
        self.tracer.start_span("step", attributes={"step_id": step_id, **attributes}).end()
        assert self.provider.force_flush()

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        """The spans with this name, in the order in which they ended."""
        return [span for span in self.spans if span.name == name]


CliResult = tuple[int | str | None, str, str]  # exit status, stdout and stderr
Cli = Callable[..., CliResult]  # the type of the fixture `cli`
NewPipeline = Callable[..., Pipeline]  # the type of the fixture `pipeline`


@contextmanager
def pipeline(
    url: str | None, *, is_step: Callable[[ReadableSpan], bool] | None = None, **settings: object
) -> Iterator[Pipeline]:
    """A pipeline whose hook sends to *url* with short backoffs; it is shut down at the end."""
    short = {"initial_backoff": 0.01, "max_backoff": 0.05, "shutdown_timeout": 5.0, "timeout": 5.0}
    hook = StepHookProcessor(StepHookSettings(webhook=url, **(short | settings)), is_step=is_step)
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "tests"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.add_span_processor(hook)
    try:
        yield Pipeline(provider, hook, exporter)
    finally:
        provider.shutdown()


def log_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Level and message of each line that the library has logged; a shutdown logs all counts of repeated lines."""
    return [f"{one.levelname} {one.getMessage()}" for one in caplog.records if one.name == "otel_step_hook"]
