"""Every private attribute of OpenTelemetry's SDK and API that this package reads or sets, with the reason for each.

`tests/unit/test_sdk.py` compares them with the SDK's public interface, and fails when a release renames one or
changes its meaning.
"""

import weakref
from collections.abc import Mapping, Sequence

from opentelemetry import context as otel_context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanContext, SpanKind, TracerProvider

Processors = tuple[SpanProcessor, ...]


def span_start(span: ReadableSpan) -> tuple[int, int, str, str, Mapping[str, object], SpanProcessor | None]:
    """Return what is recorded of every span that starts; every span pays for this.

    In this order: span id and parent's span id (0 where there is none), name of the scope, name of the span, live
    attributes, and the processor that holds all processors of the span's provider, which has no public name. Each
    public property would be one more call of a Python function. `SpanContext` is a tuple whose second item is the
    span id.
    """
    context, parent, scope = span._context, span._parent, span._instrumentation_scope  # noqa: SLF001 -- see above
    try:
        attributes = span._attributes._dict  # type: ignore[union-attr]  # noqa: SLF001 -- as in `live_attributes`
    except AttributeError:
        attributes = span.attributes or {}
    return (
        0 if context is None else context[1],
        0 if parent is None else parent[1],
        "" if scope is None else scope._name,  # noqa: SLF001 -- see above
        span._name,  # noqa: SLF001 -- see above
        attributes,
        getattr(span, "_span_processor", None),
    )


def span_end(span: ReadableSpan) -> tuple[int, int]:
    """Return the span id (0 without one), and how many attributes the SDK has dropped. Every span pays for this."""
    try:
        return span._context[1], span._attributes.dropped  # type: ignore[index,union-attr]  # noqa: SLF001 -- see above
    except (AttributeError, TypeError):  # a span made by hand has a plain mapping, or None, and perhaps no context
        return 0 if span.context is None else span.context.span_id, 0


def span_identity(span: ReadableSpan) -> tuple[SpanContext | None, str, SpanKind, int, int]:
    """Return context, name, kind, start time and end time, in unix nanoseconds, 0 for a missing time.

    Every step pays for this when it ends, and the public properties would be five calls.
    """
    return span._context, span._name, span._kind, span._start_time or 0, span._end_time or 0  # noqa: SLF001 -- see above


def live_attributes(span: ReadableSpan) -> Mapping[str, object]:
    """Return the attributes of *span* themselves, which change while it runs. They must not be written to.

    `ReadableSpan.attributes` wraps them in two mappings that make a look-up six times slower.
    """
    try:
        return span._attributes._dict  # type: ignore[union-attr,no-any-return]  # noqa: SLF001 -- see above
    except AttributeError:  # a span made by hand has a plain mapping, or None
        return span.attributes or {}


def events(span: ReadableSpan) -> Sequence[Event]:
    """Return the events of *span*. `ReadableSpan.events` makes a copy, a microsecond even without events."""
    return span.events if span._events else ()  # noqa: SLF001 -- see above


def registered(span: ReadableSpan) -> tuple[SpanProcessor | None, object]:
    """Return the processor that holds all processors of the provider of *span*, and those processors at present.

    Either is None where there is none. The second may be of any type where the first is not the SDK's own: see
    `movable`. The SDK has no public way to list them. Every span that starts pays for this.
    """
    holder = getattr(span, "_span_processor", None)
    return holder, getattr(holder, "_span_processors", None)


def pipeline_of(provider: TracerProvider) -> tuple[SpanProcessor | None, Resource]:
    """Return the processor that holds all processors of *provider*, and its resource.

    None and an empty resource where *provider* is not of the SDK. That of Temporal's OpenTelemetryPlugin contains one
    of the SDK, which has no public name there. Nor has the SDK one for the way that a provider's own spans take.
    """
    inner = getattr(provider, "_tracer_provider", provider)
    return getattr(inner, "_active_span_processor", None), getattr(inner, "resource", None) or Resource({})


def movable(holder: SpanProcessor) -> Processors | None:
    """Return the processors that *holder* holds at present if `register_first` can move one of them, else None.

    That is where *holder* keeps them as the SDK's own does: in a tuple, which it replaces under its lock.
    """
    known = getattr(holder, "_span_processors", None)
    return known if isinstance(known, tuple) and hasattr(holder, "_lock") else None


def register_first(processor: SpanProcessor, holder: SpanProcessor) -> bool:
    """Put *processor* before all others that *holder* holds. Without effect, and False, while a thread changes them.

    Only for a *holder* whose processors are `movable`.

    The SDK shuts processors down in the order of their registration, as the specification wants it
    (open-telemetry/opentelemetry-specification#987). Only a distribution's configurator can choose that order
    (open-telemetry/opentelemetry-python#4806).
    """
    # Does not wait for the lock: a signal handler may have interrupted add_span_processor() on the same thread.
    if not holder._lock.acquire(blocking=False):  # type: ignore[attr-defined]  # noqa: SLF001 -- see above
        return False
    try:
        known: Processors = holder._span_processors  # type: ignore[attr-defined]  # noqa: SLF001 -- see above
        others = tuple(other for other in known if other is not processor)
        holder._span_processors = (processor, *others)  # type: ignore[attr-defined]  # noqa: SLF001 -- see above
    finally:
        holder._lock.release()  # type: ignore[attr-defined]  # noqa: SLF001 -- see above
    return True


class WeakProcessor(SpanProcessor):
    """Passes spans on to *processor*, and does not keep it alive.

    The provider of delivery spans has this processor, and can be kept without keeping the application's: each
    `TracerProvider` registers a function to run after forks, and Python cannot unregister it.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        self._processor = weakref.ref(processor)

    def on_start(self, span: Span, parent_context: otel_context.Context | None = None) -> None:
        """Pass *span* on."""
        if (processor := self._processor()) is not None:
            processor.on_start(span, parent_context)

    def _on_ending(self, span: Span) -> None:
        if (processor := self._processor()) is not None:
            processor._on_ending(span)  # noqa: SLF001 -- the SDK calls it before `on_end`

    def on_end(self, span: ReadableSpan) -> None:
        """Pass *span* on."""
        if (processor := self._processor()) is not None:
            processor.on_end(span)


def suppress_keys() -> list[str]:
    """Return the context keys that keep HTTP instrumentations from adding spans and from replacing `traceparent`.

    OpenTelemetry's API has no public names for them (open-telemetry/opentelemetry-python#184). A release without one
    costs spans beside ours, not deliveries.
    """
    names = ("_SUPPRESS_HTTP_INSTRUMENTATION_KEY", "_SUPPRESS_INSTRUMENTATION_KEY")
    return [getattr(otel_context, name) for name in names if hasattr(otel_context, name)]
