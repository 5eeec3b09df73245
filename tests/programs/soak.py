"""Ends 200 steps a second into an outbox for minutes, and samples what must not grow meanwhile: `make soak`.

The receiver fails at random, then is gone for a quarter of the time, then is back; the process forks now and then.
Ends with status 1 if memory, descriptors, threads, timers, the write-ahead log or the journal grow after the warm-up,
or if a step is lost. Sends to loopback only.
"""

import argparse
import contextlib
import gc
import logging
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flapping import Arrived, FlappingReceiver, fork
from opentelemetry.sdk.trace import TracerProvider

from otel_step_hook import StepHookProcessor
from otel_step_hook.delivery.loop import EventLoop

RATE = 200  # steps a second
FORK_INTERVAL = 5.0  # seconds
FORKED_STEPS = 5  # of each forked child
WARM_UP = 0.2  # share of the time
GONE = (0.4, 0.65)  # shares of the time between which the receiver is gone
LINES = 24  # of the table
REST_LIMIT = 300.0  # seconds that the steps that wait at the end may take
_MOODS = ("well",) * 17 + ("slow", "refusing", "closing")


class Sample(NamedTuple):
    """What is sampled. Sizes are in MiB."""

    seconds: float
    memory: float  # resident, without what is shared
    descriptors: int
    threads: int
    timers: int
    wal: float
    journals: float
    rows: int


# How much each may grow from the warm-up to the end, by a line through all samples: what an allocator or a cache of
# SQLite (2 MiB) may still take, and no more.
ALLOWED = {"memory": 5.0, "descriptors": 3.0, "threads": 1.0, "timers": 10.0, "wal": 8.0, "journals": 9.0}


@dataclass(frozen=True)
class Application:
    """The process that ends steps."""

    url: str
    directory: Path
    seconds: float

    def run(self) -> None:
        """End steps at a steady rate, and write the number of timers to a file; then wait until all is delivered."""
        logging.basicConfig(filename=self.directory / "messages", format="%(levelname)s %(message)s")
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        hook = StepHookProcessor(
            self.url,
            outbox=str(self.directory / "steps.db"),
            initial_backoff=0.1,
            max_backoff=5,
            timeout=5,
            give_up_after=86400,
        )
        provider = TracerProvider()
        provider.add_span_processor(hook)
        tracer = provider.get_tracer("soak")
        began = fork_at = time.monotonic()
        number = 0
        while (now := time.monotonic()) < began + self.seconds:
            tracer.start_span("step", attributes={"step_id": f"soak-{number}"}).end()
            number += 1
            if now >= fork_at:
                fork_at = now + FORK_INTERVAL
                self._fork(provider, number)
                self._write("timers", _timers())
            time.sleep(max(0.0, began + number / RATE - time.monotonic()))  # the rate of the steps
        self._write("ended", number)
        signal.sigwait({signal.SIGTERM})
        provider.shutdown()

    def _fork(self, provider: TracerProvider, number: int) -> None:
        def run() -> None:
            tracer = provider.get_tracer("soak")
            for step in range(FORKED_STEPS):
                tracer.start_span("step", attributes={"step_id": f"forked-{number}-{step}"}).end()
            provider.shutdown()

        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        fork(run)

    def _write(self, name: str, value: int) -> None:
        (self.directory / name).write_text(str(value))


def _timers() -> int:
    """How many timers the event loop of the worker thread holds. asyncio keeps up to 100 that were cancelled."""
    loops: list[Any] = [one for one in gc.get_objects() if isinstance(one, EventLoop)]
    return sum(not timer.cancelled() for loop in loops for timer in tuple(loop._scheduled))


def _sample(pid: int, directory: Path, seconds: float) -> Sample:
    process = Path(f"/proc/{pid}")
    resident, shared = map(int, (process / "statm").read_text().split()[1:3])
    timers = directory / "timers"
    return Sample(
        seconds,
        (resident - shared) * os.sysconf("SC_PAGESIZE") / 2**20,
        len(list((process / "fd").iterdir())),
        len(list((process / "task").iterdir())),
        int(timers.read_text() or 0) if timers.exists() else 0,
        _size(directory.glob("*-wal")),
        _size(directory.glob("*.journal")),
        _rows(directory / "steps.db"),
    )


def _size(paths: Any) -> float:
    size = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # it has just been removed
            size += path.stat().st_blocks * 512
    return size / 2**20


