"""The private attributes of the SDK that `_sdk.py` uses, each compared with the public interface.

A release that renames one, changes its meaning, or adds a method to span processors fails here. The private attribute
of httpcore is tested in `delivery/test_transport_httpx.py`.
"""

import gc
import re
from pathlib import Path

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import (
    ReadableSpan,
    Span,
    SpanLimits,
    SpanProcessor,
    SynchronousMultiSpanProcessor,
    Tracer,
    TracerProvider,
)
from opentelemetry.trace import NoOpTracerProvider, SpanKind, set_span_in_context

import otel_step_hook
from otel_step_hook import _sdk

PACKAGE = Path(otel_step_hook.__file__).parent


@pytest.fixture
def tracer() -> Tracer:
    """A tracer of the SDK whose spans have at most three attributes."""
    provider = TracerProvider(shutdown_on_exit=False, span_limits=SpanLimits(max_attributes=3))
    tracer = provider.get_tracer("a scope")
    assert isinstance(tracer, Tracer)
    return tracer


def _started(tracer: Tracer, name: str, parent: Span | None = None, **attributes: str) -> Span:
    context = None if parent is None else set_span_in_context(parent)
    span = tracer.start_span(name, context, attributes=attributes)
    assert isinstance(span, Span)
    return span


def test_the_start_of_a_span_is_what_the_sdk_shows(tracer: Tracer) -> None:
    """The ids, scope, name, attributes and composite processor are those of the public interface."""
    parent = _started(tracer, "parent")
    span = _started(tracer, "span", parent, key="value")
    span_id, parent_id, scope, name, attributes, processor = _sdk.span_start(span)
    assert (span_id, parent_id) == (span.get_span_context().span_id, parent.get_span_context().span_id)
    assert (scope, name, dict(attributes)) == ("a scope", "span", {"key": "value"})
    assert isinstance(processor, SynchronousMultiSpanProcessor)
    assert _sdk.span_start(parent)[1] == 0


def test_a_span_made_by_hand_has_what_it_was_given() -> None:
    """A span made by hand may have no ids, no scope, no attributes or a plain mapping, and no processor."""
    assert _sdk.span_start(ReadableSpan("span")) == (0, 0, "", "span", {}, None)
    assert _sdk.span_start(ReadableSpan("span", attributes={"key": 1}))[4] == {"key": 1}
    assert _sdk.span_end(ReadableSpan("span")) == (0, 0)
    assert _sdk.span_identity(ReadableSpan("span")) == (None, "span", SpanKind.INTERNAL, 0, 0)
    assert dict(_sdk.live_attributes(ReadableSpan("span"))) == {}
    assert _sdk.registered(ReadableSpan("span")) == (None, None)


def test_a_span_made_by_hand_may_have_ids(tracer: Tracer) -> None:
    """A copy that a processor makes to scrub a span has them."""
    context = _started(tracer, "span").get_span_context()
    assert _sdk.span_end(ReadableSpan("copy", context)) == (context.span_id, 0)


def test_the_end_of_a_span_is_what_the_sdk_shows(tracer: Tracer) -> None:
    """The id, the name, the times and the number of dropped attributes are those of the public interface."""
    span = _started(tracer, "span", a="1", b="2", c="3", d="4")
    span.update_name("another name")
    span.end()
    ended = span._readable_span()
    assert ended.dropped_attributes == 1
    assert _sdk.span_end(ended) == (span.get_span_context().span_id, ended.dropped_attributes)
    assert _sdk.span_identity(ended) == (
        ended.context,
        "another name",
        ended.kind,
        ended.start_time,
        ended.end_time,
    )
    assert ended.start_time
    assert ended.end_time


def test_attributes_are_read_while_they_change(tracer: Tracer) -> None:
    """The attributes of a running span are those that it was started with and those that were set later."""
    span = _started(tracer, "span", a="1")
    at_start, live = _sdk.span_start(span)[4], _sdk.live_attributes(span)
    span.set_attribute("b", "2")
    assert dict(at_start) == dict(live) == dict(span.attributes or {}) == {"a": "1", "b": "2"}


