"""Many deliveries at a time: the transports that they share, and what a flush waits for."""

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
    """As many attempts as STEP_COMPLETE_CONCURRENCY allows are in flight, and never more."""
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
    """While one attempt waits for its answer, other deliveries are made."""
    answer = threading.Event()
    rig = rigged(Script(answer), concurrency=2)
    rig.submit(event("slow"), *(event() for _ in range(10)))
    wait_until(lambda: len(rig.results) == 10)
    assert "slow" not in [step for step, _, _ in rig.results]
    answer.set()
    assert rig.worker.flush(WAIT)
    assert len(rig.results) == 11


def test_a_delivery_that_waits_for_its_next_attempt_occupies_no_transport(rigged: NewRig) -> None:
    """With a concurrency of 1, the next steps are delivered while a refused one waits for its retry."""
    answer = threading.Event()
    rig = rigged(Script(answer, failed(retry_after=0.05), DELIVERED), concurrency=1, max_backoff=0.5)
    rig.submit(event("refused"), event("next"))
    answer.set()
    assert rig.worker.flush(WAIT)
    assert [step for step, _, _ in rig.results] == ["next", "refused"]


def test_sparse_steps_share_one_connection(rigged: NewRig) -> None:
    """Steps that are delivered one by one use the same connection, whatever the concurrency."""
    with HostileReceiver(answering(OK)) as receiver:
        rig = rigged(webhook=receiver.url, concurrency=8)
        for _ in range(10):
            rig.deliver()
        assert receiver.connections == 1


def test_the_transport_used_last_is_used_next(rigged: NewRig) -> None:
    """A burst opens as many connections as the concurrency allows, and sparse steps after it use one of them."""
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
    """A script that submits one more step to *rig* in each attempt, except in those that wait for *events*."""

    def __init__(self, *events: threading.Event) -> None:
        super().__init__(*events, self._feed)
        self.rig: Rig | None = None

    def _feed(self) -> AttemptResult:
        if self.rig is not None:
            self.rig.submit()
        return DELIVERED


def test_a_flush_waits_only_for_earlier_steps(rigged: NewRig) -> None:
    """Steps that are submitted after a flush has begun do not prolong it, even if there is always one in flight."""
    script = Feeding()
    script.rig = rig = rigged(script, concurrency=1)
    rig.submit(event(), event(), event())
    for _ in range(20):
        assert rig.worker.flush(WAIT)
    script.rig = None


def test_a_flush_waits_for_all_earlier_steps(rigged: NewRig) -> None:
    """A flush waits for the slowest of the earlier deliveries, whichever later ones have ended."""
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


def test_a_delivery_is_freed_after_its_end(rigged: NewRig) -> None:
    """A delivery that has been delivered or discarded is not kept in memory."""

    def kept() -> list[Delivery]:
        gc.collect()
        found = [item for item in gc.get_objects() if isinstance(item, Delivery)]  # also those of other tests
        return [delivery for delivery in found if delivery.event.step_id.startswith("kept-")]

    rig = rigged(Script(failed(), RuntimeError(), failed(410), DELIVERED), concurrency=2)
    rig.deliver(*(event(f"kept-{number}") for number in range(100)))
    assert len(rig.results) == 100
    wait_until(lambda: not kept())  # until the task of the last delivery has ended