def _rows(path: Path) -> int:
    with contextlib.suppress(sqlite3.OperationalError):  # there is none yet
        rows = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return int(rows.execute("SELECT coalesce(sum(rows), 0) FROM row_count").fetchone()[0])
        finally:
            rows.close()
    return 0


def _slope(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    """The least-squares slope of *value*, per second."""
    mean_x = sum(one.seconds for one in samples) / len(samples)
    mean_y = sum(value(one) for one in samples) / len(samples)
    spread = sum((one.seconds - mean_x) ** 2 for one in samples)
    return sum((one.seconds - mean_x) * (value(one) - mean_y) for one in samples) / spread


def _run(pid: int, receiver: FlappingReceiver, directory: Path, seconds: float) -> list[Sample]:
    """Sample once a second, and change what the receiver does on the way."""
    phases = [("gone", GONE[0] * seconds, receiver.be_gone), ("back", GONE[1] * seconds, receiver.flap)]
    phase, samples, next_line, began = "flapping", [], 0.0, time.monotonic()
    print("   time  receiver   memory  descriptors  threads  timers      WAL  journals    rows", flush=True)
    while (now := time.monotonic() - began) < seconds:
        if phases and now >= phases[0][1]:
            phase, _, change = phases.pop(0)
            change()
        one = _sample(pid, directory, now)
        samples.append(one)
        if now >= next_line:
            next_line += seconds / LINES
            print(_line(phase, one), flush=True)
        time.sleep(1)  # one sample a second
    return samples


def _line(phase: str, one: Sample) -> str:
    return (
        f"{one.seconds:5.0f} s  {phase:8} {one.memory:6.1f} M {one.descriptors:12} {one.threads:8} {one.timers:7}"
        f" {one.wal:6.1f} M {one.journals:7.1f} M {one.rows:7}"
    )


def _report(samples: Sequence[Sample], seconds: float) -> bool:
    """Print how much each value has grown; return whether all are flat."""
    warm = [one for one in samples if one.seconds >= WARM_UP * seconds]
    length = warm[-1].seconds - warm[0].seconds
    print(f"\nslopes after the first {WARM_UP * seconds:.0f} s, by a line through {len(warm)} samples")
    is_flat = True
    for name, allowed in ALLOWED.items():
        slope = _slope(warm, lambda one, name=name: float(getattr(one, name)))  # type: ignore[misc]  # -- binds it now
        is_good = slope * length <= allowed
        is_flat = is_flat and is_good
        print(f"{name:12} {slope * 60:+8.3f} a minute, {slope * length:+7.2f} in all (allowed: {allowed:g})"
              f"{'' if is_good else '   GROWS'}")  # fmt: skip
    return is_flat


def _deliver_rest(directory: Path, receiver: FlappingReceiver) -> float:
    """Wait until no row is left. Returns the seconds it took."""
    receiver.be_well()
    began = time.monotonic()
    while time.monotonic() - began < REST_LIMIT and (
        not (directory / "ended").exists() or _rows(directory / "steps.db")
    ):
        time.sleep(0.5)  # nothing wakes a process outside
    return time.monotonic() - began


def main() -> None:
    """Print a table and the slopes, and end with status 1 if one is not flat or a step is lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    seconds = parser.parse_args().seconds
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    receiver = FlappingReceiver(directory / "arrived", "soak", moods=_MOODS)
    receiver.start()
    print(f"{RATE} steps a second, load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    pid = fork(Application(receiver.url, directory, seconds).run)
    try:
        is_good = _report(_run(pid, receiver, directory, seconds), seconds)
        rest = _deliver_rest(directory, receiver)
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        pid, ended = 0, int((directory / "ended").read_text())
        arrived, left = Arrived(directory / "arrived"), _rows(directory / "steps.db")
        lost = [number for number in range(ended) if f"soak-{number}" not in arrived.webhook_ids]
        duplicates = sum(max(0, count - 1) for count in arrived.accepted.values())
        print(f"{ended} steps and {len(arrived.webhook_ids) - ended + len(lost)} of forked children, {len(lost)} lost,"
              f" {duplicates} duplicates, {left} rows left {rest:.0f} s after the last step")  # fmt: skip
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
        receiver.stop()
        shutil.rmtree(directory, ignore_errors=True)
    sys.exit(not is_good or bool(lost) or bool(left))


if __name__ == "__main__":
    main()
