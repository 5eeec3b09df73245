"""What the application feels: its throughput and its latency, beside themselves without a hook."""

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tables import Cell, Table, ratio, spread

ROUNDS = 3
_BUSY = Path(__file__).with_name("busy.py")
_SECONDS = 3.0
_CLIENTS = ("none", "httpx", "aiohttp")
_RATE = 100  # steps per second
_WAITING = 1000  # connections that the receiver that hangs has not accepted


def _run(kind: str, client: str, url: str, rate: int) -> dict[str, float]:
    """The result of one program."""
    command = [sys.executable, str(_BUSY), kind, client, url, str(rate), str(_SECONDS)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120)  # noqa: S603 -- ours
    found: dict[str, float] = json.loads(done.stdout)
    return found


@contextlib.contextmanager
def _hanging() -> Iterator[str]:
    """The URL of a receiver that takes connections, and answers none."""
    with socket.create_server(("127.0.0.1", 0), backlog=_WAITING) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/hook"


def _in_turn(kind: str, url: str, rate: int, key: str) -> dict[str, list[float]]:
    """Of each client in turn, the values of *key*."""
    found: dict[str, list[float]] = {client: [] for client in _CLIENTS}
    for _ in range(ROUNDS):
        for client, values in found.items():
            values.append(_run(kind, client, url, rate)[key])
    return found


def _row(name: str, goal: str, found: dict[str, list[float]]) -> tuple[Cell, ...]:
    without = found["none"]
    return (
        name,
        goal,
        *(spread(found[client]) for client in _CLIENTS),
        *(ratio(found[one], without) for one in _CLIENTS[1:]),
    )


def bench(url: str) -> list[Table]:
    """Run the programs with each client, and without a hook, in turn."""
    rows = []
    for kind in ("asyncio", "threads"):
        found = _in_turn(kind, url, _RATE, "units")
        rows.append(_row(f"{kind}: units of work per second, {_RATE} deliveries per second", "≥ 0.8, 0.9", found))
        with _hanging() as hanging:
            found = _in_turn(kind, hanging, _RATE, "units")
        rows.append(_row(f"{kind}: the same, 100 attempts hang", "≥ 0.95", found))
    for rate in (50, 500):
        found = _in_turn("requests", url, rate, "p99")
        rows.append(_row(f"p99 of a request, {rate} per second with a step each, ms", "≤ 1.3", found))
    found = _in_turn("ends", url, 500, "p99")
    rows.append(_row("p99 of span.end() on eight threads, 500 steps per second, µs", "≤ 3", found))
    columns = ("", "goal", "without a hook", "httpx", "aiohttp", "httpx / without", "aiohttp / without")
    remark = (
        "A process that computes, or answers requests, with a BatchSpanProcessor, with and without a hook. "
        f"Medians of {ROUNDS} rounds of {_SECONDS:g} s, with the least and the most. Goals: by httpx, by aiohttp."
    )
    return [Table("What the application feels", columns, rows, remark)]
