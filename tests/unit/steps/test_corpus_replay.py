"""Replayed spans equal the recorded ones, and the table of truths fits the records."""

import sys
import threading
from collections import Counter

from corpus_replay import OWN_THREAD, RecordedSpan, records, replay, truths
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import format_span_id, format_trace_id
from opentelemetry.util.types import Attributes, AttributeValue

RECORDS = records()
TRUTHS, WITHOUT_STEPS = truths()


class Observer(SpanProcessor):
    """Records the exception in flight, the thread and the attributes at each start and end; keeps no spans."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.at_start: dict[str, tuple[BaseException | None, str, list[str]]] = {}
        self.at_end: dict[str, tuple[BaseException | None, str]] = {}

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        del parent_context
        self.calls.append(("start", id_of(span)))
        self.at_start[id_of(span)] = sys.exc_info()[1], threading.current_thread().name, list(span.attributes or ())

    def on_end(self, span: ReadableSpan) -> None:
        self.calls.append(("end", id_of(span)))
        self.at_end[id_of(span)] = sys.exc_info()[1], threading.current_thread().name


def id_of(span: ReadableSpan) -> str:
    """Return the span id in hexadecimal, as in a record."""
    assert span.context
    return format_span_id(span.context.span_id)


def mro_of(exception: BaseException | None) -> list[str] | None:
    """Return the qualified names of the exception's class and its base classes, as in a record."""
    if exception is None:
        return None
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(exception).__mro__ if kind is not object]


def plain(attributes: Attributes) -> list[tuple[str, AttributeValue | list[object]]]:
    """Return the attributes in their order, with tuples as lists, as in JSON."""
    return [(key, list(value) if isinstance(value, tuple) else value) for key, value in (attributes or {}).items()]


def as_recorded(span: ReadableSpan) -> RecordedSpan:
    """Return *span* as in a record, without the probe."""
    assert span.context
    assert span.instrumentation_scope
    assert span.start_time
    assert span.end_time
    return {
        "name": span.name,
        "kind": span.kind.name,
        "scope": [span.instrumentation_scope.name, span.instrumentation_scope.version],
        "trace_id": format_trace_id(span.context.trace_id),
        "span_id": format_span_id(span.context.span_id),
        "parent_id": format_span_id(span.parent.span_id) if span.parent else None,
        "status": {"code": span.status.status_code.name, "description": span.status.description},
        "attributes": plain(span.attributes),
        "events": [{"name": event.name, "attributes": plain(event.attributes)} for event in span.events],
        "duration_ms": round((span.end_time - span.start_time) / 1e6, 2),
    }


def with_ordered_attributes(span: RecordedSpan) -> RecordedSpan:
    """Return a recorded span without the probe, its attributes as lists, so that their order is compared."""
    events = [{"name": event["name"], "attributes": list(event["attributes"].items())} for event in span["events"]]
    kept = {key: value for key, value in span.items() if key not in {"probe", "parent_name"}}
    return kept | {"attributes": list(span["attributes"].items()), "events": events}


def test_a_replayed_span_is_the_recorded_one() -> None:
    """An exporter gets the spans as they were recorded, in the order of their ends."""
    replayed: dict[tuple[str, int], RecordedSpan] = {}
    recorded: dict[tuple[str, int], RecordedSpan] = {}
    for record in RECORDS:
        exporter = InMemorySpanExporter()
        replay(record, SimpleSpanProcessor(exporter))
        replayed |= {
            (record.case, number): as_recorded(span) for number, span in enumerate(exporter.get_finished_spans())
        }
        recorded |= {(record.case, number): with_ordered_attributes(span) for number, span in enumerate(record.spans)}
    assert replayed == recorded


def test_a_processor_sees_what_the_recording_one_saw() -> None:
    """In `on_start` and `on_end` the recorded exception is in flight, with its class, in the recorded thread."""
    seen, recorded = {}, {}
    for record in RECORDS:
        observer = Observer()
        replay(record, observer)
        for span in record.spans:
            probe = span["probe"]
            before, start_thread, attributes = observer.at_start[span["span_id"]]
            after, end_thread = observer.at_end[span["span_id"]]
            seen[record.case, span["span_id"]] = {
                "attributes_at_on_start": sorted(attributes),
                "exc_info_at_on_start": next(iter(mro_of(before) or ()), None),
                "start_thread": start_thread,
                "exc_info_at_on_end": after and f"{probe['exc_mro'] and probe['exc_mro'][0]}: {after}",
                "exc_same_as_at_start": before is not None and before is after,
                "exc_mro": mro_of(after),
                "end_thread": end_thread,
            }
            # If a span began before the recording, its probe has nothing about the start.
            probe = {"exc_info_at_on_start": None, "start_thread": OWN_THREAD} | probe
            probe["attributes_at_on_start"] = sorted(probe["attributes_at_on_start"])
            recorded[record.case, span["span_id"]] = {key: probe[key] for key in seen[record.case, span["span_id"]]}
    assert seen == recorded


def test_spans_start_after_their_parent_starts_and_before_it_ends() -> None:
    """Children start while their parent is open, also those that end after it."""
    wrong = []
    for record in RECORDS:
        observer = Observer()
        replay(record, observer)
        at = {call: number for number, call in enumerate(observer.calls)}
        assert len(at) == 2 * len(record.spans)
        for span in record.spans:
            parent, own = span["parent_id"], span["span_id"]
            if ("start", parent) in at and not at["start", parent] < at["start", own] < at["end", parent]:
                wrong.append((record.case, own))
    assert wrong == []


def test_a_sampler_decides_which_spans_are_seen() -> None:
    """With a sampler that drops all spans, the processor is not called."""
    observer = Observer()
    replay(RECORDS[0], observer, sampler=ALWAYS_OFF)
    assert observer.calls == []


def test_each_row_of_the_table_names_a_recorded_span() -> None:
    """Each row names a span of the corpus, and no span has two rows."""
    recorded = {(record.case, span["name"], span["span_id"]) for record in RECORDS for span in record.spans}
    rows = Counter(truth[:3] for truth in TRUTHS)
    assert rows.keys() <= recorded
    assert set(rows.values()) == {1}
    assert {truth.truth for truth in TRUTHS} == {"success", "failed", "cancelled", "paused"}


def test_each_record_has_a_row_or_a_reason_to_have_none() -> None:
    """A record has either rows or a reason why it has no steps, and not both."""
    cases = {truth.case for truth in TRUTHS}
    assert sorted([*cases, *WITHOUT_STEPS]) == sorted(record.case for record in RECORDS)
    assert all(WITHOUT_STEPS.values())


def test_only_a_row_whose_step_is_reported_wrong_has_a_reason() -> None:
    """A row has the reported outcome and the reason if, and only if, the step is not reported as it truly ended."""
    assert [truth for truth in TRUTHS if bool(truth.reported_as) != bool(truth.why)] == []
    assert [truth for truth in TRUTHS if truth.reported_as == truth.truth] == []
