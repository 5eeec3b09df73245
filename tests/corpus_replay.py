"""Replays the recorded spans of real frameworks, and reads the table of what truly happened in them."""

import importlib
import threading
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from time import time_ns
from typing import Literal, NamedTuple, TypeVar

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from pydantic import BaseModel

CORPUS = Path(__file__).parent / "corpus"
OWN_THREAD = "MainThread"  # whoever calls replay() takes its place
Ending = Literal["success", "failed", "cancelled", "paused"]
Value = str | bool | int | float | list[str]
T = TypeVar("T")
# Their exceptions are what the code under test compares with; all others are made from their recorded names.
_STDLIB = frozenset({"builtins", "asyncio.exceptions", "concurrent.futures._base"})


class RecordedStatus(BaseModel):
    """The status of a span."""

    code: Literal["UNSET", "OK", "ERROR"]
    description: str | None


class RecordedEvent(BaseModel):
    """An event of a span; when it happened is not recorded."""

    name: str
    attributes: dict[str, Value]


class Probe(BaseModel):
    """What a processor saw. Of a span that began before the recording, the start is missing."""

    attributes_at_on_start: list[str]
    exc_info_at_on_start: str | None = None
    start_thread: str = OWN_THREAD
    exc_info_at_on_end: str | None
    exc_same_as_at_start: bool
    exc_mro: list[str] | None
    end_thread: str


class RecordedSpan(BaseModel):
    """A span as it was when it had ended; ids are hexadecimal."""

    name: str
    kind: Literal["INTERNAL", "CLIENT", "SERVER"]
    scope: tuple[str, str]
    trace_id: str
    span_id: str
    parent_id: str | None
    status: RecordedStatus
    attributes: dict[str, Value]
    events: list[RecordedEvent]
    duration_ms: float
    probe: Probe


class Record(BaseModel):
    """One small run of a framework."""

    case: str
    caller_saw: str
    spans_in_end_order: list[RecordedSpan]

    @property
    def framework(self) -> str:
        return self.case.partition("-")[0]


class Truth(NamedTuple):
    """What became of one step. Where its span misleads: what it will be told as instead, and why."""

    case: str
    span_name: str
    span_id: str
    truth: Ending
    told_as: Ending | Literal[""] = ""
    why: str = ""


class Truths(BaseModel):
    """The table of truths: all steps, and why some records have none."""

    steps: list[Truth]
    without_steps: dict[str, str]


def records() -> list[Record]:
    """Every record of the corpus, by name."""
    return [Record.model_validate_json(path.read_bytes()) for path in sorted(CORPUS.glob("*.json"))]


def truths() -> Truths:
    """The table of truths, as it was reviewed."""
    return Truths.model_validate(tomllib.loads((CORPUS / "truths.toml").read_text(encoding="utf-8")))


def replay(record: Record, *processors: SpanProcessor, sampler: Sampler = ALWAYS_ON) -> None:
    """Make the spans of *record* again, in a provider of their own with these *processors*, and end them.

    As recorded are names, scopes, kinds, ids, parents, attributes at the start, events, status, durations and the order
    of the ends; and around each start and end the thread, by name, and the exception in flight. What was not
    recorded: parents begin before their children and children before their parents end; later attributes
    and events come just before the end, which is now. There are no asyncio tasks.

    Leaves the processors running. Raises what they raise.
    """
    ids = _RecordedIds()
    provider = TracerProvider(sampler=sampler, id_generator=ids, shutdown_on_exit=False)
    for processor in processors:
        provider.add_span_processor(processor)
    stage = _Stage(provider, ids, record.spans_in_end_order)
    with _Threads() as threads:
        for moment, span in _moments(record.spans_in_end_order):
            if moment == "start":
                threads.run(span.probe.start_thread, stage.start, span)
            else:
                threads.run(span.probe.end_thread, stage.end, span)


def _moments(spans: Sequence[RecordedSpan]) -> Iterator[tuple[Literal["start", "end"], RecordedSpan]]:
    """Starts and ends, each span as late as its own end, its children's starts and its parent's end allow."""
    by_id = {span.span_id: span for span in spans}
    begun: set[str] = set()
    for span in spans:
        children = [child for child in spans if child.parent_id == span.span_id]
        for due in [*_lineage(span, by_id), *children]:
            if due.span_id not in begun:
                begun.add(due.span_id)
                yield "start", due
        yield "end", span


def _lineage(span: RecordedSpan, by_id: dict[str, RecordedSpan]) -> list[RecordedSpan]:
    """The recorded ancestors of *span*, outermost first, and the span itself."""
    parent = by_id.get(span.parent_id or "")
    return [*_lineage(parent, by_id), span] if parent else [span]


