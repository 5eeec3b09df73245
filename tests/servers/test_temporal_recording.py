"""The script that records the histories of `tests/unit/temporal/test_replay.py`."""

import asyncio
import json
from pathlib import Path

import pytest
from servers.recording import HISTORIES, record
from servers.temporal_workers import Server

pytest_plugins = ["servers.temporal_fixtures"]
pytestmark = pytest.mark.servers


def test_the_script_records_what_the_unit_test_replays(newer_temporal: Server, tmp_path: Path) -> None:
    """It writes the files that are committed, and each workflow has ended as it did then."""
    asyncio.run(record(newer_temporal, tmp_path))
    committed, recorded = HISTORIES.glob("1.32-*.json"), tmp_path.iterdir()
    assert [_end(path) for path in sorted(recorded)] == [_end(path) for path in sorted(committed)]


def _end(path: Path) -> tuple[str, str]:
    return path.name, json.loads(path.read_text())["events"][-1]["eventType"]
