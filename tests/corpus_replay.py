"""Replays the recorded spans of real frameworks, and reads the table of the true outcomes of their steps.

A recorded span is the dict that its JSON gives; tests/corpus/README.md explains the keys.
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
OWN_THREAD = "MainThread"  # replayed in the thread that calls replay()
RecordedSpan = dict[str, Any]
# Exceptions of these modules are the real classes, which the code under test compares with. The classes of all other
# exceptions are made from their recorded names.
_STDLIB = frozenset({"builtins", "asyncio.exceptions", "concurrent.futures._base"})


@dataclass(frozen=True, slots=True)
class Record:
    """One small run of a framework; its spans are in the order in which they ended."""

    case: str
    spans: list[RecordedSpan]

    @property
    def framework(self) -> str:
        return self.case.partition("-")[0]


class Truth(NamedTuple):
    """The true outcome of one step; where its span misleads, also the outcome that is reported instead, and why."""

    case: str
    span_name: str
    span_id: str
    truth: str
    reported_as: str = ""
    why: str = ""


def records() -> list[Record]:
    """Return all records of the corpus, sorted by file name."""
    loaded = [json.loads(path.read_bytes()) for path in sorted(CORPUS.glob("*.json"))]
    return [Record(one["case"], one["spans_in_end_order"]) for one in loaded]


@cache
def truths() -> tuple[list[Truth], dict[str, str]]:
    """Return the reviewed table of truths: one row for each step, and for records without a step the reason."""
    table = tomllib.loads((CORPUS / "truths.toml").read_text(encoding="utf-8"))
    return [Truth(*row) for row in table["steps"]], table["without_steps"]


def replay(record: Record, *processors: SpanProcessor, sampler: Sampler = ALWAYS_ON) -> None:
    """Start and end the spans of *record* again, in a new provider with these *processors*.

    Around each start and end, the thread's name and the exception in flight are as recorded. The order of starts was
    not recorded: each span starts as late as possible, after its parent starts and before its parent ends. Attributes
    that came after the start, and events, are set just before the end. The end times are the current time. There are
    no asyncio tasks. The processors are not shut down, and their exceptions are raised.
    """
    replayer = _Replayer(record.spans, sampler)
    for processor in processors:
        replayer.provider.add_span_processor(processor)
    for span in record.spans:
        replayer.start(span)
        for child in record.spans:
            if child["parent_id"] == span["span_id"]:
                replayer.start(child)
        _call(partial(replayer.end, span), span["probe"]["end_thread"], replayer.exceptions[span["span_id"]])


class _Replayer:
    """Starts and ends the spans of one record; owns the spans that have started, and their exceptions."""

    def __init__(self, spans: list[RecordedSpan], sampler: Sampler) -> None:
        now = time_ns()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self._spans = {span["span_id"]: span for span in spans}
        self._started: dict[str, trace.Span] = {}
        self.exceptions = {span["span_id"]: _exception(span["probe"]) for span in spans}
        self._end_times = {span["span_id"]: now + number for number, span in enumerate(spans)}  # ns; no two are equal

    def start(self, span: RecordedSpan) -> None:
        """Start *span*, after its ancestors, unless it has started."""
        if span["span_id"] not in self._started:
            if span["parent_id"] in self._spans:
                self.start(self._spans[span["parent_id"]])
            probe, exception = span["probe"], self.exceptions[span["span_id"]]
            at_start = exception if probe["exc_same_as_at_start"] else None
            _call(partial(self._start_now, span), probe.get("start_thread", OWN_THREAD), at_start)

    def _start_now(self, span: RecordedSpan) -> None:
        trace_id, span_id, parent_id = (int(span[key] or "0", 16) for key in ("trace_id", "span_id", "parent_id"))
        parent = trace.SpanContext(trace_id, parent_id, is_remote=False, trace_flags=trace.TraceFlags(1))
        at_start = span["probe"]["attributes_at_on_start"]
        tracer = self.provider.get_tracer(*span["scope"])
        assert isinstance(tracer, Tracer)
        tracer.id_generator = ids = RandomIdGenerator()  # only for this tracer: delivery spans get random ids
        ids.generate_trace_id = lambda: trace_id  # type: ignore[method-assign]  # -- shorter than a class
        ids.generate_span_id = lambda: span_id  # type: ignore[method-assign]  # -- the same
        self._started[span["span_id"]] = tracer.start_span(
            span["name"],
            trace.set_span_in_context(trace.NonRecordingSpan(parent), Context()),  # invalid for a root span
            trace.SpanKind[span["kind"]],
            {key: value for key, value in span["attributes"].items() if key in at_start},
            start_time=self._end_times[span["span_id"]] - round(span["duration_ms"] * 1e6),
        )

    def end(self, span: RecordedSpan) -> None:
        """Set the recorded attributes, events and status of *span*, and end it."""
        started, end_time, status = self._started[span["span_id"]], self._end_times[span["span_id"]], span["status"]
        started.set_attributes(span["attributes"])
        for event in span["events"]:
            started.add_event(event["name"], event["attributes"], end_time)
        started.set_status(trace.Status(trace.StatusCode[status["code"]], status["description"]))
        started.end(end_time)


def _call(function: Callable[[], None], thread: str, exception: BaseException | None) -> None:
    """Call *function* in a thread named *thread*, while *exception* is in flight."""
    if thread == OWN_THREAD:
        call_in_flight(exception, function)
        return
    with ThreadPoolExecutor(1, initializer=lambda: setattr(threading.current_thread(), "name", thread)) as pool:
        pool.submit(call_in_flight, exception, function).result()


def call_in_flight(exception: BaseException | None, function: Callable[[], object]) -> None:
    """Call *function* while `sys.exc_info()` shows *exception*; None: without an exception."""
    if exception is None:
        function()
        return
    try:
        raise exception
    except type(exception):
        function()


def _exception(probe: dict[str, Any]) -> BaseException | None:
    """Make the exception that was in flight at the end, if any; the members of a group were not recorded."""
    if probe["exc_info_at_on_end"] is None:
        return None
    kind: type[BaseException] = BaseException
    for module, _, name in (full.rpartition(".") for full in reversed(probe["exc_mro"])):
        known = module in _STDLIB
        kind = getattr(importlib.import_module(module), name) if known else type(name, (kind,), {"__module__": module})
    message = probe["exc_info_at_on_end"].partition(": ")[2]
    if issubclass(kind, BaseExceptionGroup):
        return kind(message.rpartition(" (")[0], [Exception("not recorded")])  # str() of a group appends its size
    return kind(message) if message else kind()
