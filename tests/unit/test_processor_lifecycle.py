"""The processor from its making to its shutdown: what it keeps, what it waits for, and that it never harms."""

import atexit
import gc
import json
import subprocess
import sys
import threading
import time
import weakref

import pytest
from lines import Lines
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from support import pipeline

from otel_step_hook import StepHookProcessor, StepHookSettings
from otel_step_hook.steps.notes import Note
from otel_step_hook.testing import Answer, ScriptedReceiver


def _hook(url: str | None = "http://127.0.0.1:9/", **more: object) -> StepHookProcessor:
    return StepHookProcessor(StepHookSettings(**{"webhook": url, "shutdown_timeout": 5, **more}))


# What the SDK asks of a processor


def test_the_sdk_asks_nothing_that_is_not_known_here() -> None:
    """A method that a newer SDK adds to its interface is noticed: it may need an answer."""
    asked = {name for name, value in vars(SpanProcessor).items() if callable(value) and not name.startswith("__")}
    assert asked <= {"on_start", "_on_ending", "on_end", "shutdown", "force_flush"}
    assert isinstance(_hook(None), SpanProcessor)


# Without a webhook

_DISABLED = """
import json, logging, sys, threading
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

for is_step in (None, raising):
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


@pytest.mark.parametrize("webhook", [None, "", "  "])
def test_without_a_webhook_nothing_happens(webhook: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One debug line for each processor: no thread, no HTTP client in memory, no rule asked, nothing raised."""
    if webhook is not None:
        monkeypatch.setenv("STEP_COMPLETE_WEBHOOK", webhook)
    done = subprocess.run([sys.executable, "-c", _DISABLED], capture_output=True, text=True, timeout=60, check=True)
    seen = json.loads(done.stdout)
    assert seen["lines"] == [["DEBUG", "STEP_COMPLETE_WEBHOOK is not set: no webhook is sent"]] * 2
    assert seen["threads"] == 1
    assert seen["imported"] == []


# What is kept


def test_nothing_is_kept_of_spans_that_end(step_receiver: ScriptedReceiver) -> None:
    """Steps, other spans, and spans that begin while an exception is handled leave nothing behind."""
    with pipeline(step_receiver.url) as hooked:
        hooked.end_step()
        try:
            raise ValueError  # noqa: TRY301 -- a handler is needed, and nothing else
        except ValueError:
            hooked.end_step()
            hooked.tracer.start_span("no step").end()
        assert hooked.hook._reader._notes == {}


def test_nothing_is_kept_of_spans_that_never_end() -> None:
    """10 000 steps that are begun and forgotten take their notes with them."""
    hook = _hook()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(hook)
    tracer = provider.get_tracer("tests")
    spans = [tracer.start_span("step", attributes={"step_id": f"step-{number}"}) for number in range(10_000)]
    try:
        raise ValueError  # noqa: TRY301 -- as above
    except ValueError:
        spans += [tracer.start_span("no step") for _ in range(100)]
    assert len(hook._reader._notes) == 10_100
    del spans
    gc.collect()
    assert hook._reader._notes == {}


def test_a_hook_that_is_gone_is_not_shut_down_at_exit() -> None:
    """Its exit hook holds it weakly, and does nothing then."""
    hook = _hook()
    at_exit = hook._exit_hook
    at_exit()
    assert hook._worker is not None
    del hook
    gc.collect()
    at_exit()


def test_an_exit_hook_is_registered_once() -> None:
    """When the hook is made, and however many spans, providers or threads there are."""
    before = atexit._ncallbacks()
    hook = _hook()
    assert atexit._ncallbacks() == before + 1
    for _ in range(3):
        hook.on_start(_live_span())
    assert atexit._ncallbacks() == before + 1
    hook.shutdown()


def _live_span() -> Span:
    span = TracerProvider(shutdown_on_exit=False).get_tracer("tests").start_span("step", attributes={"step_id": "1"})
    assert isinstance(span, Span)
    return span


def test_an_exception_that_was_in_flight_is_not_held() -> None:
    """Noting which exception was in flight keeps neither it nor its frames alive."""

    class OwnError(Exception):
        pass

    error = OwnError()
    note, alive = Note(error), weakref.ref(error)
    assert note.has_seen(error)
    assert not note.has_seen(OwnError())
    assert not note.has_seen(None)
    del error
    gc.collect()
    assert alive() is None
    assert not note.has_seen(OwnError())


def test_an_exception_written_in_c_is_known_by_a_mark() -> None:
    """It has no weak references: two spans that begin under it agree on its mark, and another has none."""
    error = ValueError("no")
    notes = [Note(error) for _ in range(2)]
    assert all(note.has_seen(error) for note in notes)
    assert not notes[0].has_seen(ValueError("no"))
    assert (error.args, str(error), repr(error)) == (("no",), "no", "ValueError('no')")


# Flush and shutdown


def test_a_flush_takes_at_most_half_of_its_time(step_receiver: ScriptedReceiver) -> None:
    """The SDK shares one limit among all processors, and skips the exporter when it is used up."""
    step_receiver.answers(Answer(delay=60))
    hook = _hook(step_receiver.url, shutdown_timeout=0.1)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(hook)
    provider.get_tracer("tests").start_span("step", attributes={"step_id": "step-1"}).end()
    started = time.monotonic()
    assert not hook.force_flush(1000)
    assert 0.5 <= time.monotonic() - started < 5  # and not the receiver's minute
    hook.shutdown()


def test_a_flush_waits_for_the_last_word(step_receiver: ScriptedReceiver) -> None:
    """It is true when everything submitted before is told, and at once when there is nothing."""
    hook = _hook(step_receiver.url, concurrency=2)
    assert hook.force_flush(0)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(hook)
    for number in range(50):
        provider.get_tracer("tests").start_span("step", attributes={"step_id": f"step-{number}"}).end()
    assert hook.force_flush(20_000)
    assert len(step_receiver.received) == 50
    hook.shutdown()


def test_shutdown_may_be_called_again_and_from_any_thread(step_receiver: ScriptedReceiver) -> None:
    """Eight threads and a second call: each returns, each step is told once."""
    hook = _hook(step_receiver.url)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(hook)
    for number in range(20):
        provider.get_tracer("tests").start_span("step", attributes={"step_id": f"step-{number}"}).end()
    start = threading.Barrier(8)

    def shut_down() -> None:
        start.wait(10)
        hook.shutdown()

    threads = [threading.Thread(target=shut_down) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    hook.shutdown()
    assert len({webhook.step_id for webhook in step_receiver.received}) == len(step_receiver.received) == 20


def test_a_step_after_shutdown_is_dropped_and_told(step_receiver: ScriptedReceiver) -> None:
    """Spans may end after their provider was shut down; the log says what becomes of them."""
    with Lines() as lines, pipeline(step_receiver.url) as hooked:
        hooked.provider.shutdown()
        hooked.tracer.start_span("step", attributes={"step_id": "too late"}).end()
        assert lines.wait_for("dropped a step (shutdown)").levelname == "ERROR"
    assert step_receiver.received == []
