"""Every private attribute of the OpenTelemetry SDK that this package reads or sets, each with its reason.

`tests/unit/test_sdk.py` compares them with the SDK's public interface, and fails when a release renames one or
changes its meaning.
"""

from collections.abc import Mapping, Sequence

from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.trace import SpanContext

Processors = tuple[SpanProcessor, ...]


def span_start(span: ReadableSpan) -> tuple[int, int, str, str, Mapping[str, object], SpanProcessor | None]:
    """Span id, parent's span id, scope name, name, live attributes and processor of *span*; 0 for an id without value.

    Every span pays for this when it starts, and each public property would be one more call of a Python function.
    `SpanContext` is a tuple whose second item is the span id. The processor, which has no public name, is the one
    that holds all processors of the span's provider.
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
    """Span id of *span*, 0 without one, and how many attributes a limit has cost it. Every span pays for this."""
    try:
        return span._context[1], span._attributes.dropped  # type: ignore[index,union-attr]  # noqa: SLF001 -- see above
    except (AttributeError, TypeError):  # a span made by hand has a plain mapping, or None, and perhaps no context
        return 0 if span.context is None else span.context.span_id, 0


def span_identity(span: ReadableSpan) -> tuple[SpanContext | None, str, int, int]:
    """Context, name, start and end of *span* in unix nanoseconds, 0 for a time that it does not have.

    Every step pays for this when it ends, and the public properties would be four calls.
    """
    return span._context, span._name, span._start_time or 0, span._end_time or 0  # noqa: SLF001 -- see above


def live_attributes(span: ReadableSpan) -> Mapping[str, object]:
    """The attributes of *span* as they change, without a copy; read-only by agreement.

    `ReadableSpan.attributes` wraps them in two mappings that make a look-up six times slower.
    """
    try:
        return span._attributes._dict  # type: ignore[union-attr,no-any-return]  # noqa: SLF001 -- see above
    except AttributeError:  # a span made by hand has a plain mapping, or None
        return span.attributes or {}


def events(span: ReadableSpan) -> Sequence[Event]:
    """The events of *span*. `ReadableSpan.events` makes a copy, which costs a microsecond even without events."""
    return span.events if span._events else ()  # noqa: SLF001 -- see above


def registered(span: ReadableSpan) -> tuple[SpanProcessor | None, Processors | None]:
    """The processor that holds all processors of the provider of *span*, and those processors, as they are now.

    None where there is none, or where it is not the SDK's own. The SDK has no public way to see them.
    """
    holder = getattr(span, "_span_processor", None)
    return holder, getattr(holder, "_span_processors", None)


def register_first(processor: SpanProcessor, holder: SpanProcessor) -> bool:
    """Put *processor* before all others that *holder* holds; False, and nothing, while another thread changes them.

    The SDK shuts processors down in the order of their registration, and has no public way to change it.
    """
    # Only tried: a signal handler may have interrupted its own thread in add_span_processor().
    if not holder._lock.acquire(blocking=False):  # type: ignore[attr-defined]  # noqa: SLF001 -- see above
        return False
    try:
        known: Processors = holder._span_processors  # type: ignore[attr-defined]  # noqa: SLF001 -- see above
        others = tuple(other for other in known if other is not processor)
        holder._span_processors = (processor, *others)  # type: ignore[attr-defined]  # noqa: SLF001 -- see above
    finally:
        holder._lock.release()  # type: ignore[attr-defined]  # noqa: SLF001 -- see above
    return True
