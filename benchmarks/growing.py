"""One look at the cost of a delivery: run by `growth.py`, a process for each, since what waits is left behind.

    python benchmarks/growing.py queue URL STEPS
    python benchmarks/growing.py endpoints URL ENDPOINTS
    python benchmarks/growing.py rate URL STEPS_PER_SECOND

It prints, as JSON, the CPU milliseconds that the worker threads need for a delivery, and deliveries per second.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from otel_step_hook import EndpointSettings, StepHookProcessor

_MEASURED = 1000  # deliveries
_SECONDS = 3.0  # at one rate
_IN_FLIGHT = 64


class _Costs(SpanProcessor):
    """Counts deliveries, and the CPU time of the threads that end them."""

    def __init__(self) -> None:
        self.delivered = 0
        self._cpu: dict[int, float] = {}  # by thread, seconds; written by that thread

    def on_end(self, span: ReadableSpan) -> None:
        """Count *span* if it is that of a delivery."""
        if span.name == "step_hook.deliver":
            self.delivered += 1
            self._cpu[threading.get_ident()] = time.thread_time()

    def now(self) -> tuple[int, float, float]:
        """How many are delivered, the CPU seconds that they took, and the time."""
        return self.delivered, sum(self._cpu.values()), time.perf_counter()


class _Application:
    """Ends steps for so many *endpoints*, and measures what their deliveries cost."""

    def __init__(self, url: str, *, endpoints: int = 1, room: int = 100_000) -> None:
        receivers = [EndpointSettings(name=f"receiver-{number}", webhook=url) for number in range(endpoints)]
        concurrency = _IN_FLIGHT if endpoints == 1 else _IN_FLIGHT // 8  # as by default
        hook = StepHookProcessor(
            endpoints=receivers, concurrency=concurrency, max_queue_size=room, give_up_after=86_400
        )
        provider, self._costs = TracerProvider(shutdown_on_exit=False), _Costs()
        provider.add_span_processor(hook)
        provider.add_span_processor(self._costs)
        self._tracer = provider.get_tracer("bench")
        self.end_steps(100)  # opens the connections
        self.wait_for(100 * endpoints)
        self._began = self._costs.now()

    def end_steps(self, count: int) -> None:
        """End so many steps."""
        for _ in range(count):
            self._tracer.start_span("step", attributes={"step_id": "step-1"}).end()

    def wait_for(self, count: int) -> None:
        """Wait until so many deliveries have ended in all."""
        while self._costs.delivered < count:
            time.sleep(0.002)

    def begin(self) -> int:
        """Measure from now on; return how many deliveries have ended."""
        self._began = self._costs.now()
        return self._began[0]

    def result(self) -> dict[str, float]:
        """CPU milliseconds per delivery, and deliveries per second, since `begin`."""
        delivered, cpu, at = (now - began for now, began in zip(self._costs.now(), self._began, strict=True))
        return {"cpu_ms": cpu / delivered * 1000, "rate": delivered / at}


def _queue(url: str, steps: int) -> dict[str, float]:
    """With so many *steps* that wait: either all at once, or a few again and again."""
    application = _Application(url, room=steps + 2 * _MEASURED)  # no more: room takes memory
    if steps >= _MEASURED:
        application.end_steps(steps + _MEASURED)
        application.wait_for(application.begin() + _MEASURED)
    else:
        done = application.begin()
        for number in range(1, _MEASURED // steps + 1):
            application.end_steps(steps)
            application.wait_for(done + number * steps)
    return application.result()


def _endpoints(url: str, endpoints: int) -> dict[str, float]:
    application = _Application(url, endpoints=endpoints)
    done = application.begin()
    application.end_steps(2 * _MEASURED // endpoints)
    application.wait_for(done + 2 * _MEASURED // endpoints * endpoints)
    return application.result()


def _rate(url: str, rate: int) -> dict[str, float]:
    """At so many steps per second: with less than that delivered, the limit is reached."""
    application = _Application(url)
    application.begin()
    began = time.perf_counter()
    for number in range(int(rate * _SECONDS)):
        time.sleep(max(0.0, began + number / rate - time.perf_counter()))
        application.end_steps(1)
    return application.result()


_LOOKS: dict[str, Callable[[str, int], dict[str, float]]] = {"queue": _queue, "endpoints": _endpoints, "rate": _rate}

if __name__ == "__main__":
    print(json.dumps(_LOOKS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))), flush=True)
    os._exit(0)  # without a drain
