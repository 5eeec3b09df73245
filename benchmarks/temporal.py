"""Measures what a delivery through Temporal costs: as a standalone activity, and as a workflow of one activity.

Calls and events do not depend on the machine: they are counted, those of application and worker together. The rates do:
both are measured in turn, on one server, which is the limit here. Starts a server and a receiver on loopback.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from measuring import make_provider
from opentelemetry.sdk.trace import TracerProvider
from servers.temporal import TemporalServer
from temporalio.client import Client
from temporalio.runtime import MetricBuffer, Runtime, TelemetryConfig
from temporalio.worker import Worker

from otel_step_hook.temporal import StepHookPlugin, client, sender
from otel_step_hook.testing import ScriptedReceiver

KINDS = ("activity", "workflow")
FEW, MORE = 50, 150  # deliveries; what the difference takes is without what a worker does at its start and its end
ROUNDS = 3
RATED = 300  # deliveries of a round
_BUFFER = 100_000  # metric updates; a delivery makes some 50
_CALLS = {"temporal_request", "temporal_long_request"}  # the SDK's metrics: one for each gRPC call, or for each poll


class Kept(NamedTuple):
    """What the server has kept of one delivery."""

    events: int
    transitions: int
    size: int  # bytes


class Rates(NamedTuple):
    """Deliveries in a second, and what a handover costs the application's process in CPU milliseconds."""

    handed_over: float
    delivered: float
    cpu_ms: float


class Cost(NamedTuple):
    """What one delivery costs, and how many there are in a second."""

    calls: dict[str, float]  # by operation
    kept: Kept
    rates: Rates


@contextlib.contextmanager
def _as(kind: str) -> Iterator[None]:
    """Hand deliveries over as *kind*: a workflow is what an older server gets, which does not know activities."""

    async def unknown(*_: object) -> bool:
        return False

    if kind == "workflow":
        with mock.patch.object(sender.TemporalSender, "_start_activity", unknown):
            yield
    else:
        yield


def _end_steps(provider: TracerProvider, count: int) -> None:
    tracer = provider.get_tracer("bench")
    for number in range(count):
        tracer.start_span("step", attributes={"step_id": f"step-{number}"}).end()


async def _calls(address: str, kind: str, count: int, buffer: MetricBuffer) -> Counter[str]:
    """Deliver *count* steps, and return how many calls of each operation that took."""
    queue = f"{kind}-{count}"
    buffer.retrieve_updates()
    with ScriptedReceiver() as receiver, _as(kind):
        plugin = StepHookPlugin(webhook=receiver.url)
        async with Worker(await Client.connect(address), task_queue=queue, plugins=[plugin]):
            provider = make_provider(receiver.url, count, engine="temporal", task_queue=queue)
            _end_steps(provider, count)
            await asyncio.to_thread(receiver.wait_for, count, 120)
            await asyncio.to_thread(provider.shutdown)
    calls: Counter[str] = Counter()
    for update in buffer.retrieve_updates():
        if update.metric.name in _CALLS:
            calls[str(update.attributes["operation"])] += int(update.value)
    return calls


async def _kept(address: str, kind: str) -> Kept:
    """What the server has kept of the first delivery that `_calls` has made."""
    known, query = await Client.connect(address), f"TaskQueue = '{kind}-{FEW}'"
    if kind == "activity":
        async for activity in known.list_activities(query, limit=1):
            found = await known.get_activity_handle(activity.activity_id).describe()
            info = found.raw_info
            return Kept(0, info.state_transition_count, info.state_size_bytes)
    async for workflow in known.list_workflows(query, limit=1):
        described = await known.get_workflow_handle(workflow.id).describe()
        raw = described.raw_description.workflow_execution_info
        return Kept(raw.history_length, raw.state_transition_count, raw.history_size_bytes)
    sys.exit(f"the server does not list the deliveries of {query}")


def _count(address: str) -> dict[str, tuple[dict[str, float], Kept]]:
    """Calls of each operation, and what is kept, per delivery of each kind."""
    buffer = MetricBuffer(_BUFFER)
    runtime = Runtime(telemetry=TelemetryConfig(metrics=buffer, logging=None), worker_heartbeat_interval=None)
    Runtime.set_default(runtime)  # the worker's
    client._owned.process, client._owned.runtime = os.getpid(), runtime  # noqa: SLF001 -- ours
    counted = {}
    for kind in KINDS:
        few, more = (asyncio.run(_calls(address, kind, count, buffer)) for count in (FEW, MORE))
        calls = {name: (more[name] - few[name]) / (MORE - FEW) for name in more if more[name] > few[name]}
        counted[kind] = calls, asyncio.run(_kept(address, kind))
    return counted


