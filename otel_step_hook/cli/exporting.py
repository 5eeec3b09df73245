"""The exporters that OpenTelemetry's variables name, for the spans of deliveries that other processes have left."""

import os
from collections.abc import Iterator
from importlib.metadata import entry_points

from opentelemetry.sdk.trace import SpanProcessor, SynchronousMultiSpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from otel_step_hook.errors import ConfigurationError

_ADDRESSES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def new_span_processor() -> SpanProcessor | None:
    """Return a processor that exports as OTEL_TRACES_EXPORTER says; by default OTLP, where a collector is named.

    The exporters and the processor read their own variables. None when no span is to be exported. Raises
    `ConfigurationError` for an exporter that is not installed.
    """
    names = list(_exporters()) if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() != "true" else []
    if not names:
        return None
    processor = SynchronousMultiSpanProcessor()  # type: ignore[no-untyped-call]  # -- the SDK's
    for name in names:
        processor.add_span_processor(BatchSpanProcessor(_exporter(name)))
    return processor


def _exporters() -> Iterator[str]:
    """Yield the names of the exporters, as entry points have them."""
    default = "otlp" if _first_of(_ADDRESSES) else "none"
    for name in (os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or default).split(","):
        if name.strip() == "otlp":
            yield "otlp_proto_grpc" if _first_of(_PROTOCOLS) == "grpc" else "otlp_proto_http"
        elif name.strip() not in {"", "none"}:
            yield name.strip()


def _first_of(variables: tuple[str, ...]) -> str:
    """Return the value of the first of *variables* that is set; empty without one."""
    return next((value for name in variables if (value := os.environ.get(name, "").strip())), "")


def _exporter(name: str) -> SpanExporter:
    for found in entry_points(group="opentelemetry_traces_exporter", name=name):
        exporter: SpanExporter = found.load()()
        return exporter
    extra = "; for otlp: pip install 'otel-step-hook[otlp]'" if name == "otlp_proto_http" else ""
    raise ConfigurationError(
        f"OTEL_TRACES_EXPORTER: the exporter {name} is not installed{extra}; expected the name of an exporter that is, "
        "or none"
    )
