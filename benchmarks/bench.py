"""Ratios, both sides in one run: what the processor costs the application, and what it delivers per second.

Absolute numbers belong to the machine; only the ratios mean something. Sends to loopback only.
"""

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from otel_step_hook import StepHookProcessor, StepHookSettings

IN_FLIGHT = 32
ROUNDS = 7


class _Nowhere(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: ARG002 -- the SDK's signature
        return SpanExportResult.SUCCESS


class _Keep(SpanProcessor):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


def _spans(count: int, attributes: dict[str, str]) -> list[ReadableSpan]:
    kept = _Keep()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(kept)
    tracer = provider.get_tracer("bench")
    for _ in range(count):
        tracer.start_span("span", attributes={**{f"key.{n}": "value" for n in range(8)}, **attributes}).end()
    return kept.spans


def _exporting() -> BatchSpanProcessor:
    return BatchSpanProcessor(
        _Nowhere(), max_queue_size=1_000_000, max_export_batch_size=1_000_000, schedule_delay_millis=3_600_000
    )


def _per_call(on_end: Callable[[ReadableSpan], None], spans: list[ReadableSpan]) -> float:
    gc.collect()
    started = time.perf_counter_ns()
    for span in spans:
        on_end(span)
    return (time.perf_counter_ns() - started) / len(spans) / 1000


def bench_on_end(url: str) -> dict[str, float]:
    """Median microseconds of ``on_end``, in turn: the SDK's batch processor, ours for no step and for a step."""
    plain, steps = _spans(2000, {}), _spans(200, {"step_id": "step-1"})
    rows: dict[str, list[float]] = {"batch": [], "no step": [], "step": []}
    for _ in range(ROUNDS * 3):
        batch = _exporting()
        hook = StepHookProcessor(StepHookSettings(webhook=url, max_queue_size=100_000))
        rows["batch"].append(_per_call(batch.on_end, plain))
        rows["no step"].append(_per_call(hook.on_end, plain))
        rows["step"].append(_per_call(hook.on_end, steps))
        hook.shutdown()
        batch.shutdown()  # type: ignore[no-untyped-call]  # -- the SDK has no annotation there
    return {name: statistics.median(values) for name, values in rows.items()}


async def _shared_client(url: str, count: int) -> None:
    """What most people write: one `httpx.AsyncClient` and *count* POSTs, `IN_FLIGHT` at a time."""
    async with httpx.AsyncClient(timeout=15, limits=httpx.Limits(max_connections=IN_FLIGHT)) as client:
        numbers = iter(range(count))

        async def lane() -> None:
            for number in numbers:
                response = await client.post(url, json={"step_id": f"step-{number}"})
                response.raise_for_status()

        await asyncio.gather(*(lane() for _ in range(IN_FLIGHT)))


def _ours(url: str, count: int) -> None:
    """Steps through a whole pipeline: span, hook, delivery spans, batch processor."""
    provider = TracerProvider(shutdown_on_exit=False)
    settings = StepHookSettings(
        webhook=url, concurrency=IN_FLIGHT, max_queue_size=count, give_up_after=600, shutdown_timeout=60
    )
    provider.add_span_processor(StepHookProcessor(settings))
    provider.add_span_processor(_exporting())
    tracer = provider.get_tracer("bench")
    for number in range(count):
        tracer.start_span("step", attributes={"step_id": f"step-{number}"}).end()
    if not provider.force_flush(240_000):
        sys.exit("not everything was delivered in time")
    provider.shutdown()


def _timed(run: Callable[[], object], count: int) -> tuple[float, float]:
    """Deliveries per second, and CPU milliseconds per delivery of this process."""
    started, cpu = time.perf_counter(), time.process_time()
    run()
    return count / (time.perf_counter() - started), (time.process_time() - cpu) / count * 1000


def bench_deliveries(url: str) -> dict[str, tuple[float, float]]:
    """Median deliveries per second and CPU per delivery at 32 in flight: one shared client, and ours."""
    rows: dict[str, list[tuple[float, float]]] = {"shared": [], "ours": []}
    _ours(url, 100)
    for _ in range(ROUNDS):
        rows["shared"].append(_timed(lambda: asyncio.run(_shared_client(url, 300)), 300))
        rows["ours"].append(_timed(lambda: _ours(url, 1500), 1500))
    return {
        name: (statistics.median(rate for rate, _ in values), statistics.median(cpu for _, cpu in values))
        for name, values in rows.items()
    }


def main() -> None:
    """Print the table; ``--json`` for machines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    receiver = subprocess.Popen(  # noqa: S603 -- our own file
        [sys.executable, str(Path(__file__).with_name("receiver.py"))], stdout=subprocess.PIPE, text=True
    )
    try:
        assert receiver.stdout is not None  # noqa: S101 -- for mypy: PIPE was asked for
        url = receiver.stdout.readline().strip()
        calls, rates = bench_on_end(url), bench_deliveries(url)
    finally:
        receiver.terminate()
        receiver.wait()
    ratios = {
        "on_end of no step / BatchSpanProcessor.on_end": calls["no step"] / calls["batch"],
        "deliveries per second / one shared AsyncClient": rates["ours"][0] / rates["shared"][0],
    }
    if arguments.json:
        print(json.dumps({"us": calls, "rates": rates, "ratios": ratios}))
        return
    print(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores, medians of {ROUNDS} rounds or more\n")
    for name, value in calls.items():
        print(f"on_end, {name:<10} {value:8.2f} µs")
    for name, (rate, cpu) in rates.items():
        print(f"{IN_FLIGHT} in flight, {name:<7} {rate:7.0f} deliveries/s   {cpu:5.2f} ms CPU each")
    print()
    for (name, value), goal in zip(ratios.items(), ("goal ≤ 1.0, least ≤ 1.5", "goal ≥ 5, least ≥ 3"), strict=True):
        print(f"{name:<50} {value:5.2f} ×   ({goal})")


if __name__ == "__main__":
    main()
