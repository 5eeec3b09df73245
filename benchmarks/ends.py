"""What `on_end` costs the application, and what an outage costs the process."""

import socket
import time

from measuring import ROUNDS, Passing, exporting, make_spans, per_call
from opentelemetry.sdk.trace import TracerProvider
from tables import Cell, Table, ratio, spread

from otel_step_hook import StepHookProcessor, StepHookSettings

_ATTRIBUTES = (0, 8, 20, 60)  # of a span
_OPEN_STEPS = (0, 1000)
_OUTAGE = 15  # seconds
_WAITING = 2048  # events


def _no_step(url: str) -> list[tuple[Cell, ...]]:
    """``on_end`` of the SDK's batch processor and of ours, for a span that is no step, by its number of attributes.

    Twenty spans are measured at a time, so that they are in the CPU's cache, as in an application.
    """
    rows: list[tuple[Cell, ...]] = []
    for open_steps in _OPEN_STEPS:
        hook, batch = StepHookProcessor(StepHookSettings(webhook=url)), exporting()
        steps = Passing(hook)  # keeps them open
        _begin_steps(steps, open_steps)
        for attributes in _ATTRIBUTES:
            theirs, ours = [], []
            for _ in range(ROUNDS * 60):
                spans = make_spans(Passing(hook), 20, attributes)
                theirs.append(per_call(batch.on_end, spans))
                ours.append(per_call(hook.on_end, spans))
            name = f"{attributes} attributes, {open_steps} open steps"
            rows.append((name, sorted(theirs)[len(theirs) // 2], sorted(ours)[len(ours) // 2], ratio(ours, theirs)))
        batch.shutdown()  # type: ignore[no-untyped-call]  # -- the SDK has no annotation there
        hook.shutdown()
    return rows


def _begin_steps(passing: Passing, count: int) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(passing)
    for number in range(count):
        provider.get_tracer("bench").start_span("step", attributes={"step_id": str(number)})


def _step(url: str) -> list[float]:
    """Microseconds of ``on_end`` of a step, while the worker thread runs."""
    durations = []
    for _ in range(ROUNDS * 3):
        hook = StepHookProcessor(StepHookSettings(webhook=url, max_queue_size=100_000))
        durations.append(per_call(hook.on_end, make_spans(Passing(hook), 200, 8, step_id="step-1")))
        hook.shutdown()
    return durations


def _outage() -> float:
    """CPU seconds per minute while the port of the endpoint is closed and events wait."""
    with socket.socket() as closed:  # bound, but not listening
        closed.bind(("127.0.0.1", 0))
        hook = StepHookProcessor(f"http://127.0.0.1:{closed.getsockname()[1]}/", give_up_after=600, shutdown_timeout=1)
        for span in make_spans(Passing(hook), _WAITING, 0, step_id="step-1"):
            hook.on_end(span)
        time.sleep(2)  # until the first attempts have failed
        cpu, began = time.process_time(), time.monotonic()
        time.sleep(_OUTAGE)
        per_minute = (time.process_time() - cpu) / (time.monotonic() - began) * 60
        hook.shutdown()
    return per_minute


def bench(url: str) -> list[Table]:
    """Measure all of it."""
    steps = _step(url)
    return [
        Table(
            "on_end of a span that is no step",
            ("", "BatchSpanProcessor, µs", "ours, µs", "ours / theirs"),
            _no_step(url),
            "Medians. Goal: at most 1.",
        ),
        Table("on_end of a step, in memory", ("µs", "goal"), [(spread(steps), "≤ 12")]),
        Table(
            "An outage",
            ("", "CPU seconds a minute", "goal"),
            [(f"port closed, {_WAITING} events wait", _outage(), "≤ 1")],
        ),
    ]
