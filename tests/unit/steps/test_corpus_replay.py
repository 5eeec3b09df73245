"""The recorded spans come back as they were, and the table of truths fits them."""

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


def as_recorded(span: ReadableSpan) -> RecordedSpan:
    """What a record says of this span, but for the probe."""
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


def in_order(span: RecordedSpan) -> RecordedSpan:
    """The same of the record itself, with attributes that are compared in their order."""
    events = [{"name": event["name"], "attributes": list(event["attributes"].items())} for event in span["events"]]
    kept = {key: value for key, value in span.items() if key not in {"probe", "parent_name"}}
    return kept | {"attributes": list(span["attributes"].items()), "events": events}


def test_a_replayed_span_is_the_recorded_one() -> None:
    """What an exporter gets is what was recorded, in the order of the ends."""
    replayed: dict[tuple[str, int], RecordedSpan] = {}
    recorded: dict[tuple[str, int], RecordedSpan] = {}
    for record in RECORDS:
        exporter = InMemorySpanExporter()
        replay(record, SimpleSpanProcessor(exporter))
        replayed |= {
            (record.case, place): as_recorded(span) for place, span in enumerate(exporter.get_finished_spans())
        }
        recorded |= {(record.case, place): in_order(span) for place, span in enumerate(record.spans)}
    assert replayed == recorded


def test_a_processor_sees_what_the_recording_one_saw() -> None:
    """Around on_start and on_end there is the recorded exception, its class included, in the recorded thread."""
    seen, recorded = {}, {}
    for record in RECORDS:
        looking = Looking()
        replay(record, looking)
        for span in record.spans:
            probe = span["probe"]
            before, start_thread, attributes = looking.at_start[span["span_id"]]
            after, end_thread = looking.at_end[span["span_id"]]
            seen[record.case, span["span_id"]] = {
                "attributes_at_on_start": sorted(attributes),
                "exc_info_at_on_start": next(iter(line_of(before) or ()), None),
                "start_thread": start_thread,
                "exc_info_at_on_end": after and f"{probe['exc_mro'] and probe['exc_mro'][0]}: {after}",
                "exc_same_as_at_start": before is not None and before is after,
                "exc_mro": line_of(after),
                "end_thread": end_thread,
            }
            # Of a span that began before the recording, the start is missing.
            probe = {"exc_info_at_on_start": None, "start_thread": OWN_THREAD} | probe
            probe["attributes_at_on_start"] = sorted(probe["attributes_at_on_start"])
            recorded[record.case, span["span_id"]] = {key: probe[key] for key in seen[record.case, span["span_id"]]}
    assert seen == recorded


def test_a_family_begins_from_the_top_and_is_whole_before_a_parent_ends() -> None:
    """A parent begins before its children, and these before it ends, also where it ends first."""
    wrong = []
    for record in RECORDS:
        looking = Looking()
        replay(record, looking)
        at = {moment: place for place, moment in enumerate(looking.moments)}
        assert len(at) == 2 * len(record.spans)
        for span in record.spans:
            parent, own = span["parent_id"], span["span_id"]
            if ("start", parent) in at and not at["start", parent] < at["start", own] < at["end", parent]:
                wrong.append((record.case, own))
    assert wrong == []


def test_a_sampler_decides_which_spans_are_seen() -> None:
    """A sampler that drops all spans leaves nothing to see."""
    looking = Looking()
    replay(RECORDS[0], looking, sampler=ALWAYS_OFF)
    assert looking.moments == []


def test_each_truth_is_of_a_recorded_span() -> None:
    """Each row names a span that is there, and no span has two rows."""
    recorded = {(record.case, span["name"], span["span_id"]) for record in RECORDS for span in record.spans}
    rows = Counter(truth[:3] for truth in TRUTHS)
    assert rows.keys() <= recorded
    assert set(rows.values()) == {1}
    assert {truth.truth for truth in TRUTHS} == {"success", "failed", "cancelled", "paused"}


def test_each_record_has_a_truth_or_a_reason_to_have_none() -> None:
    """A record without a row says why, and one with a row does not."""
    cases = {truth.case for truth in TRUTHS}
    assert sorted([*cases, *WITHOUT_STEPS]) == sorted(record.case for record in RECORDS)
    assert all(WITHOUT_STEPS.values())


def test_only_a_truth_that_will_be_reported_wrong_says_why() -> None:
    """What is reported instead stands in the table where it is not the truth, with the reason."""
    assert [truth for truth in TRUTHS if bool(truth.told_as) != bool(truth.why)] == []
    assert [truth for truth in TRUTHS if truth.told_as == truth.truth] == []
