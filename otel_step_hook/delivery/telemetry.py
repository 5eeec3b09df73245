"""The spans of deliveries, and the metrics that are recorded with them: owns the tracer.

Spans follow the stable HTTP semantic conventions; all other names begin with ``step_hook.``.
"""

import hashlib
import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.http_attributes import (
    HTTP_REQUEST_METHOD,
    HTTP_REQUEST_RESEND_COUNT,
    HTTP_RESPONSE_STATUS_CODE,
)
from opentelemetry.semconv.attributes.network_attributes import NETWORK_PEER_ADDRESS, NETWORK_PEER_PORT
from opentelemetry.semconv.attributes.server_attributes import SERVER_ADDRESS, SERVER_PORT
from opentelemetry.semconv.attributes.url_attributes import URL_FULL
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    get_tracer,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_step_hook import _sdk
from otel_step_hook.delivery.addresses import resolvable
from otel_step_hook.delivery.log import RateLimitedLog, where
from otel_step_hook.delivery.metrics import Instruments
from otel_step_hook.delivery.model import Delivery, Endpoint, Headers, KnownPipeline, Pipeline, pipeline_key
from otel_step_hook.delivery.retry import AttemptResult, Finish
from otel_step_hook.steps.event import SCOPE
from otel_step_hook.version import __version__

_MAX_TRACERS = 16  # tracers kept, one per pipeline and resource; a process has one or two


def shown_url(url: str) -> str:
    """Return *url* for people to read: scheme, host and port, and ``/REDACTED`` in place of path and query.

    Receivers such as Slack's have their secret in the path, where it looks like any other text.
    """
    parts = urlsplit(url)
    path = "/REDACTED" if parts.query or parts.path.strip("/") else parts.path[:1]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, "", ""))


class _Ids(RandomIdGenerator):
    """Generates random ids, except for the next span when `next_span_id` or `next_trace_id` is set."""

    def __init__(self) -> None:
        self.next_span_id: int | None = None
        self.next_trace_id = 0

    def generate_span_id(self) -> int:
        known, self.next_span_id = self.next_span_id, None
        return super().generate_span_id() if known is None else known

    def generate_trace_id(self) -> int:
        return self.next_trace_id or super().generate_trace_id()


def span_id_of(message_id: str, endpoint: Endpoint) -> int:
    """Return the id of the ``step_hook.deliver`` span, a hash of webhook id and endpoint: the same in every process.

    Both the endpoint's name and its URL count: two endpoints may have one URL, and in two hooks one name.
    """
    named = f"{message_id}\0{endpoint.name}\0{endpoint.url}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(named).digest()[:8], "big") or 1


class _PipelineTracer(NamedTuple):
    tracer: Tracer
    ids: _Ids | None
    pipeline: KnownPipeline


class _Recording:
    """Logs and suppresses exceptions of the application's processors and exporters: the webhook matters more."""

    def __init__(self, log: RateLimitedLog) -> None:
        self._log = log

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if error is None or isinstance(error, KeyboardInterrupt):
            return False
        self._log.log(logging.ERROR, "telemetry", f"a delivery could not be recorded: {where(error)}")
        return True


