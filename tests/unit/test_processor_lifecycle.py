"""The processor from its construction to its shutdown: what it keeps in memory, and what it waits for."""

import gc
import json
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import Span, TracerProvider
from support import NewPipeline, Pipeline, log_lines

from otel_step_hook import StepHookProcessor, StepHookSettings
from otel_step_hook.testing import Answer, ScriptedReceiver


def _hook(url: str | None = "http://127.0.0.1:9/", **more: object) -> StepHookProcessor:
    return StepHookProcessor(StepHookSettings(**{"webhook": url, "shutdown_timeout": 5, **more}))


# Without a webhook

_DISABLED = """
import itertools, json, logging, os, sys, threading
class Lines(logging.Handler):
    lines = []
    def emit(self, record):
        self.lines.append([record.levelname, record.getMessage()])
log = logging.getLogger("otel_step_hook")
log.addHandler(Lines())
log.setLevel(logging.DEBUG)
from opentelemetry.sdk.trace import TracerProvider
from otel_step_hook import StepHookProcessor

def raising(span):
    raise RuntimeError

for webhook, is_step in itertools.product((None, "", "  "), (None, raising)):
    if webhook is not None:
        os.environ["STEP_COMPLETE_WEBHOOK"] = webhook
    hook = StepHookProcessor(is_step=is_step)
    provider = TracerProvider()
    provider.add_span_processor(hook)
    provider.get_tracer("tests").start_span("step", attributes={"step_id": "step-1"}).end()
    assert provider.force_flush()
    provider.shutdown()
    hook.shutdown()
    assert hook.force_flush(0)
print(json.dumps({
    "lines": Lines.lines,
    "threads": threading.active_count(),
    "imported": sorted({"httpx", "httpcore", "anyio", "otel_step_hook.delivery.worker"} & set(sys.modules)),
}))
"""


def test_without_a_webhook_nothing_happens() -> None:
    """Each processor logs one debug line, and starts no thread, imports no HTTP client and calls no rule."""
    done = subprocess.run([sys.executable, "-c", _DISABLED], capture_output=True, text=True, timeout=60, check=True)
    seen = json.loads(done.stdout)
    assert seen["lines"] == [["DEBUG", "STEP_COMPLETE_WEBHOOK is not set: no webhook is sent"]] * 6
    assert seen["threads"] == 1
    assert seen["imported"] == []


# What is kept


@pytest.mark.parametrize("is_ended", [True, False])
@pytest.mark.parametrize("scope", ["tests", "openinference.instrumentation.langchain"])
def test_no_span_is_kept_in_memory(scope: str, *, is_ended: bool) -> None:
    """Spans that end, or are started and forgotten, leave nothing behind in any of the hook's providers."""
    hook = _hook(outcomes="cancelled")
    providers = [TracerProvider(shutdown_on_exit=False) for _ in range(2)]
    for provider in providers:
        provider.add_span_processor(hook)

    def begin(attributes: dict[str, str]) -> None:
        for provider in providers:
            span = provider.get_tracer(scope).start_span("span", attributes=attributes)
            if is_ended:
                span.end()

    def work() -> None:
        for number in range(250):
            begin({"step_id": f"step-{number}", "metadata": '{"langgraph_node": "span"}'})
            try:
                raise ValueError  # noqa: TRY301 -- an except block is needed, and nothing else
            except ValueError:
                begin({"step_id": f"step-{number}"})
                begin({})

    assert _blocks_kept_by(work) < 250  # of 1500 spans; what is remembered of the last few steps varies
    hook.shutdown()


def _blocks_kept_by(work: Callable[[], None]) -> int:
    """The number of memory blocks that a second run of *work* leaves behind."""
    work()
    gc.collect()
    before = sys.getallocatedblocks()
    work()
    gc.collect()
    return sys.getallocatedblocks() - before


