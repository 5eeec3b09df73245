"""The metrics, through a real MeterProvider: in a process of its own, because there can be one per process."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "programs" / "delivery_metrics.py"


def _sorted(points: list[list[object]]) -> list[list[object]]:
    return sorted(points, key=str)


def test_deliveries_attempts_drops_durations_and_the_queue_are_counted() -> None:
    """Each counter counts what its name says, under labels that are bounded, also where spans cannot be recorded."""
    run = subprocess.run(
        [sys.executable, "-W", "error", str(PROGRAM)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    after = told["after"]
    deliveries = _sorted(
        [
            [{"outcome": "failed", "result": "delivered"}, 1, "{delivery}"],
            [{"outcome": "cancelled", "result": "discarded"}, 1, "{delivery}"],
            [{"outcome": "success", "result": "delivered"}, 1, "{delivery}"],
            [{"outcome": "success", "result": "discarded"}, 2, "{delivery}"],
        ]
    )
    assert _sorted(after["step_hook.deliveries"]) == deliveries
    assert _sorted(after["step_hook.delivery.duration"]) == [[*point[:2], "s"] for point in deliveries]
    assert _sorted(after["step_hook.attempts"]) == _sorted(
        [
            [{"error.type": "503"}, 1, "{attempt}"],
            [{"error.type": "timeout"}, 1, "{attempt}"],
            [{"error.type": "410"}, 1, "{attempt}"],
            [{"error.type": "shutdown"}, 1, "{attempt}"],
            [{}, 2, "{attempt}"],
        ]
    )
    assert after["step_hook.dropped"] == [[{"reason": "queue_full"}, 3, "{event}"]]
    assert told["during"] == [[{}, 2, "{event}"]]
    assert after["step_hook.queue.size"] == [[{}, 0, "{event}"]]
