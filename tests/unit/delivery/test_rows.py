"""The rows of an outbox: how they are stored once, leased to one process, and finished by it alone."""

import json

from storing import LEASE_TIME, NOW, SENT, deliver, discard, ids, new, put, retry, rows_of

from otel_step_hook.delivery.database import Database
from otel_step_hook.delivery.rows import EndpointRows, Row


def test_a_row_has_all_that_a_later_attempt_needs(rows: EndpointRows) -> None:
    """Event, resource, times, attempts, error and body come back as they were."""
    changes = new("msg_1", attempts=3, error_type="503", body=SENT)
    rows.write(changes, NOW)
    (row,) = rows.lease(5, 5, NOW)
    assert row == Row(
        1, row.lease, "msg_1", changes.new[0].event, None, NOW, 3, "503", SENT.decode(), "hash", '"hash"', 0
    )
    assert json.loads(row.event)["step_id"] == "msg_1"


def test_an_event_that_is_put_twice_is_one_row(rows: EndpointRows) -> None:
    """In one transaction, in two, and while it is leased: the first one counts."""
    put(rows, "msg_1", "msg_1")
    put(rows, "msg_1", at=NOW + 5)
    (row,) = rows.lease(9, 9, NOW + 9)
    put(rows, "msg_1", at=NOW + 9)
    assert (row.submitted_at, rows.state().waiting) == (NOW, 1)
    assert rows.lease(9, 9, NOW + 10) == []
    deliver(rows, row)
    assert rows.state() == (None, None, 0, 0, 0)


def test_endpoints_have_rows_of_their_own(database: Database, rows: EndpointRows) -> None:
    """One step is a row at each endpoint; none sees those of another, and all are counted together."""
    other = rows_of(database, endpoint="other")
    for one in (rows, other):
        put(one, "msg_1")
    put(other, "msg_2")
    assert (ids(rows.lease(9, 9, NOW)), ids(other.lease(9, 9, NOW))) == (["msg_1"], ["msg_1", "msg_2"])
    assert (rows.state().waiting, other.state().waiting, rows.state().all_waiting) == (1, 2, 3)
    assert rows.others(frozenset({"default"})) == [("other", 2)]
    assert rows.others(frozenset({"default", "other"})) == []


def test_a_discarded_row_stays_with_its_last_error(database: Database, rows: EndpointRows) -> None:
    """It is neither leased nor due, and not counted as waiting."""
    put(rows, "msg_1")
    discard(rows, rows.lease(1, 0, NOW)[0])
    assert rows.lease(9, 9, NOW + 1e9) == rows.lease_older(NOW + 1e9, 9, NOW + 1e9) == []
    assert rows.state() == (None, None, 0, 1, 0)
    assert database.execute("SELECT error_type, attempts, discarded_at, owner FROM delivery") == [("410", 1, NOW, None)]


def test_a_discarded_row_is_revived(rows: EndpointRows) -> None:
    """A step that is submitted again is delivered again, with as many attempts as a new one, and the same body."""
    put(rows, "msg_1")
    (row,) = rows.lease(1, 0, NOW)
    retry(rows, row, NOW)
    (row,) = rows.lease(1, 0, NOW)
    discard(rows, row)
    put(rows, "msg_1", at=NOW + 100)
    assert rows.state() == (NOW + 100, NOW + 100, 1, 0, 1)
    (again,) = rows.lease(0, 1, NOW + 100)
    assert (again.attempts, again.body, again.submitted_at, again.id) == (0, SENT.decode(), NOW + 100, row.id)


def test_the_lease_of_another_process_is_not_finished(database: Database, rows: EndpointRows) -> None:
    """Whatever a process has heard of rows that another one has leased, it changes nothing."""
    put(rows, "msg_1")
    (row,) = rows_of(database, "other").lease(1, 0, NOW)
    before = database.execute("SELECT * FROM delivery")
    deliver(rows, row)
    retry(rows, row, NOW)
    discard(rows, row)
    assert database.execute("SELECT * FROM delivery") == before
    assert (rows.lease(9, 9, NOW), rows.next_due()) == ([], NOW + LEASE_TIME)


