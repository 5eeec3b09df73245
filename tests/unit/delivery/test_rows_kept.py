"""The rows of an outbox: how many there are, how long they stay, and by which clock they go."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from storing import NOW, deliver, discard, ids, new, put, retry, rows_of

from otel_step_hook.delivery import rows as rows_module
from otel_step_hook.delivery.database import Database
from otel_step_hook.delivery.rows import EndpointRows, Row


def test_far_due_times_become_due(database: Database, rows: EndpointRows) -> None:
    """What a process with another clock, or with a longer backoff, has left does not stall."""
    put(rows, "msg_1", "msg_2", "msg_3")
    other = rows_of(database, endpoint="other")
    put(other, "msg_4")
    for one, row, due_at in zip((rows,) * 3, rows.lease(3, 0, NOW), (NOW + 5, NOW + 3600, NOW + 3601), strict=True):
        retry(one, row, due_at)
    retry(other, other.lease(1, 0, NOW)[0], NOW + 3601)
    rows.tidy(now=NOW, latest_due=NOW + 3600, discarded_before=0.0, limit=9)
    assert ids(rows.lease(9, 0, NOW)) == ["msg_3"]
    assert (rows.next_due(), other.next_due()) == (NOW + 5, NOW + 3601)


def test_discarded_rows_are_purged_by_age(database: Database, rows: EndpointRows) -> None:
    """The oldest first, some at a time."""
    put(rows, *(f"msg_{number}" for number in range(5)))
    for number, row in enumerate(rows.lease(4, 0, NOW)):
        discard(rows, row, NOW + number)
    rows.tidy(now=NOW, latest_due=2 * NOW, discarded_before=NOW + 3, limit=2)
    assert database.execute("SELECT webhook_id FROM delivery ORDER BY id") == [("msg_2",), ("msg_3",), ("msg_4",)]
    rows.tidy(now=NOW, latest_due=2 * NOW, discarded_before=NOW + 3, limit=2)
    assert database.execute("SELECT webhook_id FROM delivery ORDER BY id") == [("msg_3",), ("msg_4",)]
    assert rows.state()[2:] == (1, 1, 1)


def test_discarded_rows_of_other_endpoints_stay(database: Database, rows: EndpointRows) -> None:
    """Each endpoint keeps its rows for its own time; those of an endpoint that no process knows stay."""
    other = rows_of(database, endpoint="other")
    for one, webhook_id in ((rows, "msg_1"), (other, "msg_2")):
        put(one, webhook_id)
        discard(one, one.lease(1, 0, NOW)[0], NOW)
    rows.tidy(now=NOW, latest_due=2 * NOW, discarded_before=NOW + 1, limit=9)
    assert database.execute("SELECT webhook_id FROM delivery") == [("msg_2",)]
    plan = database.execute("EXPLAIN QUERY PLAN " + rows_module._PURGE, {"endpoint": "e", "before": NOW, "limit": 9})
    assert "delivery_kept (endpoint=? AND discarded_at>? AND discarded_at<?)" in str(plan)  # passes over no other row


def test_the_limit_purges_the_oldest_of_all_endpoints(database: Database, rows: EndpointRows) -> None:
    """Rows that no process tidies do not take the room of those that an endpoint has just discarded."""
    other = rows_of(database, endpoint="other")
    for one, webhook_id, at in ((rows, "msg_1", NOW + 2), (other, "msg_2", NOW), (other, "msg_3", NOW + 1)):
        put(one, webhook_id)
        discard(one, one.lease(1, 0, NOW)[0], at)
    rows.purge_beyond(1, 9)
    assert database.execute("SELECT webhook_id FROM delivery") == [("msg_1",)]


def test_discarded_rows_are_purged_beyond_the_limit(database: Database, rows: EndpointRows) -> None:
    """They make room for rows that wait, the oldest first; what waits is never purged."""
    rows.purge_beyond(0, 9)
    put(rows, *(f"msg_{number}" for number in range(6)))
    for number, row in enumerate(rows.lease(3, 0, NOW)):
        discard(rows, row, NOW + number)
    for max_rows, limit, left in ((6, 9, 6), (5, 9, 5), (3, 1, 4), (0, 9, 3)):
        rows.purge_beyond(max_rows, limit)
        assert database.execute("SELECT count(*) FROM delivery") == [(left,)]
    assert rows.state()[2:] == (3, 0, 3)


def test_resources_are_stored_once(database: Database, rows: EndpointRows) -> None:
    """As long as a row needs one; a row whose resource is missing comes back without."""
    put(rows, "msg_1", "msg_2", resource="first")
    put(rows, "msg_3", resource="second")
    assert database.execute("SELECT hash FROM resource") == [("first",), ("second",)]
    (row,) = rows.lease(1, 0, NOW)
    deliver(rows, row)
    rows.tidy(now=NOW, latest_due=2 * NOW, discarded_before=0.0, limit=9)
    assert database.execute("SELECT hash FROM resource") == [("first",), ("second",)]
    deliver(rows, *rows.lease(1, 0, NOW))
    rows.tidy(now=NOW, latest_due=2 * NOW, discarded_before=0.0, limit=9)
    assert database.execute("SELECT hash FROM resource") == [("second",)]
    database.execute("DELETE FROM resource")
    assert rows.lease(1, 0, NOW)[0].resource is None


def test_processes_of_one_boot_share_a_clock(
    tmp_path: Path, rows: EndpointRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process of a boot decides; another boot has a clock of its own, and a system without boots has none."""
    boot = tmp_path / "boot_id"
    monkeypatch.setattr(rows_module, "_BOOT", boot)
    assert rows.clock_offset(1.0) == 1.0
    assert rows_module.known_clock_offset(rows.database) is None
    boot.write_text("first\n")
    assert rows_module.known_clock_offset(rows.database) is None
    assert [rows.clock_offset(offset) for offset in (5.0, 3605.0)] == [5.0, 5.0]
    assert rows_module.known_clock_offset(rows.database) == 5.0
    boot.write_text("second\n")
    assert [rows.clock_offset(offset) for offset in (7.0, 5.0)] == [7.0, 7.0]


