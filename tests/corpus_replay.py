"""Replays the recorded spans of real frameworks, and reads the table of what truly happened in them.

A recorded span is the plain dict of its JSON; tests/corpus/README.md says what its keys mean.
"""

import importlib
import json
import threading
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from time import time_ns
from typing import Any, NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import SpanProcessor, Tracer, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler

CORPUS = Path(__file__).parent / "corpus"
OWN_THREAD = "MainThread"  # the caller of replay() takes its place
RecordedSpan = dict[str, Any]
# Their exceptions are what the code under test compares with; all others are made from their recorded names.
_STDLIB = frozenset({"builtins", "asyncio.exceptions", "concurrent.futures._base"})


@dataclass(frozen=True, slots=True)
class Record:
    """One small run of a framework; its spans are in the order of their ends."""

    case: str
    spans: list[RecordedSpan]

    @property
    def framework(self) -> str:
        return self.case.partition("-")[0]


class Truth(NamedTuple):
    """What became of one step. Where its span misleads: what will be reported instead, and why."""

    case: str
    span_name: str
    span_id: str
    truth: str
    told_as: str = ""
    why: str = ""


def records() -> list[Record]:
    """Every record of the corpus, by name."""
    loaded = [json.loads(path.read_bytes()) for path in sorted(CORPUS.glob("*.json"))]
    return [Record(one["case"], one["spans_in_end_order"]) for one in loaded]


@cache
def truths() -> tuple[list[Truth], dict[str, str]]:
    """The table of truths, as it was reviewed: all steps, and why some records have none."""
    table = tomllib.loads((CORPUS / "truths.toml").read_text(encoding="utf-8"))
    return [Truth(*row) for row in table["steps"]], table["without_steps"]


def replay(record: Record, *processors: SpanProcessor, sampler: Sampler = ALWAYS_ON) -> None:
    """Make the spans of *record* again, in a provider of their own with these *processors*, and end them.

    All is as recorded, and so are the thread's name and the exception in flight around each start and end. When spans
    began was not recorded: each begins as late as it can, parents before their children and children before their
    parents end. Later attributes and events come just before the end, which is now. There are no asyncio tasks.
    Leaves the processors running, and raises what they raise.
    """
    stage = _Stage(record.spans, sampler)
    for processor in processors:
        stage.provider.add_span_processor(processor)
    for span in record.spans:
        stage.begin(span)
        for child in record.spans:
            if child["parent_id"] == span["span_id"]:
                stage.begin(child)
        _call(partial(stage.end, span), span["probe"]["end_thread"], stage.errors[span["span_id"]])


class _Stage:
    """Starts and ends spans; owns those that have begun, and their exceptions."""

    def __init__(self, spans: list[RecordedSpan], sampler: Sampler) -> None:
        now = time_ns()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self._spans = {span["span_id"]: span for span in spans}
        self._begun: dict[str, trace.Span] = {}
        self.errors = {span["span_id"]: _exception(span["probe"]) for span in spans}
        self._end_times = {span["span_id"]: now + place for place, span in enumerate(spans)}  # ns; no two are equal

    def begin(self, span: RecordedSpan) -> None:
        """Start *span*, after its ancestors, unless it has begun."""
        if span["span_id"] not in self._begun:
            if span["parent_id"] in self._spans:
                self.begin(self._spans[span["parent_id"]])
            probe, error = span["probe"], self.errors[span["span_id"]]
            before = error if probe["exc_same_as_at_start"] else None
            _call(partial(self._start, span), probe.get("start_thread", OWN_THREAD), before)

    def _start(self, span: RecordedSpan) -> None:
        trace_id, span_id, parent_id = (int(span[key] or "0", 16) for key in ("trace_id", "span_id", "parent_id"))
        parent = trace.SpanContext(trace_id, parent_id, is_remote=False, trace_flags=trace.TraceFlags(1))
        at_start = span["probe"]["attributes_at_on_start"]
        tracer = self.provider.get_tracer(*span["scope"])
        assert isinstance(tracer, Tracer)
        tracer.id_generator = ids = RandomIdGenerator()  # of this tracer alone: deliveries have other ids
        ids.generate_trace_id = lambda: trace_id  # type: ignore[method-assign]  # -- shorter than a class
        ids.generate_span_id = lambda: span_id  # type: ignore[method-assign]  # -- the same
        self._begun[span["span_id"]] = tracer.start_span(
            span["name"],
            trace.set_span_in_context(trace.NonRecordingSpan(parent), Context()),  # invalid where there is none
            trace.SpanKind[span["kind"]],
            {key: value for key, value in span["attributes"].items() if key in at_start},
            start_time=self._end_times[span["span_id"]] - round(span["duration_ms"] * 1e6),
        )

    def end(self, span: RecordedSpan) -> None:
        """Give *span* all that was recorded, and end it."""
        begun, end_time, status = self._begun[span["span_id"]], self._end_times[span["span_id"]], span["status"]
        begun.set_attributes(span["attributes"])
        for event in span["events"]:
            begun.add_event(event["name"], event["attributes"], end_time)
        begun.set_status(trace.Status(trace.StatusCode[status["code"]], status["description"]))
        begun.end(end_time)


def _call(act: Callable[[], None], thread: str, error: BaseException | None) -> None:
    """Call *act* in a thread of that name, while *error* is in flight."""
    if thread == OWN_THREAD:
        call_in_flight(error, act)
        return
    with ThreadPoolExecutor(1, initializer=lambda: setattr(threading.current_thread(), "name", thread)) as pool:
        pool.submit(call_in_flight, error, act).result()


def call_in_flight(error: BaseException | None, act: Callable[[], object]) -> None:
    """Call *act* while *error*, if any, is what sys.exc_info() shows."""
    if error is None:
        act()
        return
    try:
        raise error
    except type(error):
        act()


def _exception(probe: dict[str, Any]) -> BaseException | None:
    """The exception that was in flight at the end. Of a group, what it held is not recorded."""
    if probe["exc_info_at_on_end"] is None:
        return None
    kind: type[BaseException] = BaseException
    for module, _, name in (full.rpartition(".") for full in reversed(probe["exc_mro"])):
        known = module in _STDLIB
        kind = getattr(importlib.import_module(module), name) if known else type(name, (kind,), {"__module__": module})
    message = probe["exc_info_at_on_end"].partition(": ")[2]
    if issubclass(kind, BaseExceptionGroup):
        return kind(message.rpartition(" (")[0], [Exception("not recorded")])  # a group adds its size by itself
    return kind(message) if message else kind()
