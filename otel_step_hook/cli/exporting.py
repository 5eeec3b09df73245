"""The exporters that OpenTelemetry's variables name, for spans and metrics of what other processes have left."""

import os
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any, Literal

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import SpanProcessor, SynchronousMultiSpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from otel_step_hook.delivery.metrics import use_provider
from otel_step_hook.errors import ConfigurationError

_Signal = Literal["TRACES", "METRICS"]  # as in the names of the variables


class Exporting:
    """Exports as OTEL_TRACES_EXPORTER and OTEL_METRICS_EXPORTER say; by default OTLP, where a collector is named.

    The exporters, and what calls them, read their own variables. *processor* is None when no span is to be exported.
    Raises `ConfigurationError` for an exporter that is not installed. Once in a process, which has one meter provider.
    """

    def __init__(self) -> None:
        spans, metrics = _exporters("TRACES"), _exporters("METRICS")  # before threads are started for them
        self.processor: SpanProcessor | None = None
        self._meters: MeterProvider | None = None
        if spans:
            self.processor = processor = SynchronousMultiSpanProcessor()  # type: ignore[no-untyped-call]  # -- the SDK's
            for make in spans:
                processor.add_span_processor(BatchSpanProcessor(make()))
        # What is read from outside, as by Prometheus, shows nothing of a process that ends.
        pushing = [make for make in metrics if issubclass(make, MetricExporter)]
        if pushing:
            self._meters = MeterProvider([PeriodicExportingMetricReader(make()) for make in pushing])
            use_provider(self._meters)

    def shutdown(self) -> None:
        """Export what is left. Called once."""
        if self.processor is not None:
            self.processor.shutdown()
        if self._meters is not None:
            self._meters.shutdown()


def _exporters(signal: _Signal) -> list[type[Any]]:
    """Return the classes of the exporters for *signal*."""
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return [] if is_disabled else [_loaded(signal, name) for name in _names(signal)]


def _names(signal: _Signal) -> Iterator[str]:
    """Yield the names of the exporters for *signal*, as entry points have them."""
    default = "otlp" if _otlp(signal, "ENDPOINT") else "none"
    for name in (os.environ.get(f"OTEL_{signal}_EXPORTER", "").strip() or default).split(","):
        if name.strip() == "otlp":
            yield "otlp_proto_grpc" if _otlp(signal, "PROTOCOL") == "grpc" else "otlp_proto_http"
        elif name.strip() not in {"", "none"}:
            yield name.strip()


def _otlp(signal: _Signal, name: str) -> str:
    """Return the value of a variable of the OTLP exporters: that for *signal*, or that for all; empty without one."""
    variables = (f"OTEL_EXPORTER_OTLP_{signal}_{name}", f"OTEL_EXPORTER_OTLP_{name}")
    return next((value for one in variables if (value := os.environ.get(one, "").strip())), "")


def _loaded(signal: _Signal, name: str) -> type[Any]:
    for found in entry_points(group=f"opentelemetry_{signal.lower()}_exporter", name=name):
        exporter: type[Any] = found.load()
        return exporter
    extra = "; for otlp: pip install 'otel-step-hook[otlp]'" if name == "otlp_proto_http" else ""
    raise ConfigurationError(
        f"OTEL_{signal}_EXPORTER: the exporter {name} is not installed{extra}; expected one that is, or none"
    )
