"""A program that ends steps and then ends itself: run by `lifetime.py`, which measures it from outside.

    python benchmarks/ending.py URL STEPS SETTINGS

SETTINGS are those of the hook, as JSON. It prints how much memory (in bytes) the waiting steps take, and when its own
work was over, in seconds of the system's monotonic clock.
"""

import gc
import json
import sys
import time
from pathlib import Path

from opentelemetry.sdk.trace import TracerProvider

from otel_step_hook import StepHookProcessor

_PAGE = 4096  # bytes


def _resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def main() -> None:
    """End the steps, print, and leave the exit to the hook."""
    url, steps, settings = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    provider = TracerProvider()
    provider.add_span_processor(StepHookProcessor(url, max_queue_size=steps + 1, **settings))
    tracer = provider.get_tracer("bench")
    tracer.start_span("warm-up").end()
    before = _resident()
    for number in range(steps):
        tracer.start_span("step", attributes={"step_id": f"step-{number}"}).end()
    print(json.dumps({"bytes": _resident() - before, "over": time.monotonic()}), flush=True)


if __name__ == "__main__":
    main()
