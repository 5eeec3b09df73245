"""An application without any code for the hook: it records a step and another span with OpenTelemetry's API."""

from opentelemetry import trace

tracer = trace.get_tracer("an application")
with (
    tracer.start_as_current_span("run"),
    tracer.start_as_current_span("step", attributes={"step_id": "step-1"}) as span,
):
    print("recording:", span.is_recording(), flush=True)
