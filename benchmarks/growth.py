"""Whether a delivery costs more where more waits, where there are more receivers, or where more steps end."""

import json
import subprocess
import sys
from pathlib import Path

from tables import Cell, Table, spread

ROUNDS = 3
_GROWING = Path(__file__).with_name("growing.py")
_QUEUES = (10, 1_000, 100_000, 1_000_000)
_ENDPOINTS = (1, 5, 20, 50)
_RATES = (10, 100, 500, 1_000, 2_000, 4_000)  # steps per second


def _table(title: str, kind: str, url: str, sizes: tuple[int, ...], remark: str) -> Table:
    found: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    for _ in range(ROUNDS):
        for size, looks in found.items():
            command = [sys.executable, str(_GROWING), kind, url, str(size)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=300)  # noqa: S603 -- ours
            looks.append(json.loads(done.stdout))
    rows: list[tuple[Cell, ...]] = [
        (
            f"{size:,}".replace(",", " "),
            spread([one["cpu_ms"] for one in looks]),
            spread([one["rate"] for one in looks]),
        )
        for size, looks in found.items()
    ]
    return Table(title, (kind, "CPU ms per delivery", "deliveries per second"), rows, remark)


def bench(url: str) -> list[Table]:
    """Look at each of the three."""
    return [
        _table("Growth: what waits", "queue", url, _QUEUES, "CPU time of the worker's thread alone."),
        _table("Growth: receivers", "endpoints", url, _ENDPOINTS, "Each step goes to all of them, by a worker each."),
        _table(
            "Growth: steps per second", "rate", url, _RATES, "With fewer deliveries than steps, the limit is reached."
        ),
    ]
