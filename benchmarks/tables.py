"""Tables of results: printed, put into a page between two comments, and kept as JSON."""

import json
import os
import platform
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

Cell = str | float
_MARKS = "<!-- results of make bench -->\n", "<!-- end of results -->"


@dataclass(frozen=True)
class Table:
    """Results under a *title*; *remark* says what was measured, and what is to be reached."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]] = field(default_factory=list)
    remark: str = ""

    def text(self) -> str:
        """The table in Markdown."""
        cells = [tuple(map(_shown, row)) for row in (self.columns, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["| " + " | ".join(_padded(row, widths)) + " |" for row in cells]
        rule = "|" + "|".join("-" * (width + 1) + ("-" if not number else ":") for number, width in enumerate(widths))
        return "\n".join(
            [f"### {self.title}\n", *([self.remark + "\n"] if self.remark else []), lines[0], rule + "|", *lines[1:]]
        )


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *rest = (
        cell.rjust(width) if number else cell.ljust(width)
        for number, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return [first, *rest]


def _shown(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell
    digits = 0 if abs(cell) >= 100 else 1 if abs(cell) >= 10 else 2
    return f"{cell:,.{digits}f}".replace(",", " ")


def spread(values: Sequence[float]) -> str:
    """The median of *values*, and the smallest and the largest."""
    return f"{_shown(statistics.median(values))} ({_shown(min(values))}–{_shown(max(values))})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios of two sides that were measured in turn."""
    return statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))


def machine() -> str:
    """One line: when and where."""
    load, cores = os.getloadavg()[0], os.cpu_count()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{time.strftime('%Y-%m-%d')}, {cores} cores of {platform.machine()}, {python}, load average {load:.1f}"


def as_json(tables: Sequence[Table]) -> str:
    """All *tables*, with the line of `machine`."""
    return json.dumps({"machine": machine(), "tables": [asdict(table) for table in tables]}, ensure_ascii=False)


def put_into(page: Path, tables: Sequence[Table], began: str) -> None:
    """Replace what *page* has between two comments by *tables*; *began* is the line of `machine` at the start."""
    before, after = _MARKS
    body = "\n\n".join([f"Measured {began}.", *(table.text() for table in tables)])
    text = page.read_text()
    pattern = re.compile(re.escape(before) + ".*?" + re.escape(after), re.DOTALL)
    page.write_text(pattern.sub(lambda _: f"{before}\n{body}\n\n{after}", text, count=1))
