"""The times that an `Inspection` shows, by clocks that differ from that of the rows."""

import contextlib
import sqlite3
import time
from pathlib import Path

import pytest
from outboxes import fill

from otel_step_hook.delivery import rows
from otel_step_hook.delivery.inspection import Filters, Inspection
from otel_step_hook.testing import ScriptedReceiver

_LATER = """
UPDATE clock SET started_at = started_at + 3600;
UPDATE delivery SET submitted_at = submitted_at + 3600, due_at = due_at + 3600, discarded_at = discarded_at + 3600;
"""


def test_times_are_those_of_the_wall_clock(tmp_path: Path, step_receiver: ScriptedReceiver) -> None:
    """The clock of the rows, which does not jump with the wall clock, is an hour ahead of it: nobody sees that."""
    path = tmp_path / "steps.db"
    fill(path, step_receiver)
    with Inspection(path) as inspection:
        before, counts, waiting = inspection.find(Filters(), 9), inspection.endpoints(), inspection.waiting("default")
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.executescript(_LATER)
        after = inspection.find(Filters(), 9)
        assert [one.submitted_at for one in after] == pytest.approx([one.submitted_at for one in before], abs=1.0)
        assert [one.due_at for one in after] == pytest.approx([one.due_at for one in before], abs=1.0)
        assert [one.discarded_at for one in after] == pytest.approx([one.discarded_at for one in before], abs=1.0)
        assert inspection.endpoints()[0].oldest_at == pytest.approx(counts[0].oldest_at, abs=1.0)
        assert inspection.waiting("default")[1] == pytest.approx(waiting[1], abs=1.0)
        assert inspection.count(Filters(younger=1800.0)) == 3
        assert inspection.redeliver(Filters(ids=["gone"])) == 1
        (again,) = inspection.find(Filters(ids=["gone"]), 9)
        assert again.submitted_at == pytest.approx(time.time(), abs=60.0)
        with contextlib.closing(sqlite3.connect(path)) as database:
            found = database.execute("SELECT sum(redeliveries), sum(event LIKE '%gone%') FROM delivery").fetchone()
        assert found == (1, 1)


def test_where_processes_share_no_clock(
    tmp_path: Path, step_receiver: ScriptedReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing names the boot, as on macOS, and before a process of this boot has opened the file: as it is."""
    path = tmp_path / "steps.db"
    monkeypatch.setattr(rows, "_BOOT", tmp_path / "missing")
    fill(path, step_receiver)
    boot = tmp_path / "boot"
    boot.write_text("another boot")
    for known in (tmp_path / "missing", boot):
        monkeypatch.setattr(rows, "_BOOT", known)
        with Inspection(path) as inspection:
            (later,) = inspection.find(Filters(ids=["later"]), 9)
            assert later.submitted_at == pytest.approx(time.time(), abs=60.0)
            assert inspection.count(Filters(younger=60.0)) == 3
