"""Measures what the processor costs the application, and what it delivers, beside the usual ways.

Both sides of each comparison are measured in turn, in one run: ratios are meaningful, absolute numbers depend on the
machine. Sends to loopback only. Takes some half an hour; name the parts that you want.
"""

import argparse
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import deliveries
import ends
import growth
import impact
import lifetime
import outbox
from tables import Table, as_json, machine, put_into

_PARTS: dict[str, Callable[[str], list[Table]]] = {
    "ends": ends.bench,
    "deliveries": deliveries.bench,
    "impact": impact.bench,
    "lifetime": lifetime.bench,
    "growth": growth.bench,
    "outbox": outbox.bench,
}


def _measure(parts: list[str]) -> list[Table]:
    """Run *parts*, and print each table when it is there."""
    command = [sys.executable, str(Path(__file__).with_name("receiver.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as receiver:  # noqa: S603 -- ours
        assert receiver.stdout is not None  # noqa: S101 -- for mypy: stdout is a pipe
        url, tables = receiver.stdout.readline().strip(), []
        try:
            for part in parts:
                for table in _PARTS[part](url):
                    print(f"\n{table.text()}", flush=True)
                    tables.append(table)
        finally:
            receiver.terminate()
    return tables


def main() -> None:
    """Print the tables, and write them where the arguments say."""
    logging.getLogger("otel_step_hook").addHandler(logging.NullHandler())  # keeps intended failures off stderr
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*_PARTS, []], help="by default all of them")
    parser.add_argument("--json", type=Path, help="write the results as JSON into this file")
    parser.add_argument("--page", type=Path, help="put the tables into this page")
    arguments = parser.parse_args()
    began = machine()
    print(began)
    tables = _measure(arguments.parts or list(_PARTS))
    if arguments.json:
        arguments.json.write_text(as_json(tables))
    if arguments.page:
        put_into(arguments.page, tables, began)


if __name__ == "__main__":
    main()
