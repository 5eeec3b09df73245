"""What the end of a span costs the application's thread, counted in operations of the interpreter, never by a clock.

A budget that is exceeded shows that work came to the application's thread; `make bench` shows what it takes.
"""

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from otel_step_hook import StepHookProcessor

# Operations of Python's interpreter in `on_end`, for each Python that is tested, and some room for the next one.
_NO_STEP = 160
_STEP = 1000


class _Ended(SpanProcessor):
    """Passes the start of spans to a hook, and keeps the spans that have ended."""

    def __init__(self, hook: StepHookProcessor) -> None:
        self.on_start = hook.on_start  # type: ignore[method-assign]
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


def _operations(call: Callable[[], object]) -> int:
    """How many operations the interpreter executes in functions that *call* calls."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    usual = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(usual)
    return count


@pytest.fixture
def hook(closed_port: int) -> Iterator[StepHookProcessor]:
    """A hook whose worker runs, and whose webhooks all wait."""
    hook = StepHookProcessor(f"http://127.0.0.1:{closed_port}/", initial_backoff=3600, shutdown_timeout=1)
    _on_end(hook, 0, step_id="step-0")
    yield hook
    hook.shutdown()


def _on_end(hook: StepHookProcessor, attributes: int, *, open_steps: int = 0, **own: str) -> int:
    """The operations of `hook.on_end` for a span with so many *attributes* besides its *own*."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(ended := _Ended(hook))
    tracer = provider.get_tracer("tests")
    steps = [tracer.start_span("step", attributes={"step_id": str(number)}) for number in range(open_steps)]
    for _ in range(2):  # the first of a scope finds its profiles
        tracer.start_span(
            "span", attributes={**{f"key.{number}": "value" for number in range(attributes)}, **own}
        ).end()
    hook.on_end(ended.spans[0])
    count = _operations(lambda: hook.on_end(ended.spans[1]))
    del steps
    return count


def test_a_span_that_is_no_step_costs_the_same_however_much_there_is(hook: StepHookProcessor) -> None:
    """Neither the attributes of the span nor the open steps are walked through."""
    counts = {
        (attributes, open_steps): _on_end(hook, attributes, open_steps=open_steps)
        for attributes in (1, 8, 60)
        for open_steps in (0, 1000)
    }
    assert set(counts.values()) == {counts[1, 0]}
    assert 0 < counts[1, 0] <= _NO_STEP


def test_a_step_costs_the_same_however_many_wait(hook: StepHookProcessor) -> None:
    """What can wait is left to the worker's thread, and what waits there is not walked through."""
    first = _on_end(hook, 8, step_id="step-1")
    for number in range(500):
        _on_end(hook, 0, step_id=f"step-{number}")
    assert 0 < first <= _STEP
    assert abs(_on_end(hook, 8, step_id="step-2") - first) < _NO_STEP  # a wake-up is sent, or is under way


def test_the_count_sees_more_work() -> None:
    """One look at each of 60 attributes exceeds the budget."""
    attributes = {f"key.{number}": "value" for number in range(60)}
    assert _operations(lambda: [name for name in attributes if name == "step_id"]) > _NO_STEP
