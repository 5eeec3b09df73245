"""What the delivery tests share: a worker with scripted transports instead of a network, and its results."""

import asyncio
import functools
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import SpanContext, TraceFlags

from otel_step_hook import StepHookSettings
from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.http_client import connector
from otel_step_hook.delivery.memory import MemoryStore
from otel_step_hook.delivery.model import Headers, Pipeline
from otel_step_hook.delivery.retry import AttemptResult, RetryPolicy
from otel_step_hook.delivery.sender import HttpSender, Transport
from otel_step_hook.delivery.worker import Worker
from otel_step_hook.settings import endpoints_of
from otel_step_hook.steps.event import Outcome, StepEvent

WAIT = 20.0  # seconds that a test waits before it fails
AT_ONCE = 8.0  # seconds within which a call returns that does not wait, on a busy machine; less than half of WAIT
DELIVERED = AttemptResult(status_code=204)
ONE_ATTEMPT = {"give_up_after": 30.0, "initial_backoff": 100.0, "max_backoff": 100.0}  # no backoff ends in time

_ids = RandomIdGenerator()
_numbers = itertools.count()


def failed(status: int = 503, **more: object) -> AttemptResult:
    """The result of an attempt that was answered with *status*, which is no 2xx."""
    return AttemptResult(status_code=status, error_type=str(status), **more)  # type: ignore[arg-type]  # -- checked by the tests that use it


def event(step_id: str | None = None, outcome: Outcome = Outcome.SUCCESS, **more: object) -> StepEvent:
    """The event of a step that has just ended, with a new step id unless one is given."""
    context = SpanContext(_ids.generate_trace_id(), _ids.generate_span_id(), is_remote=False, trace_flags=TraceFlags(1))
    now = time.time_ns()
    fields = {"name": "step", "context": context, "start_time": now - 1_000_000, "end_time": now} | more
    step_id = f"step-{next(_numbers)}" if step_id is None else step_id
    return StepEvent(step_id=step_id, outcome=outcome, **fields)  # type: ignore[arg-type]  # -- see `failed`


class Post(NamedTuple):
    """One recorded attempt; *at* is when it began, in monotonic seconds."""

    body: bytes
    headers: dict[str, str]
    timeout: float
    at: float


class Script:
    """A transport whose attempts return *results* one after the other; the last of them is repeated for ever.

    An exception among them is raised. For an `Event` the attempt waits, and a function it calls on the worker's
    thread; after that it takes the next item, unless the function has returned a result.
    """

    def __init__(self, *results: AttemptResult | BaseException | threading.Event | Callable[[], object]) -> None:
        self._results = deque(results)
        if not results or isinstance(results[-1], threading.Event):
            self._results.append(DELIVERED)
        self.posts: list[Post] = []
        self.begun = threading.Semaphore(0)
        self.in_flight = self.most_in_flight = self.made = self.closed = 0

    def __call__(self) -> Transport:
        self.made += 1
        return self

    def wait_for(self, count: int) -> None:
        """Wait until *count* more attempts have begun."""
        for _ in range(count):
            assert self.begun.acquire(timeout=WAIT)

    async def post(self, content: bytes, headers: Headers, *, timeout: float) -> AttemptResult:
        self.posts.append(Post(content, dict(headers), timeout, time.monotonic()))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.begun.release()
        try:
            await asyncio.sleep(0)  # every real attempt lets the loop run at least once
            return await self._next()
        except asyncio.CancelledError:
            if (result := await self.cancelled()) is None:
                raise
            return result
        finally:
            self.in_flight -= 1

    async def _next(self) -> AttemptResult:
        while True:
            item = self._results.popleft() if len(self._results) > 1 else self._results[0]
            if isinstance(item, threading.Event):
                await poll(item)
            result = item() if callable(item) else item
            if isinstance(result, BaseException):
                raise result
            if isinstance(result, AttemptResult):
                return result

    async def cancelled(self) -> AttemptResult | None:
        """Called when an attempt is cancelled; returns its result, or None to let the cancellation pass."""
        return None

    async def aclose(self) -> None:
        self.closed += 1