def test_events_are_those_that_the_sdk_shows(tracer: Tracer) -> None:
    """A span without events has an empty sequence."""
    span = _started(tracer, "span")
    assert list(_sdk.events(span)) == list(span.events) == []
    span.add_event("paused")
    assert [event.name for event in _sdk.events(span)] == [event.name for event in span.events] == ["paused"]


def test_a_processor_is_moved_before_the_others() -> None:
    """The processor is called first from then on, and once."""
    calls: list[str] = []

    class Named(SpanProcessor):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_end(self, span: ReadableSpan) -> None:
            del span
            calls.append(self.name)

    provider = TracerProvider(shutdown_on_exit=False)
    first, second = Named("first"), Named("second")
    provider.add_span_processor(first)
    provider.add_span_processor(second)
    span = provider.get_tracer("tests").start_span("span")
    assert isinstance(span, Span)
    holder, known = _sdk.registered(span)
    assert (holder, known) == (provider._active_span_processor, (first, second))
    assert holder is not None
    assert _sdk.register_first(second, holder)
    assert _sdk.registered(span)[1] == (second, first)
    span.end()
    assert calls == ["second", "first"]


def test_the_pipeline_of_a_provider_is_that_of_its_spans() -> None:
    """Processor and resource are those of the SDK's provider; another provider has neither."""
    provider = TracerProvider(resource=Resource({"service.name": "tests"}), shutdown_on_exit=False)
    span = provider.get_tracer("tests").start_span("span")
    assert isinstance(span, Span)
    assert _sdk.pipeline_of(provider) == (_sdk.registered(span)[0], span.resource)
    assert _sdk.pipeline_of(NoOpTracerProvider()) == (None, Resource({}))


def test_the_keys_that_suppress_instrumentations_exist() -> None:
    """Both private keys are there; `delivery/test_telemetry_instrumented.py` tests what they do."""
    assert len(_sdk.suppress_keys()) == 2


def test_the_sdk_calls_no_method_of_a_processor_that_is_not_known_here() -> None:
    """A method that a newer SDK adds to its interface fails this test, because the hook may need it."""
    asked = {name for name, value in vars(SpanProcessor).items() if callable(value) and not name.startswith("__")}
    assert asked <= {"on_start", "_on_ending", "on_end", "shutdown", "force_flush"}


def test_no_other_module_touches_a_private_attribute_of_the_sdk() -> None:
    """Ruff finds private attributes (SLF001); other modules exempt only those of this package and of httpcore."""
    sources = {path.name: path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "_sdk.py"}
    exempt = [line for text in sources.values() for line in text.splitlines() if "SLF001" in line]
    assert all("-- ours" in line or "_h11_state" in line for line in exempt)
    assert [name for name, text in sources.items() if re.search(r"attr\(\w+, \"_[a-z]", text)] == []


def test_a_weak_processor_passes_on_while_there_is_one() -> None:
    """Each call reaches the processor; once that is garbage-collected, none does, and nothing is raised."""
    calls: list[str] = []

    class Recording(SpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002 -- the SDK's
            calls.append(f"start {span.name}")

        def _on_ending(self, span: Span) -> None:
            calls.append(f"ending {span.name}")

        def on_end(self, span: ReadableSpan) -> None:
            calls.append(f"end {span.name}")

    recording = Recording()
    provider = TracerProvider(
        shutdown_on_exit=False,
        active_span_processor=_sdk.WeakProcessor(recording),  # type: ignore[arg-type]  # -- as in telemetry.py
    )
    tracer = provider.get_tracer("tests")
    assert isinstance(tracer, Tracer)
    tracer.start_span("one").end()
    known = ["start one", "ending one", "end one"]
    assert [call for call in calls if call in known] == calls
    assert {"start one", "end one"} <= set(calls)
    del recording
    gc.collect()
    seen = list(calls)
    tracer.start_span("two").end()
    weak = provider._active_span_processor
    weak._on_ending(_started(tracer, "three"))  # older SDKs do not call it
    assert calls == seen
