"""Stopping in time, with a last word on every step; and faults, which stop nothing."""

import asyncio
import logging
import socket
import threading

import pytest
from dispatching import DELIVERED, WAIT, Script, event, failed, rigged
from sending import OK, WatchedLane, dripping

from otel_step_hook import StepHookSettings
from otel_step_hook.delivery.dispatch import Sender
from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.delivery.transport import Endpoint
from otel_step_hook.testing import HostileReceiver, read_request

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("is_waiting", [False, True])
async def test_stopping_delivers_what_can_be_delivered(*, is_waiting: bool) -> None:
    """Asked to stop, everything that is queued is still sent, and short waits are waited."""
    script = Script(failed(), DELIVERED)
    async with rigged(script, concurrency=1, initial_backoff=0.2, max_backoff=0.2) as rig:
        rig.submit(*(event(f"step-{number}") for number in range(5)))
        async with asyncio.timeout(WAIT):
            while is_waiting and len(rig.results) < 4:  # noqa: ASYNC110 -- the exporter tells nobody
                await asyncio.sleep(0)
        rig.dispatcher.stop_by(asyncio.get_running_loop().time() + WAIT)
        await rig.stopped()
    assert {result for _, result, _ in rig.results} == {"delivered"}
    assert len(rig.results) == 5


async def test_stopping_without_work_is_immediate() -> None:
    """A dispatcher that has nothing to do is stopped when it is asked to."""
    async with rigged(Script()) as rig:
        rig.dispatcher.stop_by(asyncio.get_running_loop().time() + WAIT)
        assert rig.dispatcher.stopped.is_set()


@pytest.mark.parametrize("is_stopped_before", [False, True])
async def test_a_wait_that_outlasts_the_stop_is_not_waited(*, is_stopped_before: bool) -> None:
    """A step whose next attempt would come too late is discarded at once, visibly."""
    answer = asyncio.Event()
    script = Script(answer, failed(500))
    async with rigged(script, initial_backoff=6e3, max_backoff=6e3, give_up_after=6e4) as rig:
        rig.submit(event())
        if not is_stopped_before:
            answer.set()
            async with asyncio.timeout(WAIT):
                while not rig.attempts:  # noqa: ASYNC110 -- the exporter tells nobody
                    await asyncio.sleep(0)
        rig.dispatcher.stop_by(asyncio.get_running_loop().time() + 100 * WAIT)
        answer.set()
        await rig.stopped()
    assert rig.results == [("step-1", "discarded", "shutdown")]