class Telemetry:
    """Records the spans and metrics of deliveries. For the worker thread only; never raises."""

    def __init__(self, endpoint: Endpoint, log: RateLimitedLog) -> None:
        parts = urlsplit(endpoint.url)
        self._endpoint = endpoint
        self._recording = _Recording(log)
        self.instruments = Instruments.of_this_process()
        self._labels = {"endpoint": endpoint.name}
        self._attributes: dict[str, str | int] = {
            HTTP_REQUEST_METHOD: "POST",
            SERVER_ADDRESS: resolvable(parts.hostname or ""),
            SERVER_PORT: parts.port or (443 if parts.scheme == "https" else 80),
            URL_FULL: shown_url(endpoint.url),
            "step_hook.endpoint": endpoint.name,
        }
        self._tracers: OrderedDict[tuple[int, int], _PipelineTracer] = OrderedDict()
        self._propagator = TraceContextTextMapPropagator()

    def start_attempt(self, delivery: Delivery) -> Span:
        """Start a CLIENT span for the attempt that is about to be made, as a child of the delivery's span."""
        with self._recording:
            attributes = self._attributes
            if delivery.attempts > 1:
                attributes = {**attributes, HTTP_REQUEST_RESEND_COUNT: delivery.attempts - 1}
            return self._tracer(delivery.pipeline).tracer.start_span(
                "POST",
                context=set_span_in_context(self._delivery_span(delivery), Context()),
                kind=SpanKind.CLIENT,
                attributes=attributes,
            )
        return INVALID_SPAN

    def trace_headers(self, span: Span) -> Headers:
        """Return ``traceparent``, and ``tracestate`` if any: they make the receiver's spans children of *span*.

        Nothing where there is no span: where no tracing is set up, a step of a workflow has only a trace id.
        """
        if not span.get_span_context().is_valid:
            return []
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, context=set_span_in_context(span, Context()))
        return list(carrier.items())

    def end_attempt(self, span: Span, result: AttemptResult | None) -> None:
        """End *span* with the *result* of its attempt; None when the attempt was cancelled."""
        self.count_attempt("shutdown" if result is None else result.error_type)
        with self._recording:
            if result is not None:
                _describe(span, result)
            span.end()

    def count_attempt(self, error_type: str | None) -> None:
        """Count an attempt, which failed because of *error_type*, if that is given."""
        with self._recording:
            self.instruments.attempts.add(1, self._labels | ({ERROR_TYPE: error_type} if error_type else {}))

    def end_delivery(self, delivery: Delivery, finish: Finish) -> None:
        """Record the result of *delivery*, and end its span, unless another system has the delivery and records it."""
        end_time = delivery.event.end_time
        with self._recording:
            labels = {**self._labels, "outcome": str(delivery.event.outcome), "result": finish.result}
            self.instruments.deliveries.add(1, labels)
            self.instruments.duration.record(max(0.0, (time.time_ns() - end_time) / 1e9), labels)
        if finish.result == "handed_over":
            return
        with self._recording:
            span = self._delivery_span(delivery)
            span.set_attributes({"step_hook.attempts": delivery.attempts, "step_hook.result": finish.result})
            if finish.error_type is not None:
                span.set_attribute(ERROR_TYPE, finish.error_type)
                span.set_status(StatusCode.ERROR)
            # The clock may have been set back, and a span must not end before it starts.
            span.end(max(time.time_ns(), end_time))

    def dropped(self, reason: str, count: int) -> None:
        """Count *count* steps that were lost before they were stored."""
        self._count(self.instruments.dropped.add, count, {**self._labels, "reason": reason})

    def put_in_memory(self, count: int) -> None:
        """Count *count* events that an outbox has put into memory alone."""
        self._count(self.instruments.in_memory.add, count, self._labels)

    def _count(self, add: Callable[[int, dict[str, str]], None], count: int, labels: dict[str, str]) -> None:
        # Not while the interpreter finalizes: no reader collects then, and a reader's thread that Python has stopped
        # may hold the lock of the instrument for ever.
        if sys.is_finalizing():
            return
        with self._recording:
            add(count, labels)

    def _delivery_span(self, delivery: Delivery) -> Span:
        if delivery.span is None:
            event, known = delivery.event, self._tracer(delivery.pipeline)
            if known.ids is not None:
                known.ids.next_span_id = span_id_of(delivery.id, self._endpoint)
                known.ids.next_trace_id = event.context.trace_id  # used where the step has no span, and only a trace
            delivery.span = known.tracer.start_span(
                "step_hook.deliver",
                # An empty context, so that this thread's context does not leak into the application's trace.
                context=set_span_in_context(NonRecordingSpan(event.context), Context()),
                start_time=event.end_time,
                attributes={
                    "step_hook.step_id": event.step_id.encode("utf-8", "backslashreplace").decode(),
                    "step_hook.outcome": str(event.outcome),
                    "step_hook.webhook_id": delivery.id,
                    "step_hook.endpoint": self._endpoint.name,
                    SERVER_ADDRESS: self._attributes[SERVER_ADDRESS],
                },
            )
        return delivery.span

    def _tracer(self, pipeline: Pipeline) -> _PipelineTracer:
        key = pipeline_key(pipeline)
        known = self._tracers.get(key)
        if known is None or not known.pipeline.is_of(pipeline):
            known = self._tracers[key] = _tracer_of(pipeline)
            if len(self._tracers) > _MAX_TRACERS:
                self._tracers.popitem(last=False)
        return known


def _describe(span: Span, result: AttemptResult) -> None:
    known: dict[str, str | int] = {}
    if result.peer is not None:
        known[NETWORK_PEER_ADDRESS], known[NETWORK_PEER_PORT] = result.peer
    if result.status_code is not None:
        known[HTTP_RESPONSE_STATUS_CODE] = result.status_code
    if result.error_type is not None:
        known[ERROR_TYPE] = result.error_type
        span.set_status(StatusCode.ERROR)
    span.set_attributes(known)


def _tracer_of(pipeline: Pipeline) -> _PipelineTracer:
    """Return a tracer whose spans go to the processors of the step's own span, without the application's sampler.

    The step's span has been sampled already, and its delivery spans follow that decision. A provider of
    our own around the step's processors works for any number of providers in a process.
    """
    if pipeline.processor is None:
        return _PipelineTracer(get_tracer(SCOPE, __version__), None, KnownPipeline(pipeline))
    ids = _Ids()
    provider = TracerProvider(
        sampler=ParentBased(ALWAYS_ON),
        resource=pipeline.resource,
        shutdown_on_exit=False,
        active_span_processor=_sdk.WeakProcessor(pipeline.processor),  # type: ignore[arg-type]  # -- it calls no more
        id_generator=ids,
    )
    return _PipelineTracer(provider.get_tracer(SCOPE, __version__), ids, KnownPipeline(pipeline))
