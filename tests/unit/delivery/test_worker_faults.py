"""The worker when something fails: it says so, gives an account of every step, and goes on."""

import asyncio
import contextlib
import gc
import itertools
import logging
import threading

import pytest
from dispatching import DELIVERED, WAIT, Script, failed
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from working import AT_ONCE, NO_PIPELINE, Receiver, lines, seconds, submission, wait_until, working

from otel_step_hook.delivery import log as log_module
from otel_step_hook.delivery import worker as worker_module
from otel_step_hook.delivery.dispatch import Sender
from otel_step_hook.delivery.telemetry import Pipeline
from otel_step_hook.delivery.worker import Worker


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault costs less time than in life."""
    monkeypatch.setattr(worker_module, "_PAUSE_AFTER_FAULT", 0.02)


def _fail() -> None:
    raise LookupError("a secret")


def _break(
    receiver: Receiver, worker: Worker, error: BaseException | None = None, pipeline: Pipeline = NO_PIPELINE
) -> None:
    """Have a callback on the worker's loop raise while a step is delivered: that ends the loop."""

    def fail() -> None:
        raise error or LookupError("a secret")

    def meanwhile() -> None:
        receiver.meanwhile = int
        asyncio.get_running_loop().call_soon(fail)

    receiver.meanwhile = meanwhile
    worker.submit(submission(pipeline))


def test_a_receiver_that_has_switched_off_stays_so(caplog: pytest.LogCaptureFixture) -> None:
    """A fault of the loop does not make it forget: nothing is sent until the process starts anew."""
    script = Script(failed(410, directive="disable"), DELIVERED)

    def connect() -> Sender:
        asyncio.get_running_loop().call_soon(_fail)
        return script()

    with working(connect) as worker:
        worker.submit(submission())
        wait_until(lambda: "a fault of otel-step-hook: LookupError" in caplog.text and not worker.pending)
        worker.submit(submission())
        assert worker.flush(WAIT)
        assert worker.pending == 0
    assert len(script.posts) == 1


def test_senders_that_cannot_be_made(caplog: pytest.LogCaptureFixture) -> None:
    """Each step is discarded and told of; when senders can be made again, steps are delivered again."""
    receiver = Receiver()
    refusals = iter(range(3))

    def connect() -> Sender:
        for _ in refusals:
            _fail()
        return receiver()

    with working(connect) as worker:
        for _ in range(3):
            worker.submit(submission())
        assert worker.flush(WAIT)
        assert worker.pending == 0
        assert receiver.bodies == []
        worker.submit(submission())
        assert worker.flush(WAIT)
    assert len(receiver.bodies) == 1
    assert "a secret" not in caplog.text
    first, second, *rest = lines(caplog)
    assert first.startswith("a fault of otel-step-hook: LookupError <- test_worker_faults.py")
    assert second.startswith("discarded step step-")
    assert [line.partition(" ")[0] for line in rest] == ["2", "2"]


