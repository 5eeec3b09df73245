"""What comes of `torture.py`: which steps were lost, sent twice or left, and what was logged meanwhile."""

import re
import sqlite3
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from flapping import Arrived

HEADER = "mode     steps  kills  requests  duplicates  lost  in memory  dropped  rest after     in all"


def messages_in(path: Path) -> Counter[str]:
    """How often each line was logged, whatever its numbers and ids."""
    lines = path.read_text().splitlines() if path.exists() else []
    kinds = (re.sub(r"\b(step|the-last|[0-9.]+-\d+|msg_\w+|[0-9a-f]{8,}|[\d.]+)\b", "…", line) for line in lines)
    return Counter(kind[:200] for kind in kinds)


def waiting_in(outbox: Path) -> int:
    """How many deliveries wait in the file; -1 while there is none."""
    return _count(outbox, "SELECT count(*) FROM delivery WHERE discarded_at IS NULL")


def _count(outbox: Path, query: str) -> int:
    try:
        rows = sqlite3.connect(f"file:{outbox}?mode=ro", uri=True)
    except sqlite3.OperationalError:
        return -1
    try:
        return int(rows.execute(query).fetchone()[0])
    except sqlite3.OperationalError:  # it has no tables yet
        return -1
    finally:
        rows.close()


def left_of(outbox: Path) -> str:
    """What is left in and beside the file: rows that wait or were discarded, and journals."""
    found = {
        "waiting rows": waiting_in(outbox),
        "discarded rows": _count(outbox, "SELECT count(*) FROM delivery WHERE discarded_at IS NOT NULL"),
        "journals": len(list(outbox.parent.glob("*.journal"))),
    }
    return ", ".join(f"{count} {what}" for what, count in found.items() if count)


@dataclass
class Outcome:
    """What came of the torture in one mode."""

    mode: str
    log: dict[str, str]  # what `put` did, by step id
    arrived: Arrived
    allowed_duplicates: int  # the attempts that may be in flight at the kills
    messages: Counter[str]
    kills: int
    left: str
    seconds_to_deliver_rest: float
    seconds: float

    @property
    def lost(self) -> list[str]:
        """The steps in the log that never arrived. On a full disk, those that could only be kept in memory are none."""
        return [step_id for step_id in self._missing if self.mode != "disk" or self.log[step_id] == "DURABLE"]

    @property
    def _missing(self) -> list[str]:
        return [step_id for step_id in self.log if step_id not in self.arrived.webhook_ids]

    @property
    def duplicates(self) -> int:
        """How often a step was accepted once more."""
        return sum(max(0, count - 1) for count in self.arrived.accepted.values())

    @property
    def renamed(self) -> list[str]:
        """The steps that arrived under several webhook ids."""
        return [step_id for step_id, ids in self.arrived.webhook_ids.items() if len(ids) > 1]

    def is_good(self) -> bool:
        """Whether the promise was kept."""
        return not (self.lost or self.renamed or self.left or self.duplicates > self.allowed_duplicates)

    def print(self) -> None:
        """Print a line, and what is wrong."""
        stored, lost = Counter(self.log.values()), Counter(self.log[step_id] for step_id in self.lost)
        print(
            f"{self.mode:5} {len(self.log):8} {self.kills:6} {self.arrived.requests:9} {self.duplicates:11}"
            f" {len(self.lost):5} {stored['IN_MEMORY']:10} {stored['FULL']:8} {self.seconds_to_deliver_rest:10.1f} s"
            f" {self.seconds:7.1f} s"
        )
        for text, value in (("LOST", dict(lost)), ("SEVERAL IDS", self.renamed[:5]), ("LEFT", self.left)):
            if value:
                print(f"      {text}: {value}")
        if self.lost:
            print(f"      {self.lost[:10]}")
        if len(self._missing) > len(self.lost):
            print(f"      and {len(self._missing) - len(self.lost)} that a full disk left in memory until the kill")
        for message, count in self.messages.most_common(12):
            print(f"      {count:6} × {message}")
        sys.stdout.flush()
