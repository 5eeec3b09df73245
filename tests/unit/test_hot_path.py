"""The cost of the processor to the application, in Python calls: times would depend on the machine."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType

import pytest
import support
from opentelemetry.sdk.trace import ReadableSpan, Span, TracerProvider
from opentelemetry.trace import set_span_in_context
from support import NewPipeline, Pipeline

from otel_step_hook.steps.frameworks import PROFILES
from otel_step_hook.steps.reader import StepReader


def span_under_way(pipeline: Pipeline, attributes: dict[str, str]) -> Span:
    """A span that has been started with these attributes, in a scope that no profile names."""
    span = pipeline.tracer.start_span("span", attributes=attributes)
    assert isinstance(span, Span)
    return span


@pytest.fixture
def calls(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[Callable[[ReadableSpan], object], ReadableSpan], Counter[str]]]:
    """Counts the Python functions that a call runs, itself included."""
    # If another test has imported Temporal, each span asks it for the current workflow.
    monkeypatch.delitem(sys.modules, "temporalio.workflow", raising=False)

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
def test_a_span_that_is_no_step_costs_three_calls(
    attributes: int, steps_under_way: int, pipeline: NewPipeline, calls: Callable[..., Counter[str]]
) -> None:
    """The cost depends neither on the number of attributes nor on the number of steps under way."""
    hooked = pipeline()
    steps = [hooked.tracer.start_span("step", attributes={"step_id": str(n)}) for n in range(steps_under_way)]
    span = span_under_way(hooked, {f"key.{number}": "value" for number in range(attributes)})
    counts = calls(hooked.hook.on_end, span._readable_span())
    assert len(steps) == steps_under_way
    assert counts.total() == 3, counts


@pytest.mark.parametrize("attributes", [0, 8, 20, 60])
@pytest.mark.parametrize("has_parent", [False, True])
def test_the_start_of_a_span_costs_five_calls(
    attributes: int, *, has_parent: bool, pipeline: NewPipeline, calls: Callable[..., Counter[str]]
) -> None:
    """The cost depends neither on the number of attributes nor on a parent."""
    hooked = pipeline()
    parent = set_span_in_context(hooked.tracer.start_span("parent")) if has_parent else None
    given = {f"key.{number}": "value" for number in range(attributes)}
    span = hooked.tracer.start_span("span", parent, attributes=given)
    counts = calls(hooked.hook.on_start, span)
    assert counts.total() == 5, counts


def test_a_step_is_recognised_in_at_most_33_calls(calls: Callable[..., Counter[str]]) -> None:
    """The reader's part of `on_end`, without the submission, is at most 33 calls."""
    reader = StepReader(PROFILES)
    step = TracerProvider(shutdown_on_exit=False).get_tracer("tests").start_span("step", attributes={"step_id": "1"})
    assert isinstance(step, Span)
    reader.on_start(step, None)
    counts = calls(lambda span: reader.on_end(span, lambda: None), step._readable_span())
    assert counts.total() <= 33, counts


def test_a_step_costs_at_most_55_calls(pipeline: NewPipeline, calls: Callable[..., Counter[str]]) -> None:
    """The cost on the application's thread is at most 55 calls; the rest is done on the worker's thread."""
    hooked = pipeline()
    step = span_under_way(hooked, {"step_id": "step-1"})
    counts = calls(hooked.hook.on_end, step._readable_span())
    assert hooked.hook.force_flush()
    assert counts.total() <= 55, counts


def test_a_step_costs_the_same_however_many_wait(closed_port: int, calls: Callable[..., Counter[str]]) -> None:
    """What waits is not walked through; a few calls more or less send a wake-up, or find that one is under way."""
    totals = []
    with support.pipeline(f"http://127.0.0.1:{closed_port}/", initial_backoff=3600, shutdown_timeout=1) as hooked:
        for waiting in (0, 1000):
            for _ in range(waiting):
                span_under_way(hooked, {"step_id": "step-1"}).end()
            step = span_under_way(hooked, {"step_id": "step-2"})
            totals.append(calls(hooked.hook.on_end, step._readable_span()).total())
    assert abs(totals[1] - totals[0]) < 10, totals
