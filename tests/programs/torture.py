"""Kills processes that end steps into an outbox, and counts what is lost, which must be nothing: `make torture`.

A child ends steps as fast as it can, and writes each step id to a log just after `span.end()`. It is killed with
SIGKILL at a random moment and started again, while the receiver fails at random. At the end a last process delivers
what is left: every step in the log has arrived, all its copies under one webhook id. Sends to loopback only.
"""

import argparse
import itertools
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from flapping import Arrived, FlappingReceiver, fork
from opentelemetry.sdk.trace import TracerProvider
from tortured import HEADER, Outcome, left_of, messages_in, waiting_in

from otel_step_hook import StepHookProcessor
from otel_step_hook.delivery import sender, transport, worker  # noqa: F401 -- once for all children
from otel_step_hook.delivery.outbox import OutboxStore

MODES = ("one", "two", "fork", "disk")
CONCURRENCY = 8
TIMEOUT = 2.0  # seconds of an attempt
LONGEST_LIFE = 0.8  # seconds until a process is killed
FORK_EVERY = 150  # steps
CHILD_STEPS = 50  # of a forked child, at most
DISK_SIZE = 64  # MiB: some journals and the database
_START_WITH_SPACE = 0.8  # share of the processes
END_LIMIT = 600.0  # seconds that the last process may take to deliver what is left
_FINAL = "the-last"


@dataclass(frozen=True)
class Life:
    """What a process that ends steps needs to know."""

    url: str
    outbox: Path
    log: int  # descriptor
    steps: int  # of one process, at most
    forks: bool
    seed: str

    def run(self, name: str) -> NoReturn:
        """End steps, then wait to be killed."""
        rand = random.Random(f"{self.seed}-{name}")  # noqa: S311 -- to be repeated
        provider, stored = self.provider(), _watch_put()
        tracer = provider.get_tracer("torture")
        for number in range(self.steps):
            step_id = f"{name}-{number}"
            tracer.start_span("step", attributes={"step_id": step_id}).end()
            os.write(self.log, f"{step_id} {stored[0]}\n".encode())
            if self.forks and number % FORK_EVERY == FORK_EVERY - 1:
                fork(lambda number=number: self._end_in_child(tracer, provider, f"{name}.{number}", stored, rand))  # type: ignore[misc]  # -- binds it now
        while True:
            signal.pause()

    def _end_in_child(
        self, tracer: object, provider: TracerProvider, name: str, stored: list[str], rand: random.Random
    ) -> None:
        """End some steps in a forked child, which then ends at once, in order, or waits to be killed."""
        for number in range(rand.randrange(CHILD_STEPS)):
            step_id = f"{name}-{number}"
            tracer.start_span("step", attributes={"step_id": step_id}).end()  # type: ignore[attr-defined]
            os.write(self.log, f"{step_id} {stored[0]}\n".encode())
        end = rand.choice(("at once", "in order", "killed"))
        if end == "in order":
            provider.shutdown()
        while end == "killed":
            signal.pause()

    def provider(self, concurrency: int = CONCURRENCY) -> TracerProvider:
        """A provider with a hook."""
        hook = StepHookProcessor(
            self.url,
            outbox=str(self.outbox),
            timeout=TIMEOUT,
            initial_backoff=0.05,
            max_backoff=1,
            give_up_after=86400,
            concurrency=concurrency,
        )
        provider = TracerProvider()
        provider.add_span_processor(hook)
        return provider


def _watch_put() -> list[str]:
    """Return a list that from now on holds what the last `put` of this process did with its event."""
    put, stored = OutboxStore.put, ["none"]

    def watched(store, event, pipeline):  # type: ignore[no-untyped-def]  # -- as the original
        result = put(store, event, pipeline)
        stored[0] = result.name
        return result

    OutboxStore.put = watched  # type: ignore[method-assign]
    return stored


