"""The rules of every profile, and the reader that asks them, on spans with arbitrary content."""

import asyncio
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count

from emitting import size_of, started
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event, ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags, set_span_in_context
from profile_examples import ELSEWHERE, EXAMPLES, Example

from otel_step_hook._sdk import live_attributes
from otel_step_hook.steps.event import MAX_STEP_ID, SCOPE, Outcome, StepEvent, step_id_text
from otel_step_hook.steps.frameworks import PROFILES
from otel_step_hook.steps.profile import Attributes, FrameworkProfile, Verdict
from otel_step_hook.steps.reader import StepReader
from otel_step_hook.steps.spans import StartedSpan


class CallDeferred(Exception):  # noqa: N818 -- pydantic-ai's own name
    """A pause."""


_TOO_LONG = "x" * (MAX_STEP_ID + 1)
_any_text = st.text(st.characters(exclude_categories=()), max_size=20)
# Attributes, values and names that the rules look for, so that many of the spans are steps.
_KEYS = sorted(
    {key for profile in PROFILES for key in profile.required_attributes}
    | {"step.status", "error.type", "gen_ai.tool.call.id", "traceloop.entity.name", "logfire.span_type"}
    | {"operationUUID", "dbos.operation.workflow_id", "step_number", "temporalRunID", "prefect.run.id", "event_id"}
    | {"strands.cancellation.type", "airflow.task_instance.state", "crewai.event_name", "gen_ai.task.id"}
    | {"pydantic_ai.tool.deferral.name", "traceloop.association.properties.langgraph_checkpoint_ns"}
    | {"parameter.error_type", "parameter.error_traceback", "parameter.agent_id", "parameter.run_id"}
)
_TEXTS = (
    *("execute_tool", "invoke_node", "execute_task", "execute_method", "task", "tool", "step", "CHAIN", "plan"),
    *("<not specified>", "unknown", "success", "failed", "Cancelled", "skip", "deferred", "method_execution_paused"),
    *("CancelledError", "GeneratorExit", "ValueError", "pending_span", "step-1", "Unknown", "None", "", " ", _TOO_LONG),
    *("Traceback (most recent call last):\nasyncio.exceptions.CancelledError: why",),
)
_NAMES = (
    *("plan", "turn", "Step 1", "Flow.run", "Flow.plan", "RunActivity:x", "x.task", "x.tool", "task_run.x"),
    *("execute_event_loop_cycle", "invoke_agent x", "execute_tool x", "execute_tool (merged)", "invoke_node x"),
    *("autogen process x", "haystack.agent.step", "haystack.component.run"),
    *("StepManager.log_step_async", "StepManager.update_step_error_async", "StepManager.update_step_success_async"),
)
_SCOPES = sorted({scope for profile in PROFILES for scope in profile.scopes} | {SCOPE, ELSEWHERE})
_names = st.sampled_from(_NAMES) | _any_text
_metadata = st.builds(
    lambda node, checkpoint, length: json.dumps({"langgraph_node": node, "langgraph_checkpoint_ns": checkpoint})[
        :length
    ],
    _names,
    _any_text,
    st.integers(0, 80) | st.none(),
)
_scalars = (
    st.sampled_from(_TEXTS)
    | _metadata
    | _any_text.filter(lambda text: "langgraph_" not in text)
    | st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.binary(max_size=20)
)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(_any_text, inner, max_size=3),
    max_leaves=3,
)
_attributes = st.dictionaries(st.sampled_from(_KEYS) | _any_text, _values, max_size=6)
_exceptions = st.none() | st.sampled_from(
    [ValueError, CallDeferred, GeneratorExit, asyncio.CancelledError, KeyboardInterrupt]
).map(lambda kind: kind())
_events = st.lists(
    st.tuples(
        st.sampled_from(["exception", "span.cancelled", "SpanCancelledEvent", "retry"]),
        st.dictionaries(st.sampled_from(["exception.type", "prefect.state.type"]) | _any_text, _values, max_size=3),
    ),
    max_size=3,
)
_statuses = st.builds(Status, st.just(StatusCode.ERROR), st.none() | st.sampled_from(_TEXTS)) | st.sampled_from(
    [StatusCode.UNSET, StatusCode.OK]
).map(Status)


