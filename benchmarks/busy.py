"""An application with a fixed load on the CPU, which ends steps: run by `impact.py`, which reads its line of JSON.

    python benchmarks/busy.py KIND CLIENT URL RATE SECONDS

KIND is ``asyncio`` or ``threads`` (a loop that computes, its throughput is measured), ``requests`` (requests that come
at RATE and take half a millisecond of CPU, their latency is measured) or ``ends`` (eight threads that end steps).
CLIENT is ``none`` (no hook), ``httpx`` or ``aiohttp``. RATE is in steps per second.
"""

import asyncio
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable

from measuring import exporting
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Tracer

from otel_step_hook import StepHookProcessor

_UNIT = 400  # rounds of a loop: a unit of work, some 20 µs
_REQUEST = 25  # units
_THREADS = 8
_CONCURRENCY = 100  # attempts in flight, all of which hang at a receiver that hangs
_BEFORE = 1.0  # seconds until connections are open and everything is imported


def _compute() -> None:
    total = 0
    for number in range(_UNIT):
        total += number * number


def _end_step(tracer: Tracer) -> None:
    tracer.start_span("step", attributes={"step_id": f"step-{time.monotonic_ns()}"}).end()


async def _in_asyncio(tracer: Tracer, rate: float, seconds: float) -> int:
    """Compute and give the loop a turn, for so many *seconds*; return how many units were done."""

    async def end_steps() -> None:
        while True:
            _end_step(tracer)
            await asyncio.sleep(1 / rate)

    ending = asyncio.create_task(end_steps())
    until, units = time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        _compute()
        units += 1
        await asyncio.sleep(0)
    ending.cancel()
    return units


def _in_threads(tracer: Tracer, rate: float, seconds: float) -> int:
    """Compute on one thread and end steps on another, for so many *seconds*; return how many units were done."""
    is_over = threading.Event()

    def end_steps() -> None:
        while not is_over.wait(1 / rate):
            _end_step(tracer)

    ending = threading.Thread(target=end_steps)
    ending.start()
    until, units = time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        _compute()
        units += 1
    is_over.set()
    ending.join()
    return units


def _requests(tracer: Tracer, rate: float, seconds: float) -> list[float]:
    """The milliseconds of requests, each with a step, from when they are due until they are done."""
    began, took = time.perf_counter(), []
    for number in range(int(rate * seconds)):
        due = began + number / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        for _ in range(_REQUEST):
            _compute()
        _end_step(tracer)
        took.append((time.perf_counter() - due) * 1000)
    return took


def _ends(tracer: Tracer, rate: float, seconds: float) -> list[float]:
    """The microseconds of ``span.end()`` on eight threads, which compute in between."""
    took: list[list[float]] = [[] for _ in range(_THREADS)]

    def run(mine: list[float]) -> None:
        until = time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            span = tracer.start_span("step", attributes={"step_id": f"step-{time.monotonic_ns()}"})
            ending = time.perf_counter_ns()
            span.end()
            mine.append((time.perf_counter_ns() - ending) / 1000)
            _compute()
            time.sleep(max(0.0, began + _THREADS / rate - time.perf_counter()))

    threads = [threading.Thread(target=run, args=(mine,)) for mine in took]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [one for mine in took for one in mine]


_LISTS: dict[str, Callable[[Tracer, float, float], list[float]]] = {"requests": _requests, "ends": _ends}


def _measure(kind: str, tracer: Tracer, rate: float, seconds: float) -> dict[str, float]:
    if kind in _LISTS:
        took = _LISTS[kind](tracer, rate, seconds)
        return {"p50": statistics.median(took), "p99": statistics.quantiles(took, n=100)[98]}
    if kind == "asyncio":
        return {"units": asyncio.run(_in_asyncio(tracer, rate, seconds)) / seconds}
    return {"units": _in_threads(tracer, rate, seconds) / seconds}


def main() -> None:
    """Run as the arguments say, and print a line of JSON."""
    kind, client, url, rate, seconds = sys.argv[1:]
    provider = TracerProvider(shutdown_on_exit=False)
    if client != "none":
        hook = StepHookProcessor(
            url, http_client=client, concurrency=_CONCURRENCY, max_queue_size=100_000, shutdown_timeout=0.1
        )
        provider.add_span_processor(hook)
    provider.add_span_processor(exporting())
    tracer = provider.get_tracer("bench")
    _measure(kind, tracer, float(rate), _BEFORE)
    print(json.dumps(_measure(kind, tracer, float(rate), float(seconds))), flush=True)
    provider.shutdown()


if __name__ == "__main__":
    main()