@pytest.mark.parametrize("error", [LookupError("a secret"), SystemExit("not ours to do")])
def test_a_fault_of_the_loop(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """What was in its hands is due again at once, with its attempts counted; the fault is logged, and nothing lost."""
    receiver = Receiver()
    receiver.gate.clear()
    with working(receiver, concurrency=1) as worker:
        _break(receiver, worker, error)
        worker.submit(submission())
        assert receiver.arrived.acquire(timeout=WAIT)
        assert receiver.arrived.acquire(timeout=WAIT)
        receiver.gate.set()
        wait_until(lambda: not worker.pending)
        worker.submit(submission())
        assert worker.flush(WAIT)
    first, again, *others = receiver.bodies
    assert first == again
    assert len({first, *others}) == 3
    assert worker.dropped == []
    assert "a secret" not in caplog.text
    (told,) = lines(caplog)
    assert told.startswith(f"a fault of otel-step-hook: {type(error).__name__} <- test_worker_faults.py")


def test_the_attempts_of_a_delivery_outlive_the_loop() -> None:
    """The next loop goes on to count where the one that died has ended, below the same span."""
    receiver = Receiver()
    receiver.gate.clear()
    exporter = InMemorySpanExporter()
    with working(receiver) as worker:
        _break(receiver, worker, pipeline=Pipeline(SimpleSpanProcessor(exporter), Resource({})))
        for _ in range(2):
            assert receiver.arrived.acquire(timeout=WAIT)
        receiver.gate.set()
        wait_until(lambda: not worker.pending)
    *attempts, delivery = exporter.get_finished_spans()
    assert delivery.attributes is not None
    assert (delivery.attributes["step_hook.attempts"], delivery.attributes["step_hook.result"]) == (2, "delivered")
    assert [(span.attributes or {}).get("http.request.resend_count") for span in attempts] == [None, 1]
    assert {span.parent and span.parent.span_id for span in attempts} == {delivery.context.span_id}


def test_flush_in_the_middle_of_a_fault() -> None:
    """Who waits may get an answer from the next loop, and nobody waits for longer than was asked for."""
    receiver = Receiver()
    receiver.gate.clear()
    with working(receiver) as worker:
        flushed: list[bool] = []
        worker.submit(submission())
        assert receiver.arrived.acquire(timeout=WAIT)
        waiting = threading.Thread(target=lambda: flushed.append(worker.flush(1.0)))
        waiting.start()
        _break(receiver, worker)
        assert receiver.arrived.acquire(timeout=WAIT)
        receiver.gate.set()
        assert seconds(lambda: waiting.join(WAIT)) < 1.0 + AT_ONCE
        wait_until(lambda: not worker.pending)
        assert len(flushed) == 1
        assert worker.flush(WAIT)


def test_shutdown_in_the_middle_of_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop that fails is asked to stop; the next one, after a pause, delivers, and ends in time."""
    monkeypatch.setattr(worker_module, "_PAUSE_AFTER_FAULT", 0.3)
    receiver = Receiver(parting=lambda: 0.1)  # the fault takes a while to clear away
    receiver.gate.clear()
    with working(receiver) as worker:
        _break(receiver, worker)
        assert receiver.arrived.acquire(timeout=WAIT)
        receiver.gate.set()
        assert seconds(lambda: worker.shutdown(WAIT)) < 0.1 + 0.3 + AT_ONCE
        assert worker.pending == 0
    first, again = receiver.bodies
    assert first == again


def test_what_comes_in_while_a_fault_is_cleared_away() -> None:
    """It is the next loop's, which delivers it with what it has taken over."""
    leaving = threading.Event()

    def parting() -> float:
        leaving.set()
        return 0.1  # the time of a connection that closes properly

    receiver = Receiver(parting=parting)
    receiver.gate.clear()
    with working(receiver) as worker:
        _break(receiver, worker)
        assert leaving.wait(WAIT)
        worker.submit(submission())
        receiver.gate.set()
        wait_until(lambda: not worker.pending)
    assert len(receiver.bodies) == 3
    assert len(set(receiver.bodies)) == 2


def test_faults_are_told_of_in_time(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What a loop that failed has counted and not logged is logged by the next, after a minute, without being asked."""
    receiver = Receiver()
    with working(receiver) as worker:
        for _ in range(2):
            _break(receiver, worker)
            wait_until(lambda: not worker.pending)
        assert len(lines(caplog)) == 1
        monkeypatch.setattr(log_module, "EVERY", 0.1)  # seconds; a minute in life
        worker.submit(submission())
        wait_until(lambda: len(lines(caplog)) == 2)
    assert lines(caplog)[1].startswith("1 more like this: a fault of otel-step-hook: LookupError")


def test_faults_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the loop has to start anew, no wake-up is lost and each step is delivered."""
    monkeypatch.setattr(worker_module, "_PAUSE_AFTER_FAULT", 0.0)
    receiver = Receiver()
    count = itertools.count()

    def meanwhile() -> None:
        if next(count) % 30 == 0:
            asyncio.get_running_loop().call_soon(_fail)

    receiver.meanwhile = meanwhile
    with working(receiver, max_queue_size=100_000) as worker:

        def submit() -> None:
            for _ in range(300):
                worker.submit(submission())

        submitting = [threading.Thread(target=submit) for _ in range(4)]
        for thread in submitting:
            thread.start()
        for thread in submitting:
            thread.join(WAIT)
        wait_until(lambda: not worker.pending)
        assert worker.dropped == []
    assert len(set(receiver.bodies)) == 1200


def test_what_asyncio_complains_of(caplog: pytest.LogCaptureFixture) -> None:
    """A fault in a task that nobody waits for goes to our log, without its message, and stops nothing."""
    receiver = Receiver()

    async def fail() -> None:
        _fail()

    def meanwhile() -> None:
        asyncio.get_running_loop().create_task(fail())
        asyncio.get_running_loop().call_exception_handler({"message": "something is wrong"})

    receiver.meanwhile = meanwhile
    with working(receiver) as worker:
        for _ in range(2):
            worker.submit(submission())
            assert worker.flush(WAIT)
            gc.collect()
    assert len(receiver.bodies) == 2
    assert "a secret" not in caplog.text
    assert lines(caplog)[0] == "a fault of otel-step-hook: something is wrong"
    assert lines(caplog)[1].startswith("3 more like this: a fault of otel-step-hook: LookupError")


def test_tasks_that_do_not_end(caplog: pytest.LogCaptureFixture) -> None:
    """A task that a fault has left, and that does not let itself be cancelled, does not keep the thread."""
    receiver = Receiver()
    ended = threading.Event()

    async def persist() -> None:
        while not ended.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)  # in a loop, as the worst of them do

    kept: list[object] = []
    receiver.meanwhile = lambda: kept.append(asyncio.get_running_loop().create_task(persist()))
    with working(receiver) as worker:
        worker.submit(submission())
        assert worker.flush(WAIT)
        assert seconds(lambda: worker.shutdown(WAIT)) < AT_ONCE
    kept.clear()
    gc.collect()
    assert lines(caplog, logging.ERROR) == ["a fault of otel-step-hook: Task was destroyed but it is pending!"]
