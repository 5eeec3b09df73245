"""The processor with objects that are no spans, and with incomplete spans: no exception reaches the application."""

import weakref
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import INVALID_SPAN_CONTEXT, NonRecordingSpan, SpanContext
from support import NewPipeline, log_lines

from otel_step_hook import StepHookProcessor, StepHookSettings
from otel_step_hook.testing import ScriptedReceiver

_CONTEXT = SpanContext(trace_id=1, span_id=2, is_remote=False)


@pytest.fixture
def hook() -> Iterator[StepHookProcessor]:
    """A hook without a provider, which is shut down at the end."""
    alone = StepHookProcessor(StepHookSettings(webhook="http://127.0.0.1:9/"))
    yield alone
    alone.shutdown()


class _Hostile:
    """Raises at any access to an attribute, like a proxy whose target is gone."""

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


@pytest.mark.parametrize("is_step", [None, lambda _: True])
def test_any_object_is_accepted_in_place_of_a_span(
    is_step: Callable[[ReadableSpan], bool] | None, pipeline: NewPipeline, step_receiver: ScriptedReceiver
) -> None:
    """Whatever object comes in place of a span, the application and the hook go on."""
    hooked, wrong = pipeline(is_step=is_step), {}
    for name, span in _ANYTHING.items():
        try:
            hooked.hook.on_start(span)  # type: ignore[arg-type]  # -- on purpose
            hooked.hook.on_end(span)  # type: ignore[arg-type]  # -- on purpose
        except Exception as error:  # noqa: BLE001 -- all that escape are reported
            wrong[name] = repr(error)
        hooked.end_step(f"after {name}")
        if f"after {name}" not in {webhook.step_id for webhook in step_receiver.received}:
            wrong[name] = "the next step did not arrive"
    assert not wrong, str(wrong)


def test_a_span_that_cannot_be_read_is_logged(hook: StepHookProcessor, caplog: pytest.LogCaptureFixture) -> None:
    """An error at a span's start loses nothing, one at its end loses a step; the log says which."""
    hook.on_start(_Hostile())  # type: ignore[arg-type]  # -- on purpose
    hook.on_end(_Hostile())  # type: ignore[arg-type]  # -- on purpose
    hook.shutdown()
    assert sorted(line.partition(" <- ")[0] for line in log_lines(caplog)) == [
        "ERROR a fault of otel-step-hook: RuntimeError",
        "ERROR dropped a step (unreadable, endpoint default): RuntimeError",
    ]


@pytest.mark.parametrize("name", ["a span without a context", "a span of no trace"])
def test_a_step_without_ids_is_dropped(name: str, hook: StepHookProcessor, caplog: pytest.LogCaptureFixture) -> None:
    """No delivery span could be below it, and other steps would have the same webhook id."""
    hook.on_end(_ANYTHING[name])  # type: ignore[arg-type]  # -- on purpose
    assert hook.force_flush(0)
    hook.shutdown()
    (line,) = log_lines(caplog)
    assert line.startswith("ERROR dropped a step (unreadable, endpoint default): ")


_keys = st.sampled_from(["step_id", "step.id", "step.status", "error.type"]) | st.text()
_values = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.lists(st.text())


def test_any_attributes_are_accepted(hook: StepHookProcessor) -> None:
    """A span with any attributes starts and ends without an exception, and is not kept in memory."""
    hook.shutdown()  # what is submitted from now on is dropped

    @given(st.dictionaries(_keys, _values))
    def start_and_end(attributes: dict[str, object]) -> None:
        span = ReadableSpan("step", context=_CONTEXT, attributes=attributes)  # type: ignore[arg-type]  # -- on purpose
        hook.on_start(span)  # type: ignore[arg-type]  # -- on purpose
        hook.on_end(span)
        alive = weakref.ref(span)
        del span
        assert alive() is None

    start_and_end()
