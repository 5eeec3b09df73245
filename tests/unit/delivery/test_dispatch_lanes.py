"""Many deliveries at a time: lanes, connections, flushes."""

import gc
import socket
import threading

import pytest
from delivering import DELIVERED, WAIT, NewRig, Rig, Script, event, failed, wait_until
from sending import OK, answering

from otel_step_hook.delivery.model import Delivery
from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.testing import HostileReceiver, read_request


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_no_more_attempts_are_in_flight_than_allowed(rigged: NewRig, concurrency: int) -> None:
    """STEP_COMPLETE_CONCURRENCY is never exceeded, and it is reached."""
    answer = threading.Event()
    script = Script(*[answer] * concurrency)
    rig = rigged(script, concurrency=concurrency)
    rig.submit(*(event(f"step-{number}") for number in range(50)))
    script.wait_for(concurrency)
    answer.set()
    assert rig.worker.flush(WAIT)
    rig.worker.shutdown(WAIT)
    assert (script.most_in_flight, script.made, script.closed) == (concurrency, concurrency, concurrency)
    assert {post.body for post in script.posts} == {b'{"step_id": "step-%d"}' % number for number in range(50)}


def test_a_slow_delivery_delays_no_other(rigged: NewRig) -> None:
    """While one attempt waits for its answer, the other lane goes on delivering."""
    answer = threading.Event()
    rig = rigged(Script(answer), concurrency=2)
    rig.submit(event("slow"), *(event() for _ in range(10)))
    wait_until(lambda: len(rig.results) == 10)
    assert "slow" not in [step for step, _, _ in rig.results]
    answer.set()
    assert rig.worker.flush(WAIT)
    assert len(rig.results) == 11


def test_a_delivery_that_waits_for_its_next_attempt_occupies_no_lane(rigged: NewRig) -> None:
    """With one lane, a step that was refused waits aside, and the next ones are delivered meanwhile."""
    answer = threading.Event()
    rig = rigged(Script(answer, failed(retry_after=0.05), DELIVERED), concurrency=1, max_backoff=0.5)
    rig.submit(event("refused"), event("next"))
    answer.set()
    assert rig.worker.flush(WAIT)
    assert [step for step, _, _ in rig.results] == ["next", "refused"]


def test_sparse_steps_share_one_warm_connection(rigged: NewRig) -> None:
    """The lane used last is used next: steps that come one by one need one connection, whatever the concurrency."""
    with HostileReceiver(answering(OK)) as receiver:
        rig = rigged(webhook=receiver.url, concurrency=8)
        for _ in range(10):
            rig.deliver()
        assert receiver.connections == 1


def test_the_lane_used_last_is_used_next(rigged: NewRig) -> None:
    """A burst opens as many connections as there are lanes, and sparse steps after it use one; the others cool down."""
    all_open = threading.Barrier(4)
    users: list[socket.socket] = []

    def behave(connection: socket.socket, _: threading.Event) -> None:
        while read_request(connection):
            if connection not in users:
                all_open.wait(WAIT)
            users.append(connection)
            connection.sendall(OK)

    with HostileReceiver(behave) as receiver:
        rig = rigged(webhook=receiver.url, concurrency=4)
        rig.deliver(*(event() for _ in range(100)))
        assert receiver.connections == len(set(users)) == 4
        for _ in range(8):
            rig.deliver()
        assert receiver.connections == 4
    assert len(users) == 108
    assert len(set(users[100:])) == 1


class Feeding(Script):
    """A script that submits one more step to *rig* in each attempt, but in those that wait for *events*."""

    def __init__(self, *events: threading.Event) -> None:
        super().__init__(*events, self._feed)
        self.rig: Rig | None = None

    def _feed(self) -> AttemptResult:
        if self.rig is not None:
            self.rig.submit()
        return DELIVERED


def test_a_flush_waits_for_what_came_before_it_and_nothing_else(rigged: NewRig) -> None:
    """Steps that are submitted after a flush do not prolong it, even where some are always under way."""
    script = Feeding()
    script.rig = rig = rigged(script, concurrency=1)
    rig.submit(event(), event(), event())
    for _ in range(20):
        assert rig.worker.flush(WAIT)
    script.rig = None


def test_a_flush_waits_for_the_oldest_of_what_came_before_it(rigged: NewRig) -> None:
    """Deliveries do not end in the order of their steps: a flush waits for all, whatever ends meanwhile."""
    answer = threading.Event()
    script = Feeding(answer)
    script.rig = rig = rigged(script, concurrency=2)
    rig.submit(event("slow"), event(), event())
    wait_until(lambda: rig.results)
    assert not rig.worker.flush(0.1)
    script.rig = None
    answer.set()
    assert rig.worker.flush(WAIT)
    assert "slow" in [step for step, _, _ in rig.results]


def test_nothing_of_a_delivery_is_kept_after_its_end(rigged: NewRig) -> None:
    """Deliveries that are over, whatever became of them, are forgotten."""

    def kept() -> list[Delivery]:
        gc.collect()
        found = [item for item in gc.get_objects() if isinstance(item, Delivery)]  # of other tests, too
        return [delivery for delivery in found if delivery.event.step_id.startswith("kept-")]

    rig = rigged(Script(failed(), RuntimeError(), failed(410), DELIVERED), concurrency=2)
    rig.deliver(*(event(f"kept-{number}") for number in range(100)))
    assert len(rig.results) == 100
    wait_until(lambda: not kept())  # the last lane comes to its end
