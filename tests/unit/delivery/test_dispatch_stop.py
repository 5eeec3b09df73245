"""Shutting down in time, with a result for every delivery; and faults, which stop no delivery."""

import asyncio
import logging
import socket
import threading

import pytest
from delivering import (
    AT_ONCE,
    DELIVERED,
    WAIT,
    NewRig,
    Script,
    counts,
    event,
    failed,
    poll,
    seconds,
    threads,
    wait_until,
)
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from sending import OK

from otel_step_hook.delivery.model import Pipeline
from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.delivery.sender import Transport
from otel_step_hook.testing import HostileReceiver, read_request


@pytest.mark.parametrize("is_waiting", [False, True])
def test_stopping_delivers_what_can_be_delivered(rigged: NewRig, *, is_waiting: bool) -> None:
    """During a shutdown everything that is queued is still sent, after its backoff if that is short."""
    rig = rigged(Script(failed(), DELIVERED), concurrency=1, initial_backoff=0.2, max_backoff=0.2)
    rig.submit(*(event() for _ in range(5)))
    wait_until(lambda: not is_waiting or len(rig.results) >= 4)
    rig.worker.shutdown(WAIT)
    assert [result for _, result, _ in rig.results] == ["delivered"] * 5


def test_stopping_without_work_is_immediate(rigged: NewRig) -> None:
    """A worker that has no work shuts down at once."""
    rig = rigged(Script())
    rig.deliver()
    assert seconds(lambda: rig.worker.shutdown(WAIT)) < AT_ONCE


@pytest.mark.parametrize("is_stopped_before", [False, True])
def test_a_retry_that_would_come_after_the_shutdown_is_discarded_at_once(
    rigged: NewRig, *, is_stopped_before: bool
) -> None:
    """A delivery whose next attempt would come too late is discarded at once, with a span."""
    answer = threading.Event()
    rig = rigged(Script(answer, failed(500)), initial_backoff=6e3, max_backoff=6e3, give_up_after=6e4)
    rig.submit(event("step-1"))
    if not is_stopped_before:
        answer.set()
        wait_until(lambda: rig.named("POST"))
    stopping = threading.Thread(target=rig.worker.shutdown, args=(100 * WAIT,))
    stopping.start()
    wait_until(lambda: rig.worker.is_closed)
    answer.set()
    stopping.join(WAIT)
    assert rig.results == [("step-1", "discarded", "shutdown")]


def test_what_is_queued_in_flight_or_waiting_at_the_end_is_discarded(
    rigged: NewRig, caplog: pytest.LogCaptureFixture
) -> None:
    """At the end of a shutdown each remaining delivery is discarded, with a span that is an error and in the log."""
    script = Script(failed(), threading.Event())
    rig = rigged(script, concurrency=1, initial_backoff=0.05, max_backoff=0.2)
    rig.submit(event("waiting"), event("in flight"), event("queued"))
    script.wait_for(2)
    rig.worker.shutdown(0.3)
    wait_until(lambda: not threads())  # a tenth of 0.3 s may be too short to record what is discarded
    assert sorted(rig.results) == [(step, "discarded", "shutdown") for step in ("in flight", "queued", "waiting")]
    assert all(not span.status.is_ok for span in rig.named("step_hook.deliver"))
    assert sum(count for line, count in counts(caplog).items() if line.startswith("discarded step")) == 3
    cut_off = [span for span in rig.named("POST") if "error.type" not in (span.attributes or {})]
    assert [span.status.is_unset for span in cut_off] == [True]


class BlockedCancellation(Script):
    """A script whose attempts, when they are cancelled, end only once *may_end* is set, with *result*."""

    def __init__(self, *results: threading.Event, result: AttemptResult | None = None) -> None:
        super().__init__(*results)
        self.is_cancelled, self.may_end, self._result = threading.Event(), threading.Event(), result

    async def cancelled(self) -> AttemptResult | None:
        self.is_cancelled.set()
        await poll(self.may_end)
        return self._result


def test_a_step_that_is_stored_at_the_end_of_a_shutdown_is_discarded(rigged: NewRig) -> None:
    """A step that is stored while the shutdown cancels the attempts in flight is discarded with a span."""
    script = BlockedCancellation(threading.Event())
    rig = rigged(script)
    rig.submit(event("started"))
    script.wait_for(1)
    rig.worker.shutdown(0)
    assert script.is_cancelled.wait(WAIT)
    rig.worker._runner().store.put(event("too late"), rig.pipeline)  # as a submit() does that began before the shutdown
    assert not rig.worker.flush(0)  # wakes the worker, as submit() does
    wait_until(lambda: rig.results)
    script.may_end.set()
    assert rig.worker.flush(WAIT)
    assert sorted(rig.results) == [("started", "discarded", "shutdown"), ("too late", "discarded", "shutdown")]
    assert len(script.posts) == 1


def test_a_webhook_that_was_accepted_is_delivered_even_if_it_is_cancelled(rigged: NewRig) -> None:
    """An attempt that knows its result when it is cancelled counts: the receiver has the webhook."""
    script = BlockedCancellation(threading.Event(), result=DELIVERED)
    rig = rigged(script)
    rig.submit(event("step-1"))
    script.wait_for(1)
    script.may_end.set()
    rig.worker.shutdown(0.2)
    assert rig.worker.flush(WAIT)
    assert rig.results == [("step-1", "delivered", None)]


