"""What the tests of the dispatcher share: a dispatcher on the test's own loop, and senders that do as they are told."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import SpanContext, TraceFlags

from otel_step_hook import StepHookSettings
from otel_step_hook.delivery.dispatch import Dispatcher, Sender, Switch
from otel_step_hook.delivery.log import Trouble
from otel_step_hook.delivery.memory import MemoryStore, Submission
from otel_step_hook.delivery.request import Headers
from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.delivery.telemetry import Pipeline, Telemetry
from otel_step_hook.delivery.transport import connector
from otel_step_hook.steps.event import Outcome, StepEvent

WAIT = 20.0  # seconds after which a test has failed
DELIVERED = AttemptResult(status_code=204)
ONE_ATTEMPT = {"give_up_after": 30.0, "initial_backoff": 100.0, "max_backoff": 100.0}  # the wait after it is too long

_ids = RandomIdGenerator()


def failed(status: int = 503, **more: object) -> AttemptResult:
    """An answer that is no 2xx."""
    return AttemptResult(status_code=status, error_type=str(status), **more)  # type: ignore[arg-type]  # -- checked by the tests that use it


def event(step_id: str = "step-1", outcome: Outcome = Outcome.SUCCESS, **more: object) -> StepEvent:
    """A step that has just ended."""
    context = SpanContext(_ids.generate_trace_id(), _ids.generate_span_id(), is_remote=False, trace_flags=TraceFlags(1))
    now = time.time_ns()
    fields = {"name": "step", "context": context, "start_time": now - 1_000_000, "end_time": now} | more
    return StepEvent(step_id=step_id, outcome=outcome, **fields)  # type: ignore[arg-type]  # -- see `failed`


class Script:
    """Makes senders which all give the next of *results*, the last of them again and again.

    An exception among them is raised; an `asyncio.Event` is waited for, and then the next result is given.
    """

    def __init__(self, *results: AttemptResult | Exception | asyncio.Event) -> None:
        self.results = deque(results or (DELIVERED,))
        self.posts: list[tuple[bytes, dict[str, str]]] = []
        self.limits: list[float] = []
        self.at: list[float] = []  # monotonic seconds
        self.in_flight = 0
        self.most_in_flight = 0
        self.by: list[object] = []  # the sender of each
        self.senders = 0
        self.closed = 0

    def __call__(self) -> Sender:
        self.senders += 1
        return _Scripted(self)

    async def next(self) -> AttemptResult:
        result = self.results.popleft() if len(self.results) > 1 else self.results[0]
        if isinstance(result, Exception):
            raise result
        if isinstance(result, asyncio.Event):
            await result.wait()
            return await self.next()
        return result


class _Scripted:
    def __init__(self, script: Script) -> None:
        self._script = script

    async def post(self, content: bytes, headers: Headers, timeout: float) -> AttemptResult:
        script = self._script
        script.posts.append((content, dict(headers)))
        script.limits.append(timeout)
        script.at.append(time.monotonic())
        script.by.append(self)
        script.in_flight += 1
        script.most_in_flight = max(script.most_in_flight, script.in_flight)
        try:
            await asyncio.sleep(0)  # as every real attempt does, at least once
            return await script.next()
        finally:
            script.in_flight -= 1

    async def aclose(self) -> None:
        self._script.closed += 1


class Rig:
    """A dispatcher with everything around it but the worker's thread."""

    def __init__(self, connect: Callable[[], Sender] | None = None, **settings: object) -> None:
        short = {"webhook": "http://receiver.test/hook", "initial_backoff": 0.01, "max_backoff": 0.02}
        self.settings = StepHookSettings(**(short | settings))
        self.exporter = InMemorySpanExporter()
        self.pipeline = Pipeline(SimpleSpanProcessor(self.exporter), Resource({"service.name": "tests"}))
        self.store = MemoryStore(self.settings.max_queue_size)
        self.trouble = Trouble()
        telemetry = Telemetry(self.settings.webhook or "", self.trouble)
        connect = connector(self.settings) if connect is None else connect
        self.dispatcher = Dispatcher(self.settings, self.store, connect, telemetry, self.trouble, switch=Switch())

    def submit(self, *events: StepEvent, age: float = 0.0) -> None:
        """Have these steps delivered, submitted *age* seconds ago."""
        for item in events:
            assert self.store.put(Submission(item, self.pipeline, time.monotonic() - age))
        self.dispatcher.take_all()

    async def done(self) -> None:
        """Wait until everything submitted so far has had its last word."""
        done = asyncio.Event()
        self.dispatcher.when_done(done)
        async with asyncio.timeout(WAIT):
            await done.wait()

    async def stopped(self) -> None:
        """Wait until the dispatcher has stopped."""
        async with asyncio.timeout(WAIT):
            await self.dispatcher.stopped.wait()

    @property
    def deliveries(self) -> list[ReadableSpan]:
        """The spans of deliveries that have had their last word, in the order of these."""
        return [span for span in self.exporter.get_finished_spans() if span.name == "step_hook.deliver"]

    @property
    def results(self) -> list[tuple[object, object, object]]:
        """Step id, result and error type of each delivery."""
        keys = ("step_hook.step_id", "step_hook.result", "error.type")
        return [tuple((span.attributes or {}).get(key) for key in keys) for span in self.deliveries]  # type: ignore[misc]  # -- three keys

    @property
    def attempts(self) -> list[ReadableSpan]:
        """The spans of attempts that are over."""
        return [span for span in self.exporter.get_finished_spans() if span.name == "POST"]


@asynccontextmanager
async def rigged(connect: Callable[[], Sender] | None = None, **settings: object) -> AsyncIterator[Rig]:
    """A rig that is closed at the end."""
    rig = Rig(connect, **settings)
    try:
        yield rig
    finally:
        rig.dispatcher.unclaim()
        await rig.dispatcher.aclose()
