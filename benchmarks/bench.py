"""Measures what the processor costs the application, and how much it delivers per second.

Both sides of each comparison are measured in one run: the ratios are meaningful, absolute numbers depend on the
machine. Sends to loopback only.
"""

import argparse
import asyncio
import json
import logging
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
import outbox
from measuring import IN_FLIGHT, ROUNDS, Passing, deliver, exporting, make_spans, median, per_call, timed
from opentelemetry.sdk.trace import TracerProvider

from otel_step_hook import StepHookProcessor, StepHookSettings

OUTAGE = 15  # seconds
ATTRIBUTES = (0, 8, 20, 60)  # of a span
OPEN_STEPS = (0, 1000)


def bench_no_step(url: str) -> dict[tuple[int, int], tuple[float, float]]:
    """Median microseconds of ``on_end`` for a span that is no step: of the SDK's batch processor, and of ours.

    The keys are the number of attributes of the span and the number of open steps. Twenty spans are measured at a
    time, so that they are in the CPU's cache, as in an application.
    """
    table = {}
    for open_steps in OPEN_STEPS:
        hook, batch = StepHookProcessor(StepHookSettings(webhook=url)), exporting()
        steps = Passing(hook)
        _begin_steps(steps, open_steps)
        for attributes in ATTRIBUTES:
            rows = []
            for _ in range(ROUNDS * 60):
                passing = Passing(hook)
                spans = make_spans(passing, 20, attributes)
                rows.append((per_call(batch.on_end, spans), per_call(hook.on_end, spans)))
            table[attributes, open_steps] = (median(rows, 0), median(rows, 1))
        batch.shutdown()  # type: ignore[no-untyped-call]  # -- the SDK has no annotation there
        hook.shutdown()
    return table


def _begin_steps(passing: Passing, count: int) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(passing)
    for number in range(count):
        provider.get_tracer("bench").start_span("step", attributes={"step_id": str(number)})


def bench_step(url: str) -> float:
    """Median microseconds of our ``on_end`` for a step, while the worker thread runs."""
    durations = []
    for _ in range(ROUNDS * 3):
        hook = StepHookProcessor(StepHookSettings(webhook=url, max_queue_size=100_000))
        passing = Passing(hook)
        durations.append(per_call(hook.on_end, make_spans(passing, 200, 8, step_id="step-1")))
        hook.shutdown()
    return statistics.median(durations)


async def _shared_client(url: str, count: int) -> None:
    """The usual way, for comparison: one `httpx.AsyncClient` and *count* POSTs, `IN_FLIGHT` at a time."""
    async with httpx.AsyncClient(timeout=15, limits=httpx.Limits(max_connections=IN_FLIGHT)) as client:
        numbers = iter(range(count))

        async def lane() -> None:
            for number in numbers:
                response = await client.post(url, json={"step_id": f"step-{number}"})
                response.raise_for_status()

        await asyncio.gather(*(lane() for _ in range(IN_FLIGHT)))


def bench_deliveries(url: str) -> dict[str, tuple[float, float]]:
    """Median deliveries per second and CPU milliseconds per delivery, of one shared client and of ours."""
    rows: dict[str, list[tuple[float, float]]] = {"shared": [], "ours": []}
    deliver(url, 100)
    for _ in range(ROUNDS):
        rows["shared"].append(timed(lambda: asyncio.run(_shared_client(url, 300)), 300))
        rows["ours"].append(timed(lambda: deliver(url, 1500), 1500))
    return {name: (median(values, 0), median(values, 1)) for name, values in rows.items()}


def bench_outage() -> float:
    """CPU seconds per minute while the port of the endpoint is closed and 2048 events wait."""
    with socket.socket() as closed:  # bound, but not listening
        closed.bind(("127.0.0.1", 0))
        hook = StepHookProcessor(f"http://127.0.0.1:{closed.getsockname()[1]}/", give_up_after=600, shutdown_timeout=1)
        for span in make_spans(Passing(hook), 2048, 0, step_id="step-1"):
            hook.on_end(span)
        time.sleep(2)  # until the first attempts have failed
        cpu, began = time.process_time(), time.monotonic()
        time.sleep(OUTAGE)
        per_minute = (time.process_time() - cpu) / (time.monotonic() - began) * 60
        hook.shutdown()
    return per_minute


def main() -> None:
    """Print the results as a table, or as JSON with ``--json``."""
    logging.getLogger("otel_step_hook").addHandler(logging.NullHandler())  # keeps intended failures off stderr
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    receiver = subprocess.Popen(  # noqa: S603 -- runs our own file
        [sys.executable, str(Path(__file__).with_name("receiver.py"))], stdout=subprocess.PIPE, text=True
    )
    try:
        assert receiver.stdout is not None  # noqa: S101 -- for mypy: stdout is a pipe
        url = receiver.stdout.readline().strip()
        stored = outbox.bench(url)
        no_step, step, rates, outage = bench_no_step(url), bench_step(url), bench_deliveries(url), bench_outage()
    finally:
        receiver.terminate()
        receiver.wait()
    ratio = rates["ours"][0] / rates["shared"][0]
    if arguments.json:
        rows = [
            {"attributes": key[0], "under_way": key[1], "batch": us[0], "ours": us[1]} for key, us in no_step.items()
        ]
        print(
            json.dumps(
                {
                    "no_step_us": rows,
                    "step_us": step,
                    "rates": rates,
                    "deliveries_ratio": ratio,
                    "outage_cpu_s": outage,
                    "outbox": stored,
                }
            )
        )
        return
    print(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores, medians of {ROUNDS} rounds or more\n")
    print("on_end of a span that is no step    BatchSpanProcessor      ours     ratio   (goal ≤ 1.0)")
    for (attributes, open_steps), (batch, ours) in no_step.items():
        span = f"{attributes:3} attributes, {open_steps:4} steps under way"
        print(f"{span} {batch:15.2f} µs {ours:8.2f} µs {ours / batch:6.2f} ×")
    print(f"\non_end of a step {step:36.2f} µs   (goal ≤ 12)")
    for name, (rate, cpu) in rates.items():
        print(f"{IN_FLIGHT} in flight, {name:<7} {rate:7.0f} deliveries/s   {cpu:5.2f} ms CPU each")
    print(f"deliveries per second / one shared AsyncClient {ratio:6.2f} ×   (goal ≥ 5)")
    outbox.print_results(stored)
    print(f"\nport closed, 2048 events wait {outage:24.2f} s CPU a minute   (goal ≤ 1)")


if __name__ == "__main__":
    main()
