"""What the processor costs the application, counted in Python calls: a clock would measure the machine."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType

import pytest
from opentelemetry.sdk.trace import ReadableSpan, Span
from support import NewPipeline, Pipeline


def span_under_way(pipeline: Pipeline, attributes: dict[str, str]) -> Span:
    """A span with these attributes, of a scope that no profile names."""
    span = pipeline.tracer.start_span("span", attributes=attributes)
    assert isinstance(span, Span)
    return span


@pytest.fixture
def calls() -> Iterator[Callable[[Callable[[ReadableSpan], object], ReadableSpan], Counter[str]]]:
    """Counts the Python functions that a call makes, itself included."""

    def count(on_end: Callable[[ReadableSpan], object], span: ReadableSpan) -> Counter[str]:
        counts: Counter[str] = Counter()

        def note(frame: FrameType, event: str, _: object) -> None:
            if event == "call":
                counts[frame.f_code.co_qualname] += 1

        usual = sys.getprofile()
        sys.setprofile(note)
        try:
            on_end(span)
        finally:
            sys.setprofile(usual)
        return counts

    yield count
    sys.setprofile(None)


@pytest.mark.parametrize("attributes", [0, 8, 20, 60])
@pytest.mark.parametrize("steps_under_way", [0, 1000])
def test_a_span_that_is_no_step_costs_two_calls(
    attributes: int, steps_under_way: int, pipeline: NewPipeline, calls: Callable[..., Counter[str]]
) -> None:
    """However many attributes it has, and however many steps are under way."""
    hooked = pipeline()
    steps = [hooked.tracer.start_span("step", attributes={"step_id": str(n)}) for n in range(steps_under_way)]
    span = span_under_way(hooked, {f"key.{number}": "value" for number in range(attributes)})
    counts = calls(hooked.hook.on_end, span._readable_span())
    assert len(steps) == steps_under_way
    assert counts.total() == 2, counts


def test_a_step_costs_at_most_55_calls(pipeline: NewPipeline, calls: Callable[..., Counter[str]]) -> None:
    """On the thread of the application; all else is done on our own."""
    hooked = pipeline()
    step = span_under_way(hooked, {"step_id": "step-1"})
    counts = calls(hooked.hook.on_end, step._readable_span())
    assert hooked.hook.force_flush()
    assert counts.total() <= 55, counts