def test_closing_a_transport_has_a_time_limit(rigged: NewRig) -> None:
    """A transport that does not close delays the shutdown only a little."""

    class Stubborn:
        async def post(self, *_: object, **__: object) -> AttemptResult:
            return DELIVERED

        async def aclose(self) -> None:
            await asyncio.Event().wait()

    rig = rigged(Stubborn)
    rig.deliver()
    assert seconds(lambda: rig.worker.shutdown(WAIT)) < AT_ONCE


# Faults


def test_a_transport_that_raises_costs_one_delivery(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """The spans and the log name the error's type, and the log its place, but not its message."""
    script = Script(RuntimeError("Bearer sekret"), DELIVERED)
    rig = rigged(script, concurrency=1)
    rig.deliver(event("unlucky"), event("next"))
    assert rig.results == [("unlucky", "discarded", "RuntimeError"), ("next", "delivered", None)]
    unlucky, _ = rig.named("POST")
    assert (unlucky.attributes or {})["error.type"] == "RuntimeError"
    assert not unlucky.status.is_ok
    assert "RuntimeError" in caplog.text
    assert "delivering.py" in caplog.text  # where it was raised
    assert "sekret" not in caplog.text


class Panic(BaseException):
    """An exception that is no `Exception`, like the one that Rust code raises when it panics."""


def test_a_transport_that_panics_costs_one_delivery(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """A delivery whose transport panics is discarded, and not leased for ever."""
    rig = rigged(Script(Panic("sekret"), DELIVERED), concurrency=1)
    rig.deliver(event("unlucky"), event("next"))
    assert rig.results == [("unlucky", "discarded", "Panic"), ("next", "delivered", None)]
    assert "a fault of otel-step-hook: Panic" in caplog.text
    assert "sekret" not in caplog.text


@pytest.mark.parametrize("error", [Panic, asyncio.CancelledError, SystemExit])
@pytest.mark.parametrize("name", ["POST", "step_hook.deliver"])
def test_a_span_processor_that_panics_costs_no_delivery(
    rigged: NewRig, error: type[BaseException], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each step is delivered and finished, whatever exception a span processor raises."""

    class Panicking(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            if span.name == name:
                raise error

    script = Script()
    rig = rigged(script)
    rig.pipeline = Pipeline(Panicking(), rig.pipeline.resource)
    rig.deliver(*(event() for _ in range(20)))
    assert len(script.posts) == 20
    assert "a delivery could not be recorded" in caplog.text


def test_a_log_filter_that_panics_costs_no_delivery(rigged: NewRig) -> None:
    """Each delivery gets its result, even if a log filter of the application panics."""

    def refuse(_: logging.LogRecord) -> bool:
        raise Panic

    logger = logging.getLogger("otel_step_hook")
    logger.addFilter(refuse)
    try:
        rig = rigged(Script(failed(410), DELIVERED))
        rig.deliver(event(), event())
    finally:
        logger.removeFilter(refuse)
    assert sorted(str(result) for _, result, _ in rig.results) == ["delivered", "discarded"]


def test_a_transport_that_cannot_be_made_costs_one_delivery(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """A delivery for which no transport can be made is discarded with a span, and the next one makes a transport."""
    script = Script()
    faults = [OSError("sekret")]

    def connect() -> Transport:
        if faults:
            raise faults.pop()
        return script()

    rig = rigged(connect, concurrency=1)
    rig.deliver(event("unlucky"), event("next"))
    assert rig.results == [("unlucky", "discarded", "OSError"), ("next", "delivered", None)]
    assert "sekret" not in caplog.text


def test_an_event_that_cannot_be_serialised_costs_one_delivery(
    rigged: NewRig, caplog: pytest.LogCaptureFixture
) -> None:
    """A step whose times are no numbers is discarded with a span, and the steps behind it are delivered."""
    rig = rigged(Script(), payload="full")
    rig.deliver(event("odd", start_time="yesterday"), event("next"))
    assert rig.results == [("odd", "discarded", "ValueError"), ("next", "delivered", None)]
    assert "a fault of otel-step-hook: ValueError" in caplog.text


def test_a_log_filter_that_raises_costs_no_delivery(rigged: NewRig) -> None:
    """An exception in a log filter of the application stops neither a delivery nor a flush."""

    def refuse(_: logging.LogRecord) -> bool:
        raise RuntimeError

    logger = logging.getLogger("otel_step_hook")
    logger.addFilter(refuse)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        rig = rigged(Script(failed(), DELIVERED, RuntimeError(), DELIVERED), concurrency=1)
        rig.deliver(*(event() for _ in range(4)))
    finally:
        logger.removeFilter(refuse)
        logger.setLevel(level)
    assert sorted(str(result) for _, result, _ in rig.results) == ["delivered"] * 3 + ["discarded"]


def test_a_receiver_that_dies_in_the_middle_of_a_burst_loses_no_step(rigged: NewRig) -> None:
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
        rig = rigged(webhook=receiver.url)
        rig.deliver(*(event() for _ in range(100)))
    assert len(seen) == 100
    assert {result for _, result, _ in rig.results} == {"delivered"}
