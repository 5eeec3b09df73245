"""Makes spans as frameworks make them, ends them in different ways, and collects the steps that are reported."""

import gc
import sys
import types
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import pytest
from corpus_replay import call_in_flight
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace import Span as SDKSpan
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context, use_span

from otel_step_hook.steps.event import Outcome, StepEvent, generated_step_id
from otel_step_hook.steps.frameworks import PROFILES
from otel_step_hook.steps.profile import Profile
from otel_step_hook.steps.reader import StepReader
from otel_step_hook.steps.spans import StartedSpan

SUCCESS, FAILED, CANCELLED = Outcome
UNSET, OK, ERROR = StatusCode
Value = str | bool | int | float | list[str]
Attributes = Mapping[str, Value]


class Step(NamedTuple):
    """A step that has ended."""

    name: str
    step_id: str
    outcome: Outcome


def ended(name: str, step_id: str, outcome: Outcome | None) -> list[Step]:
    """Return the steps that a span is expected to report: one, or none if *outcome* is None because it has paused."""
    return [] if outcome is None else [Step(name, step_id, outcome)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a span ends: what is set on it before its end, and the exception that is in flight at its end."""

    status: StatusCode = UNSET
    description: str | None = None
    events: tuple[tuple[str, Attributes], ...] = ()
    attributes: Attributes = field(default_factory=dict)
    in_flight: type[BaseException] | None = None


RETURNED, IS_OK = Ending(), Ending(status=OK)


def in_flight(exception: type[BaseException], status: StatusCode = UNSET) -> Ending:
    """Return an ending while *exception* passes through the span, and is not recorded on it."""
    return Ending(status=status, in_flight=exception)


def recorded(kind: str, in_flight: type[BaseException] | None = None, **fields: Any) -> Ending:
    """Return an ending with an `exception` event of type *kind* and the status ERROR; *fields* replace both."""
    defaults: dict[str, Any] = {
        "status": ERROR,
        "events": (("exception", {"exception.type": kind}),),
        "in_flight": in_flight,
    }
    return Ending(**(defaults | fields))


def endings(**shapes: tuple[Ending, Outcome | None]) -> pytest.MarkDecorator:
    """Parametrize a test with an ending and the expected outcome; None: the step has not ended."""
    return pytest.mark.parametrize(("ending", "outcome"), list(shapes.values()), ids=list(shapes))


def end(span: Span, ending: Ending = RETURNED, end_time: int | None = None) -> None:
    """End *span* with *ending*; *end_time* in unix nanoseconds, None: now."""
    span.set_attributes(ending.attributes)
    for name, attributes in ending.events:
        span.add_event(name, attributes)
    span.set_status(Status(ending.status, ending.description))
    call_in_flight(ending.in_flight() if ending.in_flight else None, partial(span.end, end_time))


def generated_id(span: Span) -> str:
    """Return the step id that is generated for a span without one."""
    return generated_step_id(span.get_span_context())


class StepRecorder(SpanProcessor):
    """Calls a `StepReader` as `StepHookProcessor` does, keeps its events, and raises the errors of lost steps."""

    def __init__(self, profiles: Iterable[Profile] = PROFILES) -> None:
        self.losses: list[Exception] = []
        self.reader = StepReader(profiles, on_loss=self.losses.append)
        self.events: list[StepEvent] = []

    def on_start(self, span: SDKSpan, parent_context: Context | None = None) -> None:
        del parent_context
        self.reader.on_start(span, sys.exception())

    def on_end(self, span: ReadableSpan) -> None:
        self.events.extend(event for event, _ in self.reader.on_end(span, sys.exception))
        if self.losses:
            raise self.losses.pop()


def started(span: ReadableSpan, attributes: Mapping[str, Any] | None = None) -> StartedSpan:
    """Return the `StartedSpan` of a span that a test has made; *attributes* replace the span's own, if given."""
    view = StartedSpan.of(span, lambda _: None, {})
    view.ended = span
    view.attributes = view.attributes if attributes is None else attributes
    return view


def size_of(reader: StepReader) -> int:
    """Count the objects that can be reached from *reader*, without modules, classes, functions and integers."""
    found: dict[int, object] = {}
    rest: list[object] = [reader]
    while rest:
        one = rest.pop()
        if id(one) not in found and not isinstance(one, type | types.ModuleType | types.FunctionType | int):
            found[id(one)] = one
            rest += gc.get_referents(one)
    return len(found)


class Framework:
    """Makes spans of the instrumentation scope *scope*, and collects the steps that are reported when they end."""

    def __init__(self, scope: str, profiles: Iterable[Profile] = PROFILES, limits: SpanLimits | None = None) -> None:
        self.scope = scope
        self.recorder = StepRecorder(profiles)
        self.provider = TracerProvider(span_limits=limits, shutdown_on_exit=False)
        self.provider.add_span_processor(self.recorder)

    @property
    def steps(self) -> list[Step]:
        return [Step(event.name, event.step_id, event.outcome) for event in self.recorder.events]

    def start(
        self,
        name: str,
        attributes: Attributes | None = None,
        *,
        later: Attributes | None = None,
        below: Span | None = None,
        scope: str | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> Span:
        """Start a span with *attributes*, whose parent is *below*, and set the attributes *later* after its start."""
        context = Context() if below is None else set_span_in_context(below, Context())
        span = self.provider.get_tracer(scope or self.scope).start_span(name, context, kind, attributes)
        span.set_attributes(later or {})
        return span

    def emit(self, name: str, attributes: Attributes | None = None, *, ending: Ending = RETURNED, **more: Any) -> Span:
        """Start a span as `start` does, and end it with *ending*."""
        span = self.start(name, attributes, **more)
        end(span, ending)
        return span

    def run(self, name: str, attributes: Attributes | None = None, raising: type[BaseException] | None = None) -> Span:
        """Start a span around a block that raises *raising*, if given, and end it by the SDK's context manager."""
        span = self.start(name, attributes)
        with suppress(raising or Exception), use_span(span, end_on_exit=True):
            if raising is not None:
                raise raising
        return span