@pytest.fixture
def at_exit(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """The functions that are registered with `atexit` during the test, which the interpreter does not run."""
    registered: list[Callable[[], object]] = []
    monkeypatch.setattr("atexit.register", registered.append)
    return registered


def test_a_hook_that_is_gone_is_not_shut_down_at_exit(at_exit: list[Callable[[], object]]) -> None:
    """The exit function keeps no hook alive, and does nothing once the hook is collected."""
    hook = _hook()
    alive = weakref.ref(hook)
    (shut_down,) = at_exit
    shut_down()
    del hook
    gc.collect()
    assert alive() is None
    shut_down()


def test_an_exit_function_is_registered_once(at_exit: list[Callable[[], object]]) -> None:
    """The exit function is registered when the hook is made, and not again when spans start."""
    hook = _hook()
    assert len(at_exit) == 1
    for _ in range(3):
        hook.on_start(_live_span())
    assert len(at_exit) == 1
    hook.shutdown()


def _live_span() -> Span:
    span = TracerProvider(shutdown_on_exit=False).get_tracer("tests").start_span("step", attributes={"step_id": "1"})
    assert isinstance(span, Span)
    return span


class _OwnError(Exception):
    """Can be weakly referenced, unlike exceptions that are written in C."""


def test_an_exception_in_flight_is_not_kept_alive(hooked: Pipeline) -> None:
    """A span that starts in an except block keeps neither the exception nor its frames alive."""
    try:
        raise _OwnError  # noqa: TRY301 -- an except block is needed, and nothing else
    except _OwnError as error:
        alive = weakref.ref(error)
        span = hooked.tracer.start_span("step", attributes={"step_id": "step-1"})
    gc.collect()
    assert alive() is None
    span.end()


@pytest.mark.parametrize("kind", [_OwnError, ValueError])
def test_an_exception_in_flight_at_the_start_is_no_failure(
    kind: type[Exception], pipeline: NewPipeline, step_receiver: ScriptedReceiver
) -> None:
    """An exception is no failure if it was in flight at the start; a second one like it is, and neither is changed."""
    hooked = pipeline(payload="full")
    error = kind("no")
    try:
        raise error
    except kind:
        one, two, inside, after = (
            hooked.tracer.start_span("step", attributes={"step_id": step_id})
            for step_id in ("one", "two", "another inside", "another after")
        )
        one.end()
        two.end()
        _end_while_handling(kind("no"), inside)
    assert (error.args, str(error), repr(error)) == (("no",), "no", f"{kind.__name__}('no')")
    del error
    _end_while_handling(kind("no"), after)
    assert hooked.provider.force_flush()
    assert {webhook.step_id: webhook.data["outcome"] for webhook in step_receiver.received} == {
        "one": "success",
        "two": "success",
        "another inside": "failed",
        "another after": "failed",
    }


def _end_while_handling(error: Exception, span: trace.Span) -> None:
    try:
        raise error
    except type(error):
        span.end()


# Flush and shutdown


def test_a_flush_takes_at_most_half_of_its_time(pipeline: NewPipeline, step_receiver: ScriptedReceiver) -> None:
    """The SDK shares one timeout among all processors, and skips the exporter when it is used up."""
    step_receiver.answers(Answer(delay=60))
    hooked = pipeline(shutdown_timeout=0.1)
    hooked.tracer.start_span("step", attributes={"step_id": "step-1"}).end()
    started = time.monotonic()
    assert not hooked.hook.force_flush(200)
    assert 0.1 <= time.monotonic() - started < 5  # and not the receiver's minute


def test_a_flush_waits_for_the_end_of_every_delivery(pipeline: NewPipeline, step_receiver: ScriptedReceiver) -> None:
    """A flush returns True when every earlier step is delivered, and at once if there is none."""
    hooked = pipeline(concurrency=2)
    assert hooked.hook.force_flush(0)
    for number in range(50):
        hooked.tracer.start_span("step", attributes={"step_id": f"step-{number}"}).end()
    assert hooked.hook.force_flush(20_000)
    assert len(step_receiver.received) == 50


def test_shutdown_may_be_called_again_and_from_any_thread(hooked: Pipeline, step_receiver: ScriptedReceiver) -> None:
    """Eight concurrent shutdowns and a later one all return, and each step is sent once."""
    for number in range(20):
        hooked.tracer.start_span("step", attributes={"step_id": f"step-{number}"}).end()
    start = threading.Barrier(8)

    def shut_down() -> None:
        start.wait(10)
        hooked.hook.shutdown()

    threads = [threading.Thread(target=shut_down) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    hooked.hook.shutdown()
    assert len({webhook.step_id for webhook in step_receiver.received}) == len(step_receiver.received) == 20


def test_a_step_after_shutdown_is_dropped(
    hooked: Pipeline, step_receiver: ScriptedReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """A span that ends after its provider was shut down is dropped, and the log says so."""
    hooked.provider.shutdown()
    hooked.tracer.start_span("step", attributes={"step_id": "too late"}).end()
    hooked.hook.shutdown()
    assert log_lines(caplog) == ["ERROR dropped a step (shutdown, endpoint default): the step ended after shutdown()"]
    assert step_receiver.received == []