class Torture:
    """Runs one of the `MODES` in *directory*, up to *kills* kills."""

    def __init__(self, mode: str, directory: Path, outbox: Path, *, kills: int, steps: int, seed: str) -> None:
        self._mode = mode
        self._directory = directory
        self._outbox = outbox
        self._kills = kills
        self._rand = random.Random(f"{seed}-{mode}")  # noqa: S311 -- to be repeated
        self._receiver = FlappingReceiver(directory / "arrived", f"{seed}-{mode}-receiver")
        self._log = os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._life = Life(self._receiver.url, outbox, self._log, steps, mode == "fork", f"{seed}-{mode}")
        self._names = itertools.count()
        self._orphans: list[int] = []  # process groups that may have members

    def run(self) -> Outcome:
        """Kill and restart, then deliver what is left; return what came of it."""
        began = time.monotonic()
        self._receiver.start()
        try:
            killed = self._kill_often()
            self._receiver.be_well()
            seconds, left = self._deliver_rest()
        finally:
            self._receiver.stop()
            os.close(self._log)
        log = dict(line.split() for line in (self._directory / "log").read_text().splitlines())
        arrived, messages = Arrived(self._directory / "arrived"), messages_in(self._directory / "messages")
        return Outcome(
            self._mode, log, arrived, killed * CONCURRENCY, messages, killed, left, seconds, time.monotonic() - began
        )

    def _start(self) -> int:
        name = f"{next(self._names)}"
        # A process that starts on a full disk has neither journal nor rows, and can promise nothing.
        if self._rand.random() < _START_WITH_SPACE:
            self._free_disk()

        def run() -> None:
            os.setpgid(0, 0)
            self._log_messages()
            self._life.run(name)

        return fork(run)

    def _log_messages(self) -> None:
        logging.basicConfig(filename=self._directory / "messages", force=True, format="%(levelname)s %(message)s")

    def _kill_often(self) -> int:
        lanes = 2 if self._mode == "two" else 1
        running = [(self._start(), self._next_kill()) for _ in range(lanes)]
        self._wait_for_first_step()
        for _ in range(self._kills):
            running.sort(key=lambda one: one[1])
            pid, at = running.pop(0)
            self._wait_until(at)
            self._kill(pid)
            running.append((self._start(), self._next_kill()))
        for pid, at in running:
            self._wait_until(at)
            self._kill(pid, with_children=True)
        self._free_disk()
        return self._kills + lanes

    def _wait_for_first_step(self) -> None:
        """Let one process come as far as a step: on a busy machine all of them could be killed before."""
        began = time.monotonic()
        while not os.fstat(self._log).st_size and time.monotonic() - began < END_LIMIT:
            time.sleep(0.01)  # nothing wakes a process outside

    def _next_kill(self) -> float:
        return time.monotonic() + self._rand.uniform(0.01, LONGEST_LIFE)

    def _wait_until(self, at: float) -> None:
        if self._mode == "disk":
            time.sleep(max(0.0, at - time.monotonic()) * self._rand.random())
            self._rand.choice((self._fill_disk, self._fill_disk, self._free_disk))()
        time.sleep(max(0.0, at - time.monotonic()))

    def _kill(self, pid: int, *, with_children: bool = False) -> None:
        """Kill *pid*, in half of all cases with its forked children; others are killed in the end at the latest."""
        if self._life.forks and (with_children or self._rand.random() < 0.5):
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:  # killed before it made its group
                os.kill(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if self._life.forks and not with_children:
            self._orphans.append(pid)

    def _kill_orphans(self) -> None:
        for group in self._orphans:
            try:
                os.killpg(group, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def _fill_disk(self) -> None:
        with (self._outbox.parent / "filler").open("ab", buffering=0) as file:
            for size in (2**20, 2**12):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def _free_disk(self) -> None:
        (self._outbox.parent / "filler").unlink(missing_ok=True)

    def _deliver_rest(self) -> tuple[float, str]:
        """Let a last process deliver. Returns the seconds it took, and what it left, which should be nothing."""
        self._kill_orphans()
        began = time.monotonic()

        def run() -> None:
            self._log_messages()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            provider = self._life.provider(4 * CONCURRENCY)
            provider.get_tracer("torture").start_span("step", attributes={"step_id": _FINAL}).end()
            signal.sigwait({signal.SIGTERM})
            provider.shutdown()

        pid = fork(run)
        while time.monotonic() - began < END_LIMIT and (not self._has_begun() or waiting_in(self._outbox)):
            time.sleep(0.2)  # nothing wakes a process outside
        seconds = time.monotonic() - began
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        return seconds, left_of(self._outbox)

    def _has_begun(self) -> bool:
        """Whether the last process has delivered its own step, before which it looks for what others have left."""
        return _FINAL.encode() in (self._directory / "arrived").read_bytes()


def _mounted(directory: Path) -> bool:
    """Whether a small tmpfs could be mounted at *directory*."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE}m", "tmpfs", str(directory)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def torture(mode: str, *, kills: int, steps: int, seed: str) -> Outcome | None:
    """Run *mode* in a new directory. None where a disk that fills up cannot be had."""
    directory = Path(tempfile.mkdtemp(prefix=f"torture-{mode}-"))
    disk, is_mounted = directory / "disk", False
    try:
        if mode == "disk":
            is_mounted = _mounted(disk)
            if not is_mounted:
                return None
        else:
            disk.mkdir()
        return Torture(mode, directory, disk / "steps.db", kills=kills, steps=steps, seed=seed).run()
    finally:
        if is_mounted:
            subprocess.run(["umount", str(disk)], check=False)
        shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    """Print a table, and end with status 1 if a step was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--kills", type=int, default=200, help="in each mode")
    parser.add_argument("--steps", type=int, default=250, help="that one process ends at most")
    parser.add_argument("--seed", default=str(random.randrange(10**9)))  # noqa: S311 -- to be repeated
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(
        f"seed {arguments.seed}, load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores\n{HEADER}", flush=True
    )
    is_good = True
    for mode in arguments.modes:
        outcome = torture(mode, kills=arguments.kills, steps=arguments.steps, seed=arguments.seed)
        if outcome is None:
            print(f"{mode:5} skipped: a tmpfs can only be mounted by root", flush=True)
            continue
        outcome.print()
        is_good = is_good and outcome.is_good()
    sys.exit(not is_good)


if __name__ == "__main__":
    main()
