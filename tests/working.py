"""What the tests of the worker share: workers that count, and senders that answer, hang, or block the thread."""

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from dispatching import DELIVERED, WAIT, event
from opentelemetry.sdk.resources import Resource

from otel_step_hook import StepHookSettings
from otel_step_hook.delivery.dispatch import Sender
from otel_step_hook.delivery.memory import Submission
from otel_step_hook.delivery.request import Headers
from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.delivery.telemetry import Pipeline
from otel_step_hook.delivery.worker import Worker, _Generation

THREAD = "otel-step-hook"  # the name of the sender's thread
AT_ONCE = 8.0  # seconds; what returns at once has returned within these, on a busy machine; less than half of WAIT
_numbers = itertools.count()


NO_PIPELINE = Pipeline(None, Resource({}))


def submission(pipeline: Pipeline = NO_PIPELINE) -> Submission:
    """An event on its way, a new one each time."""
    return Submission(event(f"step-{next(_numbers)}"), pipeline, time.monotonic())


@dataclass
class Receiver:
    """Makes senders, which do *meanwhile* on the worker's thread and then deliver, once *gate* is open.

    *parting* is called when they are cancelled, and says how many seconds they take for that.
    """

    meanwhile: Callable[[], object] = int
    parting: Callable[[], float] = float
    gate: threading.Event = field(default_factory=threading.Event)
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    bodies: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    def __call__(self) -> Sender:
        return _Sender(self)


class _Sender:
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    async def post(self, content: bytes, headers: Headers, timeout: float) -> AttemptResult:  # noqa: ARG002 -- a Sender's
        self._receiver.bodies.append(content)
        self._receiver.arrived.release()
        self._receiver.meanwhile()
        try:
            while not self._receiver.gate.is_set():  # noqa: ASYNC110 -- it is opened from another thread
                await asyncio.sleep(0.005)  # a look at the gate now and then: the loop itself must not block
        except asyncio.CancelledError:
            await asyncio.sleep(self._receiver.parting())
            raise
        return DELIVERED

    async def aclose(self) -> None:
        """Nothing to close."""


class CountingWorker(Worker):
    """A worker that counts what it drops."""

    def __init__(self, connect: Callable[[], Sender], **settings: object) -> None:
        self.dropped: list[str] = []
        self.starts = 0
        options = {"webhook": "http://receiver.test/hook", "shutdown_timeout": 5.0} | settings
        super().__init__(StepHookSettings(**options), lambda _: connect)

    def drop(self, reason: str, error: Exception | None = None) -> None:
        self.dropped.append(reason)
        super().drop(reason, error)

    def _start(self, own: _Generation) -> None:
        self.starts += 1
        super()._start(own)

    @property
    def is_running(self) -> bool:
        """Whether there is a thread, or will be in a moment."""
        return self._own.running.locked() or bool(threads())

    @property
    def pending(self) -> int:
        """How many events have had no last word."""
        return self._own.inbox.store.pending


@contextmanager
def working(connect: Callable[[], Sender], **settings: object) -> Iterator[CountingWorker]:
    """A worker that is shut down in the end, and whose thread has ended then."""
    worker = CountingWorker(connect, **settings)
    try:
        yield worker
    finally:
        worker.shutdown(WAIT)
        wait_until(lambda: not worker.is_running)


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for something that nothing tells of."""
    until = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)  # there is nothing else to wait on


def threads() -> list[threading.Thread]:
    """The senders' threads that are alive."""
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """What has been logged at this level or above."""
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


@contextmanager
def no_more_threads() -> Iterator[None]:
    """Let the system refuse every new thread: none has room for a stack of this size."""
    usual = threading.stack_size(1 << 46)
    try:
        yield
    finally:
        threading.stack_size(usual)


def seconds(call: Callable[[], object]) -> float:
    """How long *call* takes."""
    began = time.monotonic()
    call()
    return time.monotonic() - began
