"""The processor given what is no span, or a span of which little can be told: the application notices nothing."""

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lines import Lines
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import INVALID_SPAN_CONTEXT, NonRecordingSpan, SpanContext
from support import pipeline

from otel_step_hook import StepHookProcessor, StepHookSettings
from otel_step_hook.testing import ScriptedReceiver

_CONTEXT = SpanContext(trace_id=1, span_id=2, is_remote=False)


@pytest.fixture
def hook() -> Iterator[StepHookProcessor]:
    """A hook without a provider, whose thread has ended in the end."""
    alone = StepHookProcessor(StepHookSettings(webhook="http://127.0.0.1:9/"))
    yield alone
    alone.shutdown()


class _Hostile:
    """Raises at every touch, as a proxy whose other end is gone."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError(name)


_OWN = InstrumentationScope("otel_step_hook")
_ANYTHING = {
    "None": None,
    "a number": 5,
    "an object": object(),
    "a hostile object": _Hostile(),
    "a span that records nothing": NonRecordingSpan(_CONTEXT),
    "a span without a context": ReadableSpan("step", attributes={"step_id": "1"}),
    "a span of no trace": ReadableSpan("step", context=INVALID_SPAN_CONTEXT, attributes={"step_id": "1"}),
    "a span without times": ReadableSpan("step", context=_CONTEXT, attributes={"step_id": "1"}),
    "a span of our own": ReadableSpan(
        "step", context=_CONTEXT, attributes={"step_id": "1"}, instrumentation_scope=_OWN
    ),
    "a span of strange attributes": ReadableSpan("step", context=_CONTEXT, attributes=_Hostile()),  # type: ignore[arg-type]  # -- on purpose
}


@pytest.mark.parametrize("span", _ANYTHING.values(), ids=_ANYTHING)
@pytest.mark.parametrize("is_step", [None, lambda _: True])
def test_nothing_that_it_is_given_makes_it_raise(
    span: object, is_step: Callable[[ReadableSpan], bool] | None, step_receiver: ScriptedReceiver
) -> None:
    """Whatever comes in place of a span, the application goes on, and so does the hook."""
    with pipeline(step_receiver.url, is_step=is_step) as hooked:
        hooked.hook.on_start(span)  # type: ignore[arg-type]  # -- on purpose
        hooked.hook.on_end(span)  # type: ignore[arg-type]  # -- on purpose
        hooked.end_step("next")
    assert "next" in {webhook.step_id for webhook in step_receiver.received}


def test_what_cannot_be_read_is_told(hook: StepHookProcessor) -> None:
    """A fault at a span's start lost nothing; one at its end lost a step: the log tells which."""
    with Lines() as lines:
        hook.on_start(_Hostile())  # type: ignore[arg-type]  # -- on purpose
        assert lines.wait_for("a fault of otel-step-hook: RuntimeError").levelname == "ERROR"
        hook.on_end(_Hostile())  # type: ignore[arg-type]  # -- on purpose
        assert lines.wait_for("dropped a step (unreadable): RuntimeError").levelname == "ERROR"


@pytest.mark.parametrize("name", ["a span without a context", "a span of no trace"])
def test_a_step_without_ids_is_dropped_and_told(name: str, hook: StepHookProcessor) -> None:
    """No delivery could be recorded below it, and its webhook could not be told from others."""
    with Lines() as lines:
        hook.on_end(_ANYTHING[name])  # type: ignore[arg-type]  # -- on purpose
        lines.wait_for("dropped a step (unreadable): ")
    assert hook.force_flush(0)


_keys = st.sampled_from(["step_id", "step.id", "step.status", "error.type"]) | st.text()
_values = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.lists(st.text())


def test_no_attributes_make_it_raise(hook: StepHookProcessor) -> None:
    """Any attributes at all: a span starts and ends as if nobody listened, and nothing is kept."""
    hook.shutdown()  # what is submitted from now on is dropped

    @given(st.dictionaries(_keys, _values))
    def start_and_end(attributes: dict[str, object]) -> None:
        span = ReadableSpan("step", context=_CONTEXT, attributes=attributes)  # type: ignore[arg-type]  # -- on purpose
        hook.on_start(span)  # type: ignore[arg-type]  # -- on purpose
        hook.on_end(span)
        assert hook._reader._notes == {}

    start_and_end()
