"""Events and resources as JSON: what an outbox stores, and what comes back from it."""

import json

import pytest
from delivering import event
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from otel_step_hook.delivery.serialization import event_from_json, event_json, resource_from_json, resource_json
from otel_step_hook.steps.event import Outcome, StepEvent

_ids = st.integers(1, 2**64 - 1)
_any_text = st.text(st.characters())  # lone surrogates and control characters, too
_events = st.builds(
    StepEvent,
    step_id=_any_text,
    outcome=st.sampled_from(Outcome),
    name=_any_text,
    context=st.builds(
        SpanContext,
        trace_id=st.integers(1, 2**128 - 1),
        span_id=_ids,
        is_remote=st.just(value=False),
        trace_flags=st.integers(0, 255).map(TraceFlags),
        trace_state=st.sampled_from([TraceState(), TraceState([("one", "1"), ("two", "a b")])]),
    ),
    start_time=st.integers(),
    end_time=st.integers(),
    details=st.dictionaries(_any_text, _any_text),
)


@given(_events)
def test_any_event_comes_back(step: StepEvent) -> None:
    """An event is the same after it was stored, whatever text it holds; the JSON is ASCII."""
    text = event_json(step)
    assert text.isascii()
    assert event_from_json(text) == step
    assert event_from_json(text).context.trace_state == step.context.trace_state


class Unprintable:
    """An object that fails when it is shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def _circular() -> list[object]:
    found: list[object] = []
    found.append(found)
    return found


def _deep() -> list[object]:
    found: list[object] = []
    for _ in range(100_000):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("details", "stored"),
    [
        ({"set": {1}}, {"set": "{1}"}),
        ({"bytes": b"x"}, {"bytes": "b'x'"}),
        ({("a", 1): "key"}, {"('a', 1)": "key"}),
        ({b"key": {"inside": 1}}, {"b'key'": "{'inside': 1}"}),
        ({"itself": _circular()}, {"itself": "[[...]]"}),
        ({"own": Unprintable()}, {"own": "Unprintable"}),
        ({Unprintable: Unprintable()}, {str(Unprintable): "Unprintable"}),
        ({"deep": _deep()}, {"deep": "list"}),
    ],
    ids=["set", "bytes", "key", "bytes key", "circular", "unprintable", "class", "deep"],
)
def test_details_that_are_no_json_become_text(details: dict[str, str], stored: object) -> None:
    """A profile's details may hold any object: none keeps an event, and those behind it, from being stored."""
    assert json.loads(event_json(event(details=details)))["details"] == stored


def test_a_name_that_is_no_string_becomes_text() -> None:
    """OpenTelemetry's SDK accepts any object as the name of a span."""
    assert event_from_json(event_json(event(name=("a", 1)))).name == "('a', 1)"


def test_equal_resources_have_one_hash() -> None:
    """A resource comes back with its attributes and schema, and is known by its hash."""
    first, second = (Resource({"name": "a \ud800", "list": [1, 2]}, "https://schema") for _ in range(2))
    assert resource_json(first) == resource_json(second)
    assert resource_json(first)[0] != resource_json(Resource({}))[0]
    found = resource_from_json(resource_json(first)[1])
    assert (dict(found.attributes), found.schema_url) == ({"name": "a \ud800", "list": (1, 2)}, "https://schema")