def test_an_expired_lease_is_claimed_by_another(database: Database, rows: EndpointRows) -> None:
    """A process that stands still for longer than its lease changes nothing when it goes on."""
    other = rows_of(database, "other")
    put(rows, "msg_1")
    (slept,) = rows.lease(1, 0, NOW)
    assert other.lease(1, 0, NOW + LEASE_TIME - 1) == other.lease_older(NOW, 1, NOW + LEASE_TIME - 1) == []
    (row,) = other.lease(1, 0, NOW + LEASE_TIME)
    for act in (deliver, discard):
        act(rows, slept)
    retry(rows, slept, NOW)
    assert rows.lease(9, 9, NOW + LEASE_TIME) == []
    retry(other, row, NOW + LEASE_TIME)
    (again,) = rows.lease(1, 0, NOW + LEASE_TIME)
    assert (again.attempts, again.error_type) == (1, "503")


def test_an_old_lease_of_the_same_process_changes_nothing(database: Database, rows: EndpointRows) -> None:
    """Also when the row has come back to it since, by way of another process, and other rows are finished with it."""
    put(rows, "msg_1")
    (slept,) = rows.lease(1, 0, NOW)
    other = rows_of(database, "other")
    retry(other, other.lease(1, 0, NOW + 50)[0], NOW + 50)
    put(rows, "msg_2", at=NOW + 51)
    first, second = rows.lease(2, 0, NOW + 51)
    assert ids([first, second]) == ["msg_1", "msg_2"]
    deliver(rows, slept, second)
    retry(rows, slept, NOW)
    discard(rows, slept)
    assert database.execute("SELECT webhook_id, owner, attempts FROM delivery") == [("msg_1", "own", 1)]
    deliver(rows, first)
    assert rows.state().all_waiting == 0


def test_leases_have_new_numbers_when_the_file_is_opened_again(database: Database, rows: EndpointRows) -> None:
    """A lease from before, of a row that has come back to this process since, changes nothing."""
    put(rows, "msg_1")
    (slept,) = rows.lease(1, 0, NOW)
    again = rows_of(database)
    again.release("own", NOW + 1)
    (row,) = again.lease(1, 0, NOW + 1)
    deliver(again, slept)
    assert again.state().waiting == 1
    deliver(again, row)
    assert again.state().waiting == 0


def test_a_process_does_not_lease_its_own_rows_again(rows: EndpointRows) -> None:
    """An attempt that takes longer than its lease, because nothing else wanted the row, still ends it."""
    put(rows, "msg_1")
    (row,) = rows.lease(1, 0, NOW)
    assert rows.lease(9, 9, NOW + 1000) == rows.lease_older(NOW + 1000, 9, NOW + 1000) == []
    assert rows.next_due() is None
    deliver(rows, row)
    assert rows.state().all_waiting == 0


def test_a_dead_process_leaves_its_rows_due(database: Database, rows: EndpointRows) -> None:
    """Its leases end at once, of all endpoints, and those of others stay."""
    dead, living = rows_of(database, "dead", "other"), rows_of(database, "living")
    put(dead, "msg_1")
    put(rows, "msg_2")
    assert ids(dead.lease(1, 0, NOW)) + ids(living.lease(1, 0, NOW)) == ["msg_1", "msg_2"]
    rows.release("dead", NOW + 1)
    assert (rows_of(database, "own", "other").next_due(), rows.next_due()) == (NOW + 1, NOW + LEASE_TIME)


def test_a_lease_is_half_the_oldest_and_half_the_newest(rows: EndpointRows) -> None:
    """The newest are those that were never leased; where there are too few, more of the others are leased."""
    put(rows, *(f"msg_{number}" for number in range(6)))
    for row in rows.lease(2, 0, NOW):
        retry(rows, row, NOW + 1)
    assert ids(rows.lease(1, 1, NOW + 2)) == ["msg_2", "msg_5"]
    assert ids(rows.lease(1, 3, NOW + 2)) == ["msg_0", "msg_1", "msg_3", "msg_4"]


def test_rows_are_leased_by_their_age(rows: EndpointRows) -> None:
    """Due or not, oldest first, and at most as many as there is room for."""
    for number in range(4):
        put(rows, f"msg_{number}", at=NOW + number)
    for row in rows.lease(4, 0, NOW + 9):
        retry(rows, row, NOW + 1000)
    assert ids(rows.lease_older(NOW + 2, 2, NOW + 9)) == ["msg_0", "msg_1"]
    assert ids(rows.lease_older(NOW + 2, 9, NOW + 9)) == ["msg_2"]