async def poll(event: threading.Event) -> None:
    """Wait for *event*, which another thread sets, without blocking the loop."""
    while not event.is_set():  # noqa: ASYNC110 -- see above
        await asyncio.sleep(0.002)


class Rig:
    """A worker that sends over transports that *connect* makes, by default over HTTP, and a pipeline for its spans."""

    def __init__(self, connect: Callable[[], Transport] | None = None, **settings: object) -> None:
        short = {"webhook": "http://receiver.test/hook", "initial_backoff": 0.01, "max_backoff": 0.02}
        options = StepHookSettings(**(short | settings))
        (endpoint,) = endpoints_of(options)
        connected = connector(endpoint) if connect is None else connect
        self._age = self._passed = 0.0
        self.worker = Worker(
            endpoint,
            RetryPolicy(
                options.initial_backoff, options.max_backoff, options.backoff_multiplier, options.give_up_after
            ),
            lambda telemetry: HttpSender(endpoint, telemetry, connected),
            max_queue_size=options.max_queue_size,
            concurrency=options.concurrency,
            shutdown_timeout=options.shutdown_timeout,
            make_store=functools.partial(MemoryStore, monotonic=lambda: monotonic() - self._age + self._passed),
        )
        self.exporter = InMemorySpanExporter()
        self.pipeline = Pipeline(SimpleSpanProcessor(self.exporter), Resource({"service.name": "tests"}))

    def submit(self, *events: StepEvent, age: float = 0.0) -> None:
        """Submit *events*, or a new one if there is none, as if they were *age* seconds old."""
        self._age = age
        for item in events or (event(),):
            self.worker.submit(item, self.pipeline)
        self._age = 0.0

    def age_by(self, seconds: float) -> None:
        """Make every waiting delivery older by *seconds*, from now on."""
        self._passed += seconds

    def deliver(self, *events: StepEvent, age: float = 0.0) -> None:
        """Submit *events* like `submit`, and wait until each is delivered or discarded."""
        self.submit(*events, age=age)
        assert self.worker.flush(WAIT)

    def named(self, name: str) -> list[ReadableSpan]:
        """The finished spans with this name."""
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    @property
    def results(self) -> list[tuple[object, object, object]]:
        """The step id, result and error type of each delivery, in the order in which the deliveries ended."""
        found = [span.attributes or {} for span in self.named("step_hook.deliver")]
        return [(one["step_hook.step_id"], one["step_hook.result"], one.get("error.type")) for one in found]


NewRig = Callable[..., Rig]  # the type of the fixture `rigged`


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for a condition that no event announces."""
    until = monotonic() + WAIT
    while not condition():
        assert monotonic() < until
        time.sleep(0.001)  # there is no event to wait for


def threads() -> list[threading.Thread]:
    """The worker threads that are alive."""
    return [thread for thread in threading.enumerate() if thread.name == "otel-step-hook"]


def counts(caplog: pytest.LogCaptureFixture) -> Counter[str]:
    """How often each line of the library was logged, including repeats that a later line only counts."""
    found: Counter[str] = Counter()
    for record in caplog.records:
        if record.name == "otel_step_hook":
            count, is_counted, line = record.getMessage().partition(" more like this: ")
            found[line or count] += int(count) if is_counted else 1
    return found


@contextmanager
def no_more_threads() -> Iterator[None]:
    """Make every start of a thread fail, by asking for a larger stack than any system has."""
    usual = threading.stack_size(1 << 46)
    try:
        yield
    finally:
        threading.stack_size(usual)


def seconds(call: Callable[[], object]) -> float:
    """How many seconds *call* takes."""
    began = monotonic()
    call()
    return monotonic() - began
