"""Timers, tasks, objects and log lines stay bounded during an hour in which everything fails."""

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
from otel_step_hook.delivery import attempts, dispatch, loop, origin, sender, worker
from otel_step_hook.delivery.log import RateLimitedLog
from otel_step_hook.delivery.memory import MemoryStore

HOUR = 3600.0  # seconds
QUEUE = 4  # the setting max_queue_size
IN_FLIGHT = 2
MAX_EMPTY_POLLS = 50  # polls of 10 ms without a result; no look-up of an address takes so long
MARGIN = 300  # objects by which the samples may differ: attempts in flight, and flushes that have given up


class VirtualTime:
    """A clock that advances whenever an event loop is idle, and calls *each_second* once for each of its seconds."""

    def __init__(self) -> None:
        self.now = self.began = 1000.0
        self.each_second: Callable[[], object] = int
        self.hour_has_ended = threading.Event()
        self.threads = _thread._count() + 1  # the fewest so far: the loop's, and those from before the test
        self.empty_polls = 0  # in a row, while another thread runs

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            next_second = float(int(self.now) + 1)
            self.now = min(next_second, until)
            if self.now == next_second and not self.hour_has_ended.is_set():
                self.each_second()
        if self.now - self.began >= HOUR:
            self.hour_has_ended.set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    """A virtual clock for every event loop in this test; with a real one it would take an hour."""
    virtual = VirtualTime()

    class Selector(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            virtual.threads = min(virtual.threads, _thread._count())
            is_resolving = _thread._count() > virtual.threads  # a thread resolves a name, which takes real time
            ready = super().select(0.01 if is_resolving and timeout else 0)
            virtual.empty_polls = 0 if ready or not is_resolving else virtual.empty_polls + 1
            if virtual.empty_polls > MAX_EMPTY_POLLS:  # the thread resolves no name
                virtual.threads = _thread._count()
            if not ready and not is_resolving and timeout is not None:
                virtual.advance(max(timeout, 1e-6))  # a poll takes time, too
            return ready

    monkeypatch.setattr(time, "monotonic", virtual)
    for module in (attempts, dispatch, loop, origin, sender, worker):
        monkeypatch.setattr(module, "monotonic", virtual)
    # Defaults of arguments, which were bound when the modules were imported.
    monkeypatch.setattr(RateLimitedLog.__init__, "__defaults__", (virtual,))
    monkeypatch.setattr(MemoryStore.__init__, "__kwdefaults__", {"monotonic": virtual})
    monkeypatch.setattr(selectors, "DefaultSelector", Selector)
    return virtual


@pytest.fixture
def lines() -> Iterator[Counter[str]]:
    """Counts log lines by their first words, and keeps them from pytest, which would store every record."""
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
    """A span processor of the application that raises for each delivery span."""

    def on_end(self, span: ReadableSpan) -> None:
        if span.name != "step":
            raise LookupError(span.name)


def unreadable(span: ReadableSpan) -> bool:
    """A rule of the application that raises for some steps."""
    if (span.attributes or {}).get("is_odd"):
        raise LookupError("odd")
    return True


def object_counts() -> Counter[str]:
    """The number of objects of each type."""
    gc.collect()
    objects = gc.get_objects()
    counts = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in objects)
    # asyncio keeps up to a hundred cancelled timers
    counts["timers"] = sum(isinstance(one, asyncio.TimerHandle) and not one.cancelled() for one in objects)
    return counts


# A loop that dies may cancel a connection before it begins: then CPython warns that anyio has not awaited a coroutine.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_everything_stays_bounded_in_an_hour_of_failures(
    clock: VirtualTime, closed_port: int, lines: Counter[str]
) -> None:
    """Timers, tasks, objects and log lines do not grow in number, whatever fails for however long."""
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
            asyncio.get_running_loop().call_soon(next, iter(()))  # raises in the loop, which ends it
        if second in {1500, HOUR - 300}:
            samples.append(object_counts())

    clock.each_second = end_steps
    tracer.start_span("step", attributes={"step_id": "first"}).end()
    while not clock.hour_has_ended.wait(0.02):  # seconds
        hook.force_flush(2)  # which gives up after a millisecond
    provider.shutdown()
    gc.collect()  # here, where its warnings are ignored
    first, last = samples
    assert {name: (first[name], last[name]) for name in last if last[name] > first[name] + MARGIN} == {}
    assert last["timers"] <= QUEUE + IN_FLIGHT + 1
    assert last["asyncio.tasks.Task"] <= IN_FLIGHT + 1
    assert {line: count for line, count in lines.items() if count > 62} == {}
    for kind in ("a fault of", "dropped a step (queue_full,", "dropped a step (unreadable,", "discarded step"):
        assert any(line.startswith(kind) for line in lines), kind
