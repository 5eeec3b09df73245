"""What the processor costs the application, counted in Python calls: a clock would measure the machine."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from support import NewPipeline


class Recorder(SpanProcessor):
    """Keeps the spans that end."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


def ended_span(attributes: dict[str, str]) -> ReadableSpan:
    """A span with these attributes, of a scope that no profile names."""
    recorder = Recorder()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(recorder)
    provider.get_tracer("tests").start_span("span", attributes=attributes).end()
    return recorder.spans[0]


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
    """However many attributes it has; and one more, a look-up, while steps are under way, however many."""
    hooked = pipeline()
    steps = [hooked.tracer.start_span("step", attributes={"step_id": str(n)}) for n in range(steps_under_way)]
    span = ended_span({f"key.{number}": "value" for number in range(attributes)})
    counts = calls(hooked.hook.on_end, span)
    assert counts.total() == 2 + bool(steps), counts


def test_a_step_costs_at_most_60_calls(pipeline: NewPipeline, calls: Callable[..., Counter[str]]) -> None:
    """On the thread of the application; all else is done on our own."""
    hooked = pipeline()
    counts = calls(hooked.hook.on_end, ended_span({"step_id": "step-1"}))
    assert hooked.hook.force_flush()
    assert counts.total() <= 60, counts