async def test_what_is_queued_in_flight_or_waiting_at_the_end_is_discarded_visibly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When the time to stop is over, every step has its last word: a span with an error, and the log says so."""
    script = Script(failed(), asyncio.Event())
    async with rigged(script, concurrency=1, initial_backoff=0.05, max_backoff=0.2) as rig:
        rig.submit(event("waiting"), event("in flight"), event("queued"))
        rig.dispatcher.stop_by(asyncio.get_running_loop().time() + 0.3)
        rig.dispatcher.stop_by(asyncio.get_running_loop().time() + WAIT)  # the first one counts
        await rig.stopped()
        assert rig.store.pending == 0
    assert sorted(rig.results) == [(step, "discarded", "shutdown") for step in ("in flight", "queued", "waiting")]
    assert all(not span.status.is_ok for span in rig.deliveries)
    rig.trouble.tell_rest(all_of_it=True)
    told = [record for record in caplog.records if "discarded" in record.message]
    assert len(told) == 2  # the first, and how many more
    cut_off = [span for span in rig.attempts if "error.type" not in (span.attributes or {})]
    assert [span.status.is_unset for span in cut_off] == [True]


async def test_a_delivery_is_discarded_visibly_even_when_it_has_not_begun() -> None:
    """A time to stop that is over at once leaves nobody out."""
    script = Script()
    async with rigged(script) as rig:
        rig.submit(event("started"))  # its task has not run yet
        rig.dispatcher._stop_now()
        rig.submit(event("too late"))
        rig.dispatcher.stop_by(0.0)
        await rig.stopped()
    assert script.posts == []
    assert sorted(rig.results) == [("started", "discarded", "shutdown"), ("too late", "discarded", "shutdown")]


async def test_a_webhook_that_was_accepted_is_delivered_although_the_time_is_over() -> None:
    """What the receiver's status line has said is not taken back because the rest of its answer drips."""
    with HostileReceiver(dripping(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", b"x")) as receiver:
        lane = WatchedLane(Endpoint(StepHookSettings(webhook=receiver.url)))
        async with rigged(lambda: lane) as rig:
            rig.submit(event())
            await asyncio.wait_for(lane.has_status.wait(), WAIT)
            rig.dispatcher._stop_now()
            rig.dispatcher.stop_by(0.0)
            await rig.stopped()
    assert rig.results == [("step-1", "delivered", None)]


async def test_closing_has_a_limit() -> None:
    """A sender that does not let itself be closed keeps nobody waiting for long."""
    never = asyncio.Event()

    class Stubborn:
        async def post(self, *_: object) -> AttemptResult:
            return DELIVERED

        async def aclose(self) -> None:
            await never.wait()

    async with rigged(Stubborn) as rig:
        rig.submit(event())
        await rig.done()
        async with asyncio.timeout(WAIT):
            await rig.dispatcher.aclose()


async def test_deliveries_of_a_loop_that_ends_early_are_given_back() -> None:
    """Whatever waits or is in flight: nothing of it is attempted from here any more."""
    script = Script(failed(), asyncio.Event())
    async with rigged(script, concurrency=1, initial_backoff=0.001) as rig:
        rig.submit(event("waiting"), event("in flight"), event("queued"))
        async with asyncio.timeout(WAIT):
            while len(script.posts) < 2:  # noqa: ASYNC110 -- it tells nobody
                await asyncio.sleep(0)
        rig.dispatcher.unclaim()
        await asyncio.sleep(0.01)  # longer than the backoff
        assert {delivery.event.step_id: delivery.attempts for delivery in rig.store.unclaimed} == {
            "waiting": 1,
            "in flight": 1,
            "queued": 0,
        }
        assert (rig.store.pending, rig.results, len(script.posts)) == (3, [], 2)


# Faults


async def test_a_fault_of_a_sender_is_survived(caplog: pytest.LogCaptureFixture) -> None:
    """A sender that raises costs its one delivery; the attempt and the delivery say so, the log without its message."""
    script = Script(RuntimeError("Bearer sekret"), DELIVERED)
    async with rigged(script, concurrency=1) as rig:
        rig.submit(event("unlucky"), event("next"))
        await rig.done()
    assert rig.results == [("unlucky", "discarded", "RuntimeError"), ("next", "delivered", None)]
    (unlucky, _) = rig.attempts
    assert (unlucky.attributes or {})["error.type"] == "RuntimeError"
    assert not unlucky.status.is_ok
    assert "RuntimeError" in caplog.text
    assert "dispatching.py" in caplog.text  # where it was raised
    assert "sekret" not in caplog.text


async def test_a_sender_that_cannot_be_made_is_survived(caplog: pytest.LogCaptureFixture) -> None:
    """When no sender can be made a delivery is discarded visibly, and the next one tries again."""
    script = Script()
    faults = [OSError("sekret")]

    def connect() -> Sender:
        if faults:
            raise faults.pop()
        return script()

    async with rigged(connect, concurrency=1) as rig:
        rig.submit(event("unlucky"), event("next"))
        await rig.done()
    assert rig.results == [("unlucky", "discarded", "OSError"), ("next", "delivered", None)]
    assert "sekret" not in caplog.text


async def test_an_event_of_which_nothing_can_be_told_is_survived(caplog: pytest.LogCaptureFixture) -> None:
    """A span whose times are no numbers costs its own webhook, visibly, and not those behind it."""
    async with rigged(Script(), payload="full") as rig:
        rig.submit(event("odd", start_time="yesterday"), event("next"))
        await rig.done()
        assert rig.store.pending == 0
    assert rig.results == [("odd", "discarded", "ValueError"), ("next", "delivered", None)]
    assert "a fault of otel-step-hook: ValueError" in caplog.text


async def test_a_log_handler_that_raises_costs_no_delivery() -> None:
    """What the application's log handlers and filters raise stops neither a delivery nor a flush."""

    def refuse(_: logging.LogRecord) -> bool:
        raise RuntimeError

    logger = logging.getLogger("otel_step_hook")
    logger.addFilter(refuse)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        async with rigged(Script(failed(), DELIVERED, RuntimeError(), DELIVERED), concurrency=1) as rig:
            rig.submit(*(event(f"step-{number}") for number in range(4)))
            await rig.done()
    finally:
        logger.removeFilter(refuse)
        logger.setLevel(level)
    assert sorted(str(result) for _, result, _ in rig.results) == ["delivered"] * 3 + ["discarded"]


async def test_a_receiver_that_dies_in_the_middle_of_a_burst_loses_no_step() -> None:
    """Connections that break at any moment cost attempts, and no steps."""
    seen: set[bytes] = set()
    count = 0

    def behave(connection: socket.socket, _: threading.Event) -> None:
        nonlocal count
        while request := read_request(connection):
            count += 1
            if count % 3 == 0:
                return
            if count % 7 == 0:
                connection.sendall(OK[:10])
                return
            seen.add(request.partition(b"\r\n\r\n")[2])
            connection.sendall(OK)

    with HostileReceiver(behave) as receiver:
        async with rigged(webhook=receiver.url) as rig:
            rig.submit(*(event(f"step-{number}") for number in range(100)))
            await rig.done()
    assert len(seen) == 100
    assert {result for _, result, _ in rig.results} == {"delivered"}
