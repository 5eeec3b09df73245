"""What whole processes need: memory for what waits, time from a step to its receiver, and time to exit."""

import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from opentelemetry.sdk.trace import TracerProvider
from tables import Cell, Table, spread

from otel_step_hook import StepHookProcessor, StepHookSettings

ROUNDS = 3
CLIENTS = ("httpx", "aiohttp")
_HERE = Path(__file__).parent
_QUEUES = (10_000, 100_000)  # waiting deliveries
_AT_EXIT = 1000  # deliveries that wait when the program is over
_STEPS = 300  # of one look at the latency
_IDLE = 0.02  # seconds between two of them
_SHUTDOWN = 1  # second, the shutdown timeout where the receiver hangs


def _end(url: str, steps: int, **settings: object) -> tuple[dict[str, float], float]:
    """Run `ending.py`; return what it prints, and the seconds from then until the process was gone."""
    command = [sys.executable, str(_HERE / "ending.py"), url, str(steps), json.dumps(settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:  # noqa: S603 -- ours
        assert process.stdout is not None  # noqa: S101 -- for mypy: stdout is a pipe
        found = json.loads(process.stdout.readline())
        process.wait(120)
        return found, time.monotonic() - found["over"]


@contextlib.contextmanager
def _hanging() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/hook"


def bench_memory() -> Table:
    """Memory for waiting deliveries: the receiver hangs, and nothing is delivered."""
    rows: list[tuple[Cell, ...]] = []
    with _hanging() as url:
        for steps in _QUEUES:
            found = [_end(url, steps, shutdown_timeout=0.1)[0]["bytes"] / 1e6 for _ in range(ROUNDS)]
            rows.append((f"{steps:,}".replace(",", " "), spread(found), statistics.median(found) / steps * 1e6))
    remark = "Growth of the resident memory while steps end. Goal: 10 MB for 10 000."
    return Table("Memory for what waits", ("waiting", "MB", "bytes each"), rows, remark)


def bench_exit(url: str) -> Table:
    """Seconds from the end of the program's own work to the end of the process."""
    rows: list[tuple[Cell, ...]] = []
    goals = {"httpx": "≤ 2", "aiohttp": "≤ 1"}
    for client in CLIENTS:
        took = [_end(url, _AT_EXIT, http_client=client)[1] for _ in range(ROUNDS)]
        rows.append((f"{client}, {_AT_EXIT} wait, healthy receiver", goals[client], spread(took)))
    with _hanging() as hanging:
        for client in CLIENTS:
            took = [_end(hanging, _AT_EXIT, http_client=client, shutdown_timeout=_SHUTDOWN)[1] for _ in range(ROUNDS)]
            name = f"{client}, {_AT_EXIT} wait, receiver hangs, shutdown timeout {_SHUTDOWN} s"
            rows.append((name, f"≤ {_SHUTDOWN + 0.3}", spread(took)))
    return Table("Exit", ("", "goal, s", "s"), rows, "From the last line of the program to the end of its process.")


def _latencies(**settings: object) -> list[float]:
    """Milliseconds from `span.end()` to the receiver's first byte of each of some steps, one after the other."""
    command = [sys.executable, str(_HERE / "receiver.py"), "times"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as receiver:  # noqa: S603 -- ours
        assert receiver.stdout is not None  # noqa: S101 -- for mypy: stdout is a pipe
        provider = TracerProvider(shutdown_on_exit=False)
        url = receiver.stdout.readline().strip()
        provider.add_span_processor(StepHookProcessor(StepHookSettings(webhook=url, **settings)))
        tracer, took = provider.get_tracer("bench"), []
        for number in range(_STEPS):
            time.sleep(_IDLE)
            span = tracer.start_span("step", attributes={"step_id": f"step-{number}"})
            ended = time.monotonic_ns()
            span.end()
            took.append((int(receiver.stdout.readline()) - ended) / 1e6)
        provider.shutdown()
        receiver.terminate()
    return took[_STEPS // 10 :]


def bench_latency() -> Table:
    """From `span.end()` to the receiver, where nothing else waits."""
    rows: list[tuple[Cell, ...]] = []
    for store, goal in (("memory", "≤ 2"), ("outbox", "≤ 4")):
        for client in CLIENTS:
            took: list[float] = []
            for _ in range(ROUNDS):
                with tempfile.TemporaryDirectory(prefix="bench-") as directory:
                    outbox = str(Path(directory, "steps.db")) if store == "outbox" else None
                    took += _latencies(http_client=client, outbox=outbox)
            rows.append((f"{store}, {client}", goal, statistics.median(took), statistics.quantiles(took, n=100)[98]))
    remark = f"One step every {_IDLE * 1000:g} ms, over a connection that is open."
    return Table(
        "From span.end() to the receiver's first byte", ("", "goal of p50, ms", "p50, ms", "p99, ms"), rows, remark
    )


def bench(url: str) -> list[Table]:
    """Measure all of it."""
    return [bench_memory(), bench_latency(), bench_exit(url)]