class CountedRows(RuleBasedStateMachine):
    """Random changes by two processes: the counts that triggers keep are those of the rows."""

    path: Path

    def __init__(self) -> None:
        super().__init__()
        self.database = Database(self.path)
        self.database.execute("DELETE FROM delivery")
        self.owners = [
            rows_of(self.database, owner, endpoint) for owner in ("one", "two") for endpoint in ("first", "second")
        ]
        self.leased: list[Row] = []
        self.now = NOW

    owner = st.integers(0, 3)

    @rule(owner=owner, numbers=st.lists(st.integers(0, 9), max_size=4))
    def put(self, owner: int, numbers: list[int]) -> None:
        put(self.owners[owner], *(f"msg_{number}" for number in numbers), at=self.now)

    @rule(owner=owner, oldest=st.integers(0, 3), newest=st.integers(0, 3))
    def lease(self, owner: int, oldest: int, newest: int) -> None:
        found = self.owners[owner].lease(oldest, newest, self.now)
        assert len(found) <= oldest + newest
        self.leased += found

    @rule(owner=owner, act=st.sampled_from([deliver, discard]), data=st.data())
    def end(self, owner: int, act: object, data: st.DataObject) -> None:
        if self.leased and callable(act):
            act(self.owners[owner], data.draw(st.sampled_from(self.leased)))

    @rule(owner=owner, data=st.data())
    def retry(self, owner: int, data: st.DataObject) -> None:
        if self.leased:
            retry(self.owners[owner], data.draw(st.sampled_from(self.leased)), self.now)

    @rule(owner=owner, seconds=st.sampled_from([0.0, 10.0, 50.0]))
    def tidy(self, owner: int, seconds: float) -> None:
        self.now += seconds
        self.owners[owner].tidy(now=self.now, latest_due=self.now, discarded_before=self.now - 30.0, limit=3)

    @rule(owner=owner, max_rows=st.integers(0, 9))
    def purge(self, owner: int, max_rows: int) -> None:
        self.owners[owner].purge_beyond(max_rows, 3)

    @invariant()
    def counts_are_those_of_the_rows(self) -> None:
        found = self.database.execute("SELECT endpoint, discarded_at IS NOT NULL FROM delivery")
        counted = self.database.execute("SELECT endpoint, is_discarded, rows FROM row_count WHERE rows <> 0")
        assert Counter(found) == {(endpoint, is_discarded): rows for endpoint, is_discarded, rows in counted}

    def teardown(self) -> None:
        self.database.close()


def test_counts_are_those_of_the_rows(tmp_path: Path) -> None:
    """Counting a million rows would take long; triggers keep the counts, whatever changes."""
    run_state_machine_as_test(type("Machine", (CountedRows,), {"path": tmp_path / "steps.db"}))


def test_changes_know_whether_there_are_any() -> None:
    """Resources alone are none, and new rows can be taken back."""
    changes = new("msg_1")
    assert changes
    changes.forget_new()
    assert not changes
    assert (changes.new, changes.resources) == ([], {})
