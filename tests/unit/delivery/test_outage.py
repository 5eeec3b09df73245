"""An endpoint that is down gets one attempt at a time, and a log line and a metric say so, until it is up again."""

import threading
import time

import pytest
from delivering import DELIVERED, WAIT, NewRig, Script, event, failed, wait_until
from support import log_lines

from otel_step_hook.delivery.metrics import _open_circuits, _queue_sizes
from otel_step_hook.delivery.retry import AttemptResult

REFUSED = AttemptResult(error_type="ConnectionRefusedError")
DOWN = (
    "endpoint default is down (the receiver http://receiver.test refuses connections: nothing listens there): "
    "one attempt at a time until one succeeds"
)


def test_an_endpoint_that_is_down_gets_one_attempt_at_a_time(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """Of hundreds of waiting events one at a time is attempted, and the log says so once."""
    is_up, in_flight = threading.Event(), list[int]()

    def answer() -> AttemptResult:
        in_flight.append(script.in_flight)
        return DELIVERED if is_up.is_set() else REFUSED

    script = Script(answer)
    rig = rigged(script, concurrency=8, initial_backoff=0.01, max_backoff=0.01)
    rig.submit(*(event() for _ in range(300)))
    wait_until(lambda: len(in_flight) > 30)
    is_up.set()
    assert rig.worker.flush(WAIT)
    assert set(in_flight[18:30]) == {1}  # after the ten that open the circuit, and those in flight beside the tenth
    assert {result for _, result, _ in rig.results} == {"delivered"}
    assert max(in_flight[31:]) == 8
    assert [line for line in log_lines(caplog) if "is down" in line] == [f"ERROR {DOWN}"]


def test_deliveries_to_an_endpoint_that_is_down_expire_in_time(rigged: NewRig) -> None:
    """While a probe hangs, the waiting deliveries are discarded at their time to give up, without an attempt."""
    script = Script(*[failed()] * 10, threading.Event())
    rig = rigged(script, give_up_after=600.0, initial_backoff=0.01, max_backoff=0.01, concurrency=1)
    rig.submit(*(event() for _ in range(50)))
    script.wait_for(11)  # the last of them is a probe, which hangs
    rig.age_by(600.0)
    wait_until(lambda: len(rig.results) == 49)
    assert {(result, error) for _, result, error in rig.results} == {("discarded", "expired"), ("discarded", "503")}
    assert len(script.posts) == 11
    rig.worker.shutdown(0.1)


def test_the_metrics_show_that_an_endpoint_is_down(rigged: NewRig) -> None:
    """The gauge of the circuit is 1 while the endpoint is down; that of the queue counts the waiting events."""

    def observed() -> tuple[object, object]:
        gauges = [_open_circuits(None), _queue_sizes(None)]  # type: ignore[arg-type]  # -- not used
        circuit, queue = ({one.attributes["endpoint"]: one.value for one in found} for found in gauges)  # type: ignore[index]  # -- as above
        return circuit["watched"], queue["watched"]

    probe = threading.Event()
    script = Script(*[REFUSED] * 10, probe, DELIVERED)
    named = {"name": "watched", "webhook": "http://receiver.test/"}  # those of other tests are named default
    rig = rigged(script, webhook=None, endpoints=[named], concurrency=1, initial_backoff=0.01, max_backoff=0.01)
    assert observed() == (0, 0)
    rig.submit(*(event() for _ in range(20)))
    script.wait_for(11)
    assert observed() == (1, 20)
    probe.set()
    assert rig.worker.flush(WAIT)
    assert observed() == (0, 0)


def test_the_gauge_of_the_circuit_is_0_when_nothing_waits(rigged: NewRig) -> None:
    """Without waiting events nothing is attempted, so that the state of the endpoint is not known."""
    named = {"name": "forgotten", "webhook": "http://receiver.test/"}
    rig = rigged(Script(REFUSED), webhook=None, endpoints=[named], give_up_after=0.3, initial_backoff=0.01)
    rig.deliver(*(event() for _ in range(20)))
    found = {(one.attributes or {})["endpoint"]: one.value for one in _open_circuits(None)}  # type: ignore[arg-type]  # -- not used
    assert found["forgotten"] == 0


def test_a_shortened_timeout_does_not_open_the_circuit(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """An attempt that give_up_after leaves less than the timeout does not show that the endpoint is down."""
    script = Script(AttemptResult(error_type="timeout"))
    rig = rigged(script, give_up_after=10.0, timeout=8.0, concurrency=1, initial_backoff=20.0, max_backoff=20.0)
    rig.deliver(*(event() for _ in range(30)), age=7.0)  # 3 s are left of 8, and none is tried again
    assert len(script.posts) == 30
    assert not [line for line in log_lines(caplog) if "is down" in line]


def test_an_endpoint_that_refuses_events_is_not_down(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """Answers about a single event, such as 400 or 410, delay no other event."""
    rig = rigged(Script(failed(410)), concurrency=4)
    rig.deliver(*(event() for _ in range(100)))
    assert not [line for line in log_lines(caplog) if "is down" in line]


@pytest.mark.parametrize("is_down", [False, True])
def test_the_loop_sleeps_while_all_attempts_hang(rigged: NewRig, *, is_down: bool) -> None:
    """While every attempt that may be made is in flight, dispatch does not run, however many events wait."""
    script = Script(*[REFUSED] * (10 if is_down else 0), *[threading.Event()] * 8)
    rig = rigged(script, concurrency=8, initial_backoff=0.01, max_backoff=0.01, give_up_after=600)
    rig.submit(*(event() for _ in range(100)))
    script.wait_for(11 if is_down else 8)
    runs, dispatch = list[None](), rig.worker._runner().dispatch
    usual = dispatch.run_once
    dispatch.run_once = lambda: (runs.append(None), usual())[1]  # type: ignore[method-assign,func-returns-value]  # -- counts
    time.sleep(1.5)  # there is no event for what must not happen
    assert len(runs) <= 10
    rig.worker.shutdown(0.1)
