"""What is scheduled, queued or remembered is bounded: an hour in which everything fails leaves nothing behind."""

import _thread
import asyncio
import gc
import logging
import selectors
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from otel_step_hook import StepHookProcessor, StepHookSettings
from otel_step_hook.delivery import attempts, dispatch, loop, sender, transport, worker
from otel_step_hook.delivery.log import RateLimitedLog
from otel_step_hook.delivery.memory import MemoryStore

HOUR = 3600.0  # seconds
QUEUE = 4  # steps that may wait
IN_FLIGHT = 2
PATIENCE = 50  # looks of 10 ms, in vain: nobody resolves an address for so long
MARGIN = 300  # objects more than half an hour before: what happens to be under way, and flushes that have given up


class VirtualTime:
    """A clock that runs ahead whenever an event loop has nothing to do, and calls *each_second* meanwhile."""

    def __init__(self) -> None:
        self.now = self.began = 1000.0
        self.each_second: Callable[[], object] = int
        self.is_over = threading.Event()  # the hour
        self.threads = _thread._count() + 1  # the least there were: the loop's, and those before it
        self.waited = 0  # times in a row, for a thread

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            next_second = float(int(self.now) + 1)
            self.now = min(next_second, until)
            if self.now == next_second and not self.is_over.is_set():
                self.each_second()
        if self.now - self.began >= HOUR:
            self.is_over.set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    """The clock of every event loop in this test; real ones would take an hour, too."""
    virtual = VirtualTime()

    class Selector(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            virtual.threads = min(virtual.threads, _thread._count())
            is_asking = _thread._count() > virtual.threads  # a thread resolves a name, which takes real time
            ready = super().select(0.01 if is_asking and timeout else 0)
            virtual.waited = 0 if ready or not is_asking else virtual.waited + 1
            if virtual.waited > PATIENCE:  # it is somebody else's thread
                virtual.threads = _thread._count()
            if not ready and not is_asking and timeout is not None:
                virtual.pass_by(max(timeout, 1e-6))  # a look takes time, too
            return ready

    monkeypatch.setattr(time, "monotonic", virtual)
    for module in (attempts, dispatch, loop, sender, transport, worker):
        monkeypatch.setattr(module, "monotonic", virtual)
    # Bound when they were imported.
    monkeypatch.setattr(RateLimitedLog.__init__, "__defaults__", (virtual,))
    monkeypatch.setattr(MemoryStore.__init__, "__kwdefaults__", {"monotonic": virtual})
    monkeypatch.setattr(selectors, "DefaultSelector", Selector)
    return virtual


@pytest.fixture
def lines() -> Iterator[Counter[str]]:
    """How often each kind of line has been written; they go no further, since pytest would keep them."""
    counts: Counter[str] = Counter()

    def count(record: logging.LogRecord) -> bool:
        line = record.getMessage().rpartition(" more like this: ")[2]
        counts[" ".join(line.split()[:5])] += 1
        return False

    logger = logging.getLogger("otel_step_hook")
    logger.addFilter(count)
    yield counts
    logger.removeFilter(count)


class Failing(SpanProcessor):
    """The application's own processor, which does not like our spans."""

    def on_end(self, span: ReadableSpan) -> None:
        if span.name != "step":
            raise LookupError(span.name)


def unreadable(span: ReadableSpan) -> bool:
    """A rule of the application's that fails for some steps."""
    if (span.attributes or {}).get("is_odd"):
        raise LookupError("odd")
    return True


def census() -> Counter[str]:
    """How many objects of each type there are."""
    gc.collect()
    objects = gc.get_objects()
    counts = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in objects)
    # asyncio keeps up to a hundred that were cancelled
    counts["timers"] = sum(isinstance(one, asyncio.TimerHandle) and not one.cancelled() for one in objects)
    return counts


# A loop that dies may cancel a connection that has not begun: anyio says that it was never awaited.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_hour_in_which_everything_fails(clock: VirtualTime, closed_port: int, lines: Counter[str]) -> None:
    """Timers, tasks, events and spans do not grow in number, whatever fails for how long; nor does the log."""
    settings = StepHookSettings(
        webhook=f"http://127.0.0.1:{closed_port}/", max_queue_size=QUEUE, concurrency=IN_FLIGHT, shutdown_timeout=5
    )
    hook = StepHookProcessor(settings, is_step=unreadable)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(hook)
    provider.add_span_processor(Failing())
    tracer = provider.get_tracer("tests")
    samples: list[Counter[str]] = []

    def end_steps() -> None:
        second = int(clock.now - clock.began)
        tracer.start_span("step", attributes={"step_id": f"step-{second}"}).end()
        tracer.start_span("step", attributes={"is_odd": True}).end()
        if second % 600 == 100:
            asyncio.get_running_loop().call_soon(next, iter(()))  # a fault of the loop
        if second in {1500, HOUR - 300}:
            samples.append(census())

    clock.each_second = end_steps
    tracer.start_span("step", attributes={"step_id": "first"}).end()
    while not clock.is_over.wait(0.02):  # seconds
        hook.force_flush(2)  # which gives up after a millisecond
    provider.shutdown()
    gc.collect()  # here, where it may complain
    first, last = samples
    assert {name: (first[name], last[name]) for name in last if last[name] > first[name] + MARGIN} == {}
    assert last["timers"] <= QUEUE + IN_FLIGHT + 1
    assert last["asyncio.tasks.Task"] <= IN_FLIGHT + 1
    assert {line: count for line, count in lines.items() if count > 62} == {}
    for kind in ("a fault of", "dropped a step (queue_full,", "dropped a step (unreadable,", "discarded step"):
        assert any(line.startswith(kind) for line in lines), kind
