"""The worker while freezegun or time-machine stops the clocks: it still waits, retries, gives up and ends."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import freezegun
import pytest
import time_machine
from delivering import AT_ONCE, ONE_ATTEMPT, WAIT, NewRig, event, seconds, threads, wait_until

from otel_step_hook.testing import read_request

_THEN = "2020-02-02T00:00:00Z"
_FREEZERS: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "freezegun": lambda: freezegun.freeze_time(_THEN),
    "time_machine": lambda: time_machine.travel(_THEN, tick=False),
}


@pytest.fixture(params=_FREEZERS, autouse=True)
def _stopped_clocks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Stops every clock that these tools know."""
    with _FREEZERS[request.param]():
        assert time.time() == time.time()
        yield


def test_flush_and_shutdown_return_in_time(rigged: NewRig, closed_port: int) -> None:
    """While no receiver listens, flush() and shutdown() return at their timeouts, and the step is discarded."""
    rig = rigged(webhook=f"http://127.0.0.1:{closed_port}/")
    rig.submit(event("in vain"))
    assert 0.1 <= seconds(lambda: rig.worker.flush(0.1)) < 0.1 + AT_ONCE
    assert seconds(lambda: rig.worker.shutdown(0.3)) < 0.3 + AT_ONCE
    wait_until(lambda: not threads())  # a tenth of 0.3 s may be too short to record what is discarded
    assert [result for _, result, _ in rig.results] == ["discarded"]


def test_a_refused_step_is_retried_and_delivered(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """A step that was refused is sent again, and delivered once a receiver listens."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        rig = rigged(webhook=f"http://127.0.0.1:{listening.getsockname()[1]}/")
        rig.submit(event("patient"))
        wait_until(lambda: "refuses connections" in caplog.text)
        listening.listen()
        listening.settimeout(WAIT)
        connection, _ = listening.accept()
        with connection:
            assert b"patient" in read_request(connection)
            connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            assert rig.worker.flush(WAIT)
    assert rig.results == [("patient", "delivered", None)]


def test_a_step_is_discarded_in_time(rigged: NewRig, closed_port: int) -> None:
    """A step that no receiver accepts is discarded at its time to give up."""
    rig = rigged(webhook=f"http://127.0.0.1:{closed_port}/", give_up_after=0.3)
    rig.deliver(event("given up"))
    assert [result for _, result, _ in rig.results] == ["discarded"]


def test_an_attempt_ends_at_its_timeout(rigged: NewRig) -> None:
    """An attempt at a receiver that does not answer ends as a timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        rig = rigged(webhook=f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout=0.2, **ONE_ATTEMPT)
        rig.deliver(event("unanswered"))
    assert rig.results == [("unanswered", "discarded", "timeout")]
