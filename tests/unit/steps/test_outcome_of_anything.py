"""The outcome of steps whose spans have arbitrary content."""

import asyncio
import random

from emitting import started
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Status, StatusCode

from otel_step_hook._sdk import live_attributes
from otel_step_hook.steps.event import Outcome
from otel_step_hook.steps.frameworks import GENERIC
from otel_step_hook.steps.outcome import CANCELLATIONS, CONTROL_FLOW, PAUSES, outcome_of


class GraphInterrupt(Exception):  # noqa: N818 -- LangGraph's own name
    """A pause."""


_any_text = st.text(st.characters(exclude_categories=()))
_names = st.sampled_from(sorted(CANCELLATIONS | PAUSES | CONTROL_FLOW | {"ValueError", "_OTHER", "503", ""}))
_kinds = _names | _names.map(lambda name: f"some.module.{name}") | _any_text
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.binary() | _kinds
_anything = _scalars | st.lists(_scalars).map(tuple) | st.dictionaries(_any_text, _scalars)
_attributes = st.dictionaries(st.sampled_from(["step.status", "error.type", "step_id"]) | _any_text, _anything)
_events = st.lists(
    st.builds(
        Event,
        name=st.sampled_from(["exception", "retry"]),
        attributes=st.none() | st.dictionaries(st.just("exception.type") | _any_text, _anything),
    )
)
_leaves = st.sampled_from(
    [ValueError, TimeoutError, GraphInterrupt, StopIteration, GeneratorExit, asyncio.CancelledError, SystemExit]
).map(lambda kind: kind())
_exceptions = st.recursive(
    _leaves, lambda inner: st.lists(inner, min_size=1).map(lambda some: BaseExceptionGroup("group", some)), max_leaves=5
)
_spans = st.builds(
    ReadableSpan,
    name=_any_text,
    status=st.builds(Status, st.just(StatusCode.ERROR), st.none() | _kinds | _kinds.map(lambda kind: f"{kind}: why"))
    | st.sampled_from([StatusCode.UNSET, StatusCode.OK]).map(Status),
    events=_events,
    attributes=st.none() | _attributes,
)


@given(_spans, st.none() | _exceptions)
def test_every_span_has_an_outcome_or_has_paused(span: ReadableSpan, in_flight: BaseException | None) -> None:
    """Any span is classified without an error, and is not changed."""
    before = repr((span.attributes, span.events, span.status))
    assert outcome_of(started(span), in_flight, GENERIC) in {*Outcome, None}
    assert repr((span.attributes, span.events, span.status)) == before


@given(_spans, st.none() | _exceptions, st.randoms())
def test_the_order_of_attributes_does_not_matter(
    span: ReadableSpan, in_flight: BaseException | None, rand: random.Random
) -> None:
    """The same attributes in another order give the same outcome."""
    items = list(live_attributes(span).items())
    rand.shuffle(items)
    assert outcome_of(started(span, dict(items)), in_flight, GENERIC) is outcome_of(started(span), in_flight, GENERIC)


@given(_spans, _leaves)
def test_a_cancellation_in_flight_is_never_a_success(span: ReadableSpan, in_flight: BaseException) -> None:
    """Without ``step.status``, a cancellation that passes through a step makes it cancelled, whatever its span has."""
    attributes = {key: value for key, value in live_attributes(span).items() if key != "step.status"}
    is_cancellation = isinstance(in_flight, asyncio.CancelledError | SystemExit)
    assert not is_cancellation or outcome_of(started(span, attributes), in_flight, GENERIC) is Outcome.CANCELLED


@given(_spans)
def test_a_span_without_the_name_of_a_pause_is_reported(span: ReadableSpan) -> None:
    """A span has an outcome unless its status, attributes or events name a pause."""
    text = f"{span.status.description} {span.attributes} {[event.attributes for event in span.events]}"
    has_pause = any(pause in text for pause in PAUSES)
    assert has_pause or outcome_of(started(span), None, GENERIC) is not None
