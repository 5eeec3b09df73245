"""The tracer provider of Temporal's own OpenTelemetryPlugin, as the spans of deliveries need it."""

from opentelemetry.sdk.resources import Resource
from temporalio.contrib.opentelemetry import create_tracer_provider

from otel_step_hook import _sdk


def test_the_pipeline_of_temporals_provider_is_that_of_its_spans() -> None:
    """Processor and resource are those of the SDK's provider that it contains."""
    provider = create_tracer_provider(resource=Resource({"service.name": "tests"}), shutdown_on_exit=False)
    span = provider.get_tracer("tests").start_span("span")
    assert _sdk.pipeline_of(provider) == (getattr(span, "_span_processor", None), getattr(span, "resource", None))
    assert _sdk.pipeline_of(provider)[0] is not None