class _Counting(IdGenerator):
    """Generates the same ids in each run."""

    def __init__(self) -> None:
        self._ids = count(1)

    def generate_span_id(self) -> int:
        return next(self._ids)

    def generate_trace_id(self) -> int:
        return 1


@dataclass(frozen=True)
class _SpanSpec:
    """How a span is made: *parent* is the index of an earlier span, *order* the position of its end; None: no end.

    *in_flight* are the exceptions in flight at its start and at its end.
    """

    scope: str
    name: str
    at_start: Mapping[str, object]
    later: Mapping[str, object]
    events: list[tuple[str, Mapping[str, object]]]
    status: Status
    in_flight: tuple[BaseException | None, BaseException | None]
    parent: int
    order: int | None


_specs = st.builds(
    _SpanSpec,
    scope=st.sampled_from(_SCOPES),
    name=_names,
    at_start=_attributes,
    later=_attributes,
    events=_events,
    status=_statuses,
    in_flight=st.tuples(_exceptions, _exceptions) | _exceptions.map(lambda same: (same, same)),
    parent=st.integers(0, 3),
    order=st.none() | st.integers(0, 3),
)


def _as_a_step(spec: _SpanSpec, example: Example, *, is_seen_at_start: bool) -> _SpanSpec:
    """Return the same span with the scope, name and attributes of *example*, set at its start or later."""
    spec = replace(spec, scope=example.scope or ELSEWHERE, name=example.name)
    if is_seen_at_start:
        return replace(spec, at_start={**spec.at_start, **example.attributes})
    return replace(spec, later={**spec.later, **example.attributes})


_steps = st.builds(_as_a_step, _specs, st.sampled_from(EXAMPLES), is_seen_at_start=st.booleans())
_several = st.lists(_steps | _specs, max_size=4)


class _Reading(SpanProcessor):
    """Calls a reader with each span and with *in_flight*, and keeps its events and losses."""

    def __init__(self) -> None:
        self.reader = StepReader(PROFILES, on_loss=lambda error: self.losses.append(str(error)))
        self.in_flight: BaseException | None = None
        self.events: list[StepEvent] = []
        self.losses: list[str] = []

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        del parent_context
        self.reader.on_start(span, self.in_flight)

    def on_end(self, span: ReadableSpan) -> None:
        self.events.extend(event for event, _ in self.reader.on_end(span, lambda: self.in_flight))


def _read(spans: list[_SpanSpec], rand: random.Random | None = None, reading: _Reading | None = None) -> _Reading:
    """Make *spans*, and return the reading of them; with *rand*, their attributes are set in another order."""
    reading = reading or _Reading()
    provider = TracerProvider(id_generator=_Counting(), shutdown_on_exit=False)
    provider.add_span_processor(reading)
    started_spans: list[trace.Span] = []
    for spec in spans:
        reading.in_flight = spec.in_flight[0]
        parent = started_spans[spec.parent] if spec.parent < len(started_spans) else None
        context = Context() if parent is None else set_span_in_context(parent, Context())
        attributes = _shuffled(spec.at_start, rand)
        tracer = provider.get_tracer(spec.scope)
        span = tracer.start_span(spec.name, context, attributes=attributes, start_time=1)  # type: ignore[arg-type]  # -- values of any type
        started_spans.append(span)
    for order in range(4):
        for spec, span in zip(spans, started_spans, strict=True):
            if spec.order == order:
                span.set_attributes(_shuffled(spec.later, rand))  # type: ignore[arg-type]  # -- see above
                for name, event_attributes in spec.events:
                    span.add_event(name, event_attributes, timestamp=1)  # type: ignore[arg-type]  # -- see above
                span.set_status(spec.status)
                reading.in_flight = spec.in_flight[1]
                span.end(2)
    return reading


def _shuffled(attributes: Mapping[str, object], rand: random.Random | None) -> dict[str, object]:
    items = list(attributes.items())
    if rand is not None:
        rand.shuffle(items)
    return dict(items)


