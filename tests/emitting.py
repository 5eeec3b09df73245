"""Spans as frameworks make them: when their attributes are set, how they end, and which steps end with them."""

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
from opentelemetry.trace import Span, Status, StatusCode, set_span_in_context, use_span

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
    """One step; none where *outcome* is None: it has only paused."""
    return [] if outcome is None else [Step(name, step_id, outcome)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What is said of a span at its end, and the exception that is in flight then."""

    status: StatusCode = UNSET
    description: str | None = None
    events: tuple[tuple[str, Attributes], ...] = ()
    attributes: Attributes = field(default_factory=dict)
    flying: type[BaseException] | None = None


RETURNED, IS_OK = Ending(), Ending(status=OK)


def in_flight(flying: type[BaseException], status: StatusCode = UNSET) -> Ending:
    """The span ends while the exception passes through it, which nobody has recorded."""
    return Ending(status=status, flying=flying)


def recorded(kind: str, flying: type[BaseException] | None = None, **said: Any) -> Ending:
    """The exception is recorded as an event, under the status ERROR if nothing else is *said*."""
    return Ending(**{"status": ERROR, "events": (("exception", {"exception.type": kind}),), "flying": flying, **said})


def endings(**shapes: tuple[Ending, Outcome | None]) -> pytest.MarkDecorator:
    """A test for each of these: how a span ends, and the outcome of its step; None: it has not ended."""
    return pytest.mark.parametrize(("ending", "outcome"), list(shapes.values()), ids=list(shapes))


def end(span: Span, ending: Ending = RETURNED, end_time: int | None = None) -> None:
    """End *span* so; *end_time* in unix nanoseconds."""
    span.set_attributes(ending.attributes)
    for name, attributes in ending.events:
        span.add_event(name, attributes)
    span.set_status(Status(ending.status, ending.description))
    call_in_flight(ending.flying() if ending.flying else None, partial(span.end, end_time))


def made_id(span: Span) -> str:
    """The step id of a span that has none."""
    return generated_step_id(span.get_span_context())


class StepRecorder(SpanProcessor):
    """Keeps the events of a reader with these profiles, which it asks as the processor does."""

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
    """What the rules read of a span that was made by hand; with other *attributes*, if they are given."""
    made = StartedSpan.of(span, lambda _: None, {})
    made.ended = span
    made.attributes = made.attributes if attributes is None else attributes
    return made


def size_of(reader: StepReader) -> int:
    """How many objects *reader* keeps, in whatever it keeps them; code aside."""
    found: dict[int, object] = {}
    rest: list[object] = [reader]
    while rest:
        one = rest.pop()
        if id(one) not in found and not isinstance(one, type | types.ModuleType | types.FunctionType | int):
            found[id(one)] = one
            rest += gc.get_referents(one)
    return len(found)


class Framework:
    """Makes spans of instrumentation scope *scope*, and keeps the steps that end with them."""

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
    ) -> Span:
        """A span that begins with *attributes*, and gets those of *later* after its start."""
        context = Context() if below is None else set_span_in_context(below, Context())
        span = self.provider.get_tracer(scope or self.scope).start_span(name, context, attributes=attributes)
        span.set_attributes(later or {})
        return span

    def emit(self, name: str, attributes: Attributes | None = None, *, ending: Ending = RETURNED, **more: Any) -> Span:
        """The same, and its end."""
        span = self.start(name, attributes, **more)
        end(span, ending)
        return span

    def run(self, name: str, attributes: Attributes | None = None, raising: type[BaseException] | None = None) -> Span:
        """A span around a block that may raise, as the SDK's own context manager ends it."""
        span = self.start(name, attributes)
        with suppress(raising or Exception), use_span(span, end_on_exit=True):
            if raising is not None:
                raise raising
        return span
