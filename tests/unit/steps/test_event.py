"""Step ids: their text and its limit, generated ids, and the spans that the generic profile takes as steps."""

import enum
import json
import math
import re
import uuid

import pytest
from emitting import started
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext

from otel_step_hook.delivery.request import body, webhook_id
from otel_step_hook.steps.event import (
    MAX_STEP_ID,
    Outcome,
    StepEvent,
    generated_step_id,
    step_id_text,
)
from otel_step_hook.steps.frameworks import GENERIC

_any_text = st.text(st.characters(exclude_categories=()))
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.binary() | _any_text
# All types of attribute values that OpenTelemetry accepts.
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner).map(tuple) | st.dictionaries(_any_text.filter(bool), inner), max_leaves=8
)
_contexts = st.builds(
    SpanContext,
    trace_id=st.integers(1, 2**128 - 1),
    span_id=st.integers(1, 2**64 - 1),
    is_remote=st.booleans(),
)


class _Name(str, enum.Enum):  # noqa: UP042 -- str() of such a member is not its value
    STEP = "step-1"


class _Number(int, enum.Enum):
    STEP = 7


# step_id_text


def test_a_step_id_of_any_type_has_a_text() -> None:
    """Text and bytes are kept as they are, other values become JSON; no character is changed."""
    texts: list[tuple[object, str]] = [
        ("step-1", "step-1"),
        ("  step 1\t", "  step 1\t"),
        ("Schritt ü 🜚", "Schritt ü 🜚"),
        ("a\0b\x1b[31m\r\n", "a\0b\x1b[31m\r\n"),
        ("\ud800", "\ud800"),
        (_Name.STEP, "step-1"),
        (7, "7"),
        (_Number.STEP, "7"),
        (0, "0"),
        (True, "true"),
        (-0.5, "-0.5"),
        (math.nan, "NaN"),
        (b"step-1", "step-1"),
        (b"\xff\x00", "\\xff\x00"),
        (("a", 1, None), '["a", 1, null]'),
        ((_Name.STEP,), '["step-1"]'),
        ({"b": (b"z",), "a": {"c": math.inf}}, '{"a": {"c": Infinity}, "b": ["z"]}'),
        ((), "[]"),
        ({"a": {1}}, '{"a": "{1}"}'),  # not allowed as an attribute, but a `ReadableSpan` may be constructed with it
    ]
    assert {repr(value): step_id_text(value) for value, _ in texts} == {repr(value): text for value, text in texts}
    assert {type(step_id_text(value)) for value, _ in texts} == {str}


@pytest.mark.parametrize("value", [None, "", " \t\n", b"", b"  "])
def test_a_blank_step_id_is_ignored(value: object) -> None:
    """A blank id has the empty text, so that an id is generated instead."""
    assert step_id_text(value) == ""


@pytest.mark.parametrize("value", ["<not specified>", "Unknown", " none ", "null", b"undefined"])
def test_a_placeholder_is_no_step_id(value: object) -> None:
    """What frameworks write in place of an id would be the same for many steps."""
    assert step_id_text(value) == ""


def test_the_order_of_a_mapping_does_not_change_its_text() -> None:
    """Equal mappings give the same step id."""
    assert step_id_text({"run": 1, "step": 2}) == step_id_text({"step": 2, "run": 1})


def test_a_mapping_that_is_no_dict_is_written_as_one() -> None:
    """A read-only mapping, as the SDK gives for a span's attributes, has the text of a dict."""
    view = ReadableSpan("span", attributes={"a": 1}).attributes
    assert step_id_text((view,)) == '[{"a": 1}]'


def test_a_long_step_id_is_kept_whole() -> None:
    """A step id is not cut below the limit."""
    assert step_id_text("x" * 10_000) == "x" * 10_000
    assert step_id_text("x" * MAX_STEP_ID) == "x" * MAX_STEP_ID


@pytest.mark.parametrize("value", ["x" * (MAX_STEP_ID + 1), b"x" * (MAX_STEP_ID + 1), ("x" * MAX_STEP_ID,)])
def test_a_step_id_beyond_the_limit_is_refused(value: object) -> None:
    """An id that is too long raises an error, because a shortened id might be that of another step."""
    with pytest.raises(ValueError, match="a step id has 163"):
        step_id_text(value)


def test_a_number_beyond_python_s_limit_is_refused() -> None:
    """An integer with more digits than Python converts to text raises the same type of error."""
    with pytest.raises(ValueError, match="limit"):
        step_id_text(10**5000)


@given(_values, _contexts, st.sampled_from(Outcome), st.sampled_from(["step_id", "full"]))
def test_any_attribute_value_can_be_sent_as_a_step_id(
    value: object, context: SpanContext, outcome: Outcome, payload: str
) -> None:
    """Any attribute value that OpenTelemetry accepts becomes text, which arrives unchanged if it is valid."""
    text = step_id_text(value)
    event = StepEvent(text, outcome, "step", context, 0, 0)
    content = body(event, payload)
    assert content.isascii()
    # JSON reads two adjacent lone surrogates as the one character that they encode. Others are written out.
    joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    assert json.loads(content)["step_id"] == joined.encode("utf-8", "backslashreplace").decode()
    assert re.fullmatch(r"msg_[a-z2-7]{32}", webhook_id(event))


# generated_step_id


@given(_contexts)
def test_a_generated_step_id_is_a_uuid(context: SpanContext) -> None:
    """A generated id is ``step-`` and a UUID, as the specification says."""
    step_id = generated_step_id(context)
    assert step_id == f"step-{uuid.UUID(step_id.removeprefix('step-'))}"


@given(_contexts, _contexts)
def test_a_generated_step_id_belongs_to_one_span(one: SpanContext, other: SpanContext) -> None:
    """The id depends only on trace id and span id, and differs if one of them does."""
    is_same = (one.trace_id, one.span_id) == (other.trace_id, other.span_id)
    assert (generated_step_id(one) == generated_step_id(other)) == is_same


def test_a_generated_step_id_never_changes() -> None:
    """A newer version of the library generates the same id for the same span."""
    context = SpanContext(trace_id=1, span_id=2, is_remote=False)
    assert generated_step_id(context) == "step-996d7431-5907-546c-913a-92dc08756376"


# The generic profile's rule


@pytest.mark.parametrize(
    ("attributes", "is_step"),
    [({"step_id": "1"}, True), ({"step.id": None}, True), ({"step": "1"}, False), ({}, False)],
)
def test_a_generic_step_has_a_step_id(attributes: dict[str, object], *, is_step: bool) -> None:
    """The generic profile takes each span with ``step_id`` or ``step.id`` as a step, whatever the value is."""
    assert GENERIC.is_step(started(ReadableSpan("span"), attributes)) is is_step