def _named(name: str, attributes: Attributes) -> StartedSpan:
    return started(ReadableSpan(name), attributes)


@given(_names, _attributes)
def test_the_rules_of_every_profile_accept_any_span(name: str, attributes: Attributes) -> None:
    """Each rule about steps, parts and children returns a bool for any name and attributes."""
    span = _named(name, attributes)
    span.parent = _named(name, attributes)
    for profile in map(FrameworkProfile.of, PROFILES):
        for rule in (profile.is_step, profile.is_part, profile.may_be_step, profile.ends_children):
            assert rule is None or rule(span) in {True, False}


@given(_attributes)
def test_the_step_id_rule_of_every_profile_accepts_any_attributes(attributes: Attributes) -> None:
    """Each rule for step ids returns an id that has a text, or none; only an id that is too long raises."""
    span = _named("span", attributes)
    span.facts = attributes
    for profile in PROFILES:
        message = ""
        try:
            step_id_text(profile.step_id(span))
        except ValueError as error:
            message = str(error)
        assert not message or "at most" in message


@given(_names, _attributes)
def test_the_details_that_a_profile_reads_are_text(name: str, attributes: Attributes) -> None:
    """Details are a step id and names with values, and none of these texts is empty."""
    for profile in map(FrameworkProfile.of, PROFILES):
        found = None if profile.details is None else profile.details(_named(name, attributes))
        if found is not None:
            step_id, details = found
            assert all(isinstance(text, str) and text for text in (step_id, *details, *details.values()))


_by_hand = st.builds(
    ReadableSpan,
    name=_names,
    context=st.just(SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1))),
    attributes=st.none() | _attributes,
    events=_events.map(lambda events: [Event(name, attributes) for name, attributes in events]),
    status=_statuses,
)


@given(_by_hand, _exceptions)
def test_the_outcome_of_every_profile_is_one_or_none(span: ReadableSpan, in_flight: BaseException | None) -> None:
    """Each rule for outcomes returns an outcome, a verdict or None."""
    for profile in PROFILES:
        assert profile.outcome(started(span), in_flight) in {*Outcome, *Verdict, None}


@given(_by_hand, _exceptions, st.randoms())
def test_the_outcome_of_every_profile_does_not_depend_on_the_order_of_attributes(
    span: ReadableSpan, in_flight: BaseException | None, rand: random.Random
) -> None:
    """The same attributes in another order give the same outcome, and make the same spans steps."""
    usual, shuffled = started(span), started(span, _shuffled(live_attributes(span), rand))
    for profile in PROFILES:
        assert profile.outcome(shuffled, in_flight) is profile.outcome(usual, in_flight)
        assert profile.is_step(shuffled) == profile.is_step(usual)


@given(_several)
def test_every_span_reports_one_complete_step_or_nothing(spans: list[_SpanSpec]) -> None:
    """Each event has an id, an outcome and a span of its own; a step is lost only if its id is too long."""
    reading = _read(spans)
    assert all("at most" in loss for loss in reading.losses)
    for event in reading.events:
        assert event.outcome in Outcome
        assert 0 < len(event.step_id) <= MAX_STEP_ID
        assert (event.start_time, event.end_time) == (1, 2)
        assert event.name == spans[event.context.span_id - 1].name
    reported = [event.context.span_id for event in reading.events]
    assert len(reported) == len(set(reported))


@given(_several)
def test_a_reader_keeps_nothing_of_spans_that_have_ended(spans: list[_SpanSpec]) -> None:
    """The reader does not grow when the same spans are made a second time."""
    spans = [replace(spec, order=spec.order or 0) for spec in spans]
    reading = _read(spans)
    before = size_of(reading.reader)
    _read(spans, reading=reading)
    assert size_of(reading.reader) == before


@given(_several, st.randoms())
def test_the_order_in_which_attributes_are_set_does_not_matter(spans: list[_SpanSpec], rand: random.Random) -> None:
    """The same attributes in another order give the same events and losses."""
    one, other = _read(spans), _read(spans, rand)
    assert one.events == other.events
    assert one.losses == other.losses
