"""The recorded spans come back as they were, and the table of truths fits them."""

import sys
import threading
from collections import Counter

import pytest
from corpus_replay import Record, RecordedSpan, records, replay, truths
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import format_span_id, format_trace_id
from opentelemetry.util.types import Attributes, AttributeValue

RECORDS = records()
TRUTHS = truths()
each_record = pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.case)


class Looking(SpanProcessor):
    """Notes what a processor can see around it; keeps nothing of a span but its ids."""

    def __init__(self) -> None:
        self.moments: list[tuple[str, str]] = []
        self.at_start: dict[str, tuple[BaseException | None, str, list[str]]] = {}
        self.at_end: dict[str, tuple[BaseException | None, str]] = {}

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        del parent_context
        self.moments.append(("start", id_of(span)))
        self.at_start[id_of(span)] = sys.exc_info()[1], threading.current_thread().name, list(span.attributes or ())

    def on_end(self, span: ReadableSpan) -> None:
        self.moments.append(("end", id_of(span)))
        self.at_end[id_of(span)] = sys.exc_info()[1], threading.current_thread().name


def id_of(span: ReadableSpan) -> str:
    """The span id, as records have it."""
    assert span.context
    return format_span_id(span.context.span_id)


def line_of(exception: BaseException | None) -> list[str] | None:
    """The names of its class and of all above, as records have them."""
    if exception is None:
        return None
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(exception).__mro__ if kind is not object]


def plain(attributes: Attributes) -> list[tuple[str, AttributeValue | list[object]]]:
    """Attributes in their order, with lists as JSON has them."""
    return [(key, list(value) if isinstance(value, tuple) else value) for key, value in (attributes or {}).items()]


def as_recorded(span: ReadableSpan) -> dict[str, object]:
    """What a record says of this span, but for the probe."""
    assert span.context
    assert span.instrumentation_scope
    assert span.start_time
    assert span.end_time
    return {
        "name": span.name,
        "kind": span.kind.name,
        "scope": (span.instrumentation_scope.name, span.instrumentation_scope.version),
        "trace_id": format_trace_id(span.context.trace_id),
        "span_id": format_span_id(span.context.span_id),
        "parent_id": format_span_id(span.parent.span_id) if span.parent else None,
        "status": {"code": span.status.status_code.name, "description": span.status.description},
        "attributes": plain(span.attributes),
        "events": [{"name": event.name, "attributes": plain(event.attributes)} for event in span.events],
        "duration_ms": round((span.end_time - span.start_time) / 1e6, 2),
    }


def in_order(span: RecordedSpan) -> dict[str, object]:
    """The record of a span, with attributes that are compared in their order."""
    events = [{"name": event.name, "attributes": list(event.attributes.items())} for event in span.events]
    return span.model_dump(exclude={"probe"}) | {"attributes": list(span.attributes.items()), "events": events}


@each_record
def test_a_replayed_span_is_the_recorded_one(record: Record) -> None:
    """What an exporter gets is what was recorded, in the order of the ends."""
    exporter = InMemorySpanExporter()
    replay(record, SimpleSpanProcessor(exporter))
    assert list(map(as_recorded, exporter.get_finished_spans())) == list(map(in_order, record.spans_in_end_order))


@each_record
def test_a_processor_sees_what_the_recording_one_saw(record: Record) -> None:
    """Around on_start and on_end there is the recorded exception, its class included, in the recorded thread."""
    looking = Looking()
    replay(record, looking)
    for span in record.spans_in_end_order:
        probe = span.probe
        before, start_thread, attributes = looking.at_start[span.span_id]
        after, end_thread = looking.at_end[span.span_id]
        assert (line_of(before) or [""])[0] == (probe.exc_info_at_on_start or "")
        assert (after and f"{probe.exc_mro and probe.exc_mro[0]}: {after}") == probe.exc_info_at_on_end
        assert line_of(after) == probe.exc_mro
        assert (before is not None and before is after) is probe.exc_same_as_at_start
        assert sorted(attributes) == sorted(probe.attributes_at_on_start)
        assert (start_thread, end_thread) == (probe.start_thread, probe.end_thread)


@each_record
def test_a_family_begins_from_the_top_and_is_whole_before_a_parent_ends(record: Record) -> None:
    """A parent begins before its children, and these before it ends, also where it ends first."""
    looking = Looking()
    replay(record, looking)
    at = {moment: place for place, moment in enumerate(looking.moments)}
    parents = {span.span_id for span in record.spans_in_end_order}
    for span in record.spans_in_end_order:
        if span.parent_id in parents:
            assert at["start", span.parent_id] < at["start", span.span_id] < at["end", span.parent_id]
    assert len(at) == 2 * len(record.spans_in_end_order)


def test_a_sampler_decides_which_spans_are_seen() -> None:
    """A sampler that drops all spans leaves nothing to see."""
    looking = Looking()
    replay(RECORDS[0], looking, sampler=ALWAYS_OFF)
    assert looking.moments == []


def test_each_truth_is_of_a_recorded_span() -> None:
    """Each row names a span that is there, and no span has two rows."""
    recorded = {(record.case, span.name, span.span_id) for record in RECORDS for span in record.spans_in_end_order}
    rows = Counter(truth[:3] for truth in TRUTHS.steps)
    assert rows.keys() <= recorded
    assert set(rows.values()) == {1}


def test_each_record_has_a_truth_or_a_reason_to_have_none() -> None:
    """A record without a row says why, and one with a row does not."""
    told = {truth.case for truth in TRUTHS.steps}
    assert sorted([*told, *TRUTHS.without_steps]) == sorted(record.case for record in RECORDS)
    assert all(TRUTHS.without_steps.values())


def test_only_a_truth_that_will_be_told_wrong_says_why() -> None:
    """What a step is told as stands in the table where it is not the truth, with the reason."""
    for truth in TRUTHS.steps:
        assert bool(truth.told_as) == bool(truth.why)
        assert truth.told_as != truth.truth