@contextlib.contextmanager
def _running(*command: str, **variables: str) -> Iterator[Iterator[str]]:
    """Run *command*, and return the lines that it prints."""
    out, err = subprocess.PIPE, subprocess.DEVNULL  # the worker logs each delivery
    with subprocess.Popen(command, stdout=out, stderr=err, text=True, env=os.environ | variables) as process:  # noqa: S603 -- ours
        assert process.stdout is not None  # noqa: S101 -- for mypy: stdout is a pipe
        try:
            yield iter(process.stdout)
        finally:
            process.terminate()


def _rate(address: str) -> dict[str, Rates]:
    """Medians of each kind; the worker is a process of its own."""
    rates: dict[str, list[Rates]] = {kind: [] for kind in KINDS}
    os.environ["TEMPORAL_ADDRESS"] = address
    receiver = (sys.executable, str(Path(__file__).with_name("receiver.py")), str(RATED))
    with _running(*receiver) as arrivals:
        url = next(arrivals).strip()
        command = (sys.executable, "-m", "otel_step_hook", "worker", "--concurrency", "100")
        with _running(*command, STEP_COMPLETE_WEBHOOK=url) as worker:
            next(worker)  # it is ready
            for kind in KINDS * ROUNDS:
                with _as(kind):
                    provider = make_provider(url, RATED, engine="temporal")
                    began, cpu = time.perf_counter(), time.process_time()
                    _end_steps(provider, RATED)
                    if not provider.force_flush(60_000):  # milliseconds; returns when all are handed over
                        sys.exit(f"not every {kind} was handed over in time")
                    handed_over, cpu = time.perf_counter() - began, time.process_time() - cpu
                    next(arrivals)
                    delivered = time.perf_counter() - began
                    rates[kind].append(Rates(RATED / handed_over, RATED / delivered, cpu / RATED * 1000))
                    provider.shutdown()
    return {kind: Rates(*map(statistics.median, zip(*found, strict=True))) for kind, found in rates.items()}


def bench() -> dict[str, Cost]:
    """Measure all of it on a server of its own."""
    with tempfile.TemporaryDirectory(prefix="bench-temporal-") as folder, TemporalServer(Path(folder)) as server:
        rates = _rate(server.address)  # first: the runtime of this process then has no metrics
        counted = _count(server.address)
    return {kind: Cost(*counted[kind], rates[kind]) for kind in KINDS}


def _print(found: dict[str, Cost]) -> None:
    print(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores, medians of {ROUNDS} rounds\n")
    print(f"{'per delivery':40} {'activity':>10} {'workflow':>10}")
    costs = [found[kind] for kind in KINDS]
    operations = sorted({name for cost in costs for name in cost.calls})
    rows = [(f"call {name}", [cost.calls.get(name, 0.0) for cost in costs]) for name in operations]
    rows += [("all calls", [sum(cost.calls.values()) for cost in costs])]
    rows += [("history events", [cost.kept.events for cost in costs])]
    rows += [("state transitions", [cost.kept.transitions for cost in costs])]
    rows += [("bytes of history or state", [cost.kept.size for cost in costs])]
    for name, (activity, workflow) in rows:
        print(f"{name:40} {activity:10.2f} {workflow:10.2f}")
    print()
    for name, values in (
        ("handed over per second", [cost.rates.handed_over for cost in costs]),
        ("delivered per second", [cost.rates.delivered for cost in costs]),
        ("CPU ms of the application per handover", [cost.rates.cpu_ms for cost in costs]),
    ):
        print(f"{name:40} {values[0]:10.2f} {values[1]:10.2f} {values[0] / values[1]:7.2f} ×")


def main() -> None:
    """Print the results as a table, and as JSON."""
    logging.getLogger("otel_step_hook").setLevel(logging.CRITICAL)
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # a line for each request
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print only JSON")
    only_json = parser.parse_args().json
    found = bench()
    if not only_json:
        _print(found)
        print()
    print(
        json.dumps(
            {
                kind: cost._asdict() | {"kept": cost.kept._asdict(), "rates": cost.rates._asdict()}
                for kind, cost in found.items()
            }
        )
    )


if __name__ == "__main__":
    main()