class _RecordedIds(RandomIdGenerator):
    """The ids of the span that this thread is about to start; random ones for all other spans."""

    def __init__(self) -> None:
        self._expected = threading.local()

    def expect(self, span: RecordedSpan) -> None:
        self._expected.trace_id = int(span.trace_id, 16)
        self._expected.span_id = int(span.span_id, 16)

    def generate_trace_id(self) -> int:
        return self._expected.__dict__.pop("trace_id", None) or super().generate_trace_id()

    def generate_span_id(self) -> int:
        return self._expected.__dict__.pop("span_id", None) or super().generate_span_id()


class _Stage:
    """Starts and ends spans; owns those that have begun, and their exceptions."""

    def __init__(self, provider: TracerProvider, ids: _RecordedIds, spans: Sequence[RecordedSpan]) -> None:
        now = time_ns()
        self._provider = provider
        self._ids = ids
        self._begun: dict[str, trace.Span] = {}
        self._flying = {span.span_id: _exception(span.probe) for span in spans}
        self._end_times = {span.span_id: now + place for place, span in enumerate(spans)}  # ns; no two are equal

    def start(self, span: RecordedSpan) -> None:
        exception = self._flying[span.span_id] if span.probe.exc_same_as_at_start else None
        self._ids.expect(span)
        self._begun[span.span_id] = _in_flight(exception, lambda: self._start(span))

    def end(self, span: RecordedSpan) -> None:
        begun = self._begun[span.span_id]
        end_time = self._end_times[span.span_id]
        begun.set_attributes(span.attributes)
        for event in span.events:
            begun.add_event(event.name, event.attributes, end_time)
        if span.status.code != "UNSET":
            begun.set_status(trace.Status(trace.StatusCode[span.status.code], span.status.description))
        _in_flight(self._flying[span.span_id], lambda: begun.end(end_time))

    def _start(self, span: RecordedSpan) -> trace.Span:
        return self._provider.get_tracer(*span.scope).start_span(
            span.name,
            self._context_of(span),
            trace.SpanKind[span.kind],
            {key: value for key, value in span.attributes.items() if key in span.probe.attributes_at_on_start},
            start_time=self._end_times[span.span_id] - round(span.duration_ms * 1e6),
        )

    def _context_of(self, span: RecordedSpan) -> Context:
        if span.parent_id is None:
            return Context()
        sampled = trace.TraceFlags(trace.TraceFlags.SAMPLED)
        outside = trace.SpanContext(
            int(span.trace_id, 16), int(span.parent_id, 16), is_remote=False, trace_flags=sampled
        )
        parent = self._begun.get(span.parent_id, trace.NonRecordingSpan(outside))
        return trace.set_span_in_context(parent, Context())


class _Threads(ExitStack):
    """One thread for each recorded name."""

    def __init__(self) -> None:
        super().__init__()
        self._named: dict[str, ThreadPoolExecutor] = {}

    def run(self, name: str, act: Callable[[RecordedSpan], None], span: RecordedSpan) -> None:
        """Call *act* with *span* in the thread of that name, and wait for it."""
        if name == OWN_THREAD:
            act(span)
            return
        if name not in self._named:
            pool = ThreadPoolExecutor(1, initializer=lambda: setattr(threading.current_thread(), "name", name))
            self._named[name] = self.enter_context(pool)
        self._named[name].submit(act, span).result()


def _in_flight(exception: BaseException | None, act: Callable[[], T]) -> T:
    """What *act* returns, called while *exception* is the one that sys.exc_info() shows."""
    if exception is None:
        return act()
    try:
        raise exception
    except type(exception):
        return act()


def _exception(probe: Probe) -> BaseException | None:
    """The exception that was in flight at the end. Of a group, what it held is not recorded."""
    if probe.exc_info_at_on_end is None or probe.exc_mro is None:
        return None
    message = probe.exc_info_at_on_end.partition(": ")[2]
    kind = _exception_class(probe.exc_mro)
    if issubclass(kind, BaseExceptionGroup):
        return kind(message.rpartition(" (")[0], [Exception("not recorded")])  # a group adds its size by itself
    return kind(message) if message else kind()


def _exception_class(mro: Sequence[str]) -> type[BaseException]:
    """A class with the names of this line of classes, which all have one base; the last one is BaseException."""
    kind: type[BaseException] = BaseException
    for module, _, name in (full.rpartition(".") for full in reversed(mro)):
        known = module in _STDLIB
        kind = getattr(importlib.import_module(module), name) if known else type(name, (kind,), {"__module__": module})
    return kind
