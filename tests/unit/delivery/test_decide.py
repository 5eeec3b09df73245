"""The table of decisions after an attempt, and the circuit of an endpoint that is down."""

import math

import pytest
from delivering import event, failed
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource

from otel_step_hook.delivery.circuit import Circuit
from otel_step_hook.delivery.model import Delivery, Pipeline
from otel_step_hook.delivery.request import webhook_id
from otel_step_hook.delivery.retry import AttemptResult, Finish, RetryIn, RetryPolicy, decide

POLICY = RetryPolicy(initial_backoff=1.0, max_backoff=60.0, backoff_multiplier=2.0, give_up_after=30.0)
ACCEPTED = AttemptResult(status_code=204)
HANDED_OVER = AttemptResult()  # to Temporal, which gives no status
DISABLED = AttemptResult(status_code=204, directive="disable")
DELIVERED = Finish("delivered")
TIMEOUT = AttemptResult(error_type="timeout")
REFUSED = AttemptResult(error_type="ConnectionRefusedError")


def delivery(attempts: int = 1) -> Delivery:
    """A delivery after *attempts* attempts."""
    step = event()
    return Delivery(webhook_id(step), step, Pipeline(None, Resource({})), 0.0, attempts=attempts)


def discarded(error_type: str) -> Finish:
    """The decision to discard a delivery."""
    return Finish("discarded", error_type)


@pytest.mark.parametrize(
    ("result", "attempts", "elapsed", "left", "decision"),
    [
        # Accepted, however late.
        (ACCEPTED, 1, 0.0, math.inf, DELIVERED),
        (ACCEPTED, 9, 99.0, 0.0, DELIVERED),
        (DISABLED, 1, 0.0, math.inf, DELIVERED),
        (HANDED_OVER, 1, 0.0, math.inf, Finish("handed_over")),
        # Refused for good.
        (failed(410), 1, 0.0, math.inf, discarded("410")),
        (failed(500, directive="abort-message"), 1, 0.0, math.inf, discarded("500")),
        (failed(400, directive="disable"), 1, 0.0, math.inf, discarded("400")),
        (failed(410, retry_after=1.0), 1, 0.0, math.inf, discarded("410")),
        # Any other failure is retried after a growing backoff.
        (failed(503), 1, 0.0, math.inf, RetryIn(1.0)),
        (failed(400), 1, 0.0, math.inf, RetryIn(1.0)),
        (failed(302), 1, 0.0, math.inf, RetryIn(1.0)),
        (TIMEOUT, 2, 5.0, math.inf, RetryIn(2.0)),
        (REFUSED, 3, 5.0, math.inf, RetryIn(4.0)),
        # Never before the receiver's Retry-After.
        (failed(429, retry_after=7.0), 1, 0.0, math.inf, RetryIn(7.0)),
        (failed(429, retry_after=0.5), 1, 0.0, math.inf, RetryIn(1.0)),
        # Until give_up_after, counted from the step's end.
        (failed(503), 1, 28.9, math.inf, RetryIn(1.0)),
        (failed(503), 1, 29.0, math.inf, discarded("503")),
        (TIMEOUT, 1, 40.0, math.inf, discarded("timeout")),
        (failed(429, retry_after=120.0), 1, 0.0, math.inf, discarded("429")),
        # Not beyond the end of the shutdown.
        (failed(503), 1, 0.0, 1.1, RetryIn(1.0)),
        (failed(503), 1, 0.0, 1.0, discarded("shutdown")),
        (failed(503), 1, 0.0, -1.0, discarded("shutdown")),
        (failed(503), 1, 29.0, 0.0, discarded("503")),
        (failed(410), 1, 0.0, 0.0, discarded("410")),
    ],
)
def test_each_result_leads_to_its_decision(
    result: AttemptResult, attempts: int, elapsed: float, left: float, decision: Finish | RetryIn
) -> None:
    """Each case of the table is decided as it says, with the longest of the jittered waits."""
    assert decide(delivery(attempts), result, POLICY, elapsed=elapsed, left=left, rand=lambda: 1.0) == decision


results = st.sampled_from([ACCEPTED, HANDED_OVER, DISABLED, TIMEOUT, REFUSED, failed(410), failed(503), failed(404)])


@given(results, st.integers(1, 50), st.floats(0, 1e4), st.floats(-1, 1e4), st.floats(0, 1))
def test_a_failure_is_discarded_or_retried_in_time(
    result: AttemptResult, attempts: int, elapsed: float, left: float, rand: float
) -> None:
    """A failure is discarded with a reason or retried in time; a success is never retried."""
    decision = decide(delivery(attempts), result, POLICY, elapsed=elapsed, left=left, rand=lambda: rand)
    if isinstance(decision, RetryIn):
        assert not result.is_success
        assert 0 < decision.delay < min(left, POLICY.give_up_after - elapsed)
    else:
        assert (decision.result == "discarded") == (decision.error_type is not None) == (not result.is_success)


# The circuit


def opened(now: float = 0.0) -> Circuit:
    """The circuit of an endpoint after ten failures in a row."""
    circuit = Circuit(POLICY, rand=lambda: 1.0)
    for _ in range(10):
        assert circuit.attempts_allowed(0, concurrency=8, now=now) == 8
        circuit.record(REFUSED, now=now)
    assert circuit.is_open
    return circuit


def test_an_open_circuit_allows_one_probe_after_each_growing_wait() -> None:
    """The waits are 1, 2, 4 seconds and then always 5, so that an endpoint that is up again is found soon."""
    circuit, now, waits = opened(), 0.0, []
    for _ in range(6):
        assert circuit.attempts_allowed(0, concurrency=8, now=now) == 0
        waits.append(circuit.wait(now))
        now += circuit.wait(now)
        assert circuit.attempts_allowed(0, concurrency=8, now=now) == 1
        assert circuit.attempts_allowed(1, concurrency=8, now=now) == 0
        circuit.record(TIMEOUT, now=now)
    assert waits == [1.0, 2.0, 4.0, 5.0, 5.0, 5.0]


@pytest.mark.parametrize("answer", [ACCEPTED, HANDED_OVER, failed(400), failed(404), failed(410)])
def test_one_answer_closes_the_circuit(answer: AttemptResult) -> None:
    """An endpoint that answers, if only to refuse the event, is up: all connections are used again at once."""
    circuit = opened()
    circuit.record(answer, now=0.5)
    assert not circuit.is_open
    assert circuit.wait(0.5) == 0.0
    assert circuit.attempts_allowed(3, concurrency=8, now=0.5) == 5


@pytest.mark.parametrize("failure", [failed(500), failed(503), failed(429), failed(408), TIMEOUT, REFUSED])
def test_ten_outages_in_a_row_open_the_circuit(failure: AttemptResult) -> None:
    """A timeout, a connection error, a 5xx, a 408 and a 429 count as outages; a success starts the count anew."""
    circuit = Circuit(POLICY)
    for _ in range(9):
        circuit.record(failure, now=0.0)
    circuit.record(ACCEPTED, now=0.0)
    for number in range(10):
        assert not circuit.is_open, number
        circuit.record(failure, now=0.0)
    assert circuit.is_open
