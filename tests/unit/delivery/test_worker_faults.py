"""The worker when something fails: it says so, gives an account of every step, and goes on."""

import asyncio
import contextlib
import gc
import logging
import threading
from collections.abc import Iterator

import pytest
from dispatching import DELIVERED, WAIT, Script, failed
from working import AT_ONCE, Receiver, lines, seconds, submission, wait_until, working

from otel_step_hook.delivery import log as log_module
from otel_step_hook.delivery import worker as worker_module
from otel_step_hook.delivery.dispatch import Sender
from otel_step_hook.delivery.worker import Worker


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault costs less time than in life."""
    monkeypatch.setattr(worker_module, "_PAUSE_AFTER_FAULT", 0.02)


def _fail() -> None:
    raise LookupError("a secret")


class _Bomb(tuple[str, str]):
    """What no queue of the worker's should hold: looking at it is a fault."""

    __slots__ = ()
    error: BaseException = LookupError("a secret")

    def __iter__(self) -> Iterator[str]:
        raise self.error


class _ExitingBomb(_Bomb):
    __slots__ = ()
    error = SystemExit("not ours to do")


def _break(worker: Worker, bomb: type[_Bomb] = _Bomb) -> None:
    worker._own.inbox.drops.put(bomb())
    worker._wake()


def test_a_receiver_that_has_switched_off_stays_so() -> None:
    """A fault of the loop does not make it forget: nothing is sent until the process starts anew."""
    script = Script(failed(410, directive="disable"), DELIVERED)
    with working(script) as worker:
        worker.submit(submission())
        assert worker.flush(WAIT)
        _break(worker)
        wait_until(lambda: not worker._own.inbox.has_work())
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


@pytest.mark.parametrize("bomb", [_Bomb, _ExitingBomb])
def test_a_fault_of_the_loop(bomb: type[_Bomb], caplog: pytest.LogCaptureFixture) -> None:
    """What was in its hands is discarded and told of; who waits gets an answer; what comes after is delivered."""
    receiver = Receiver()
    receiver.gate.clear()
    with working(receiver, concurrency=1) as worker:
        worker.submit(submission())
        worker.submit(submission())
        assert receiver.arrived.acquire(timeout=WAIT)
        _break(worker, bomb)
        assert worker.flush(WAIT)
        assert worker.pending == 0
        receiver.gate.set()
        worker.submit(submission())
        assert worker.flush(WAIT)
    assert len(receiver.bodies) == 2
    told = [line.partition(" step-")[0].partition(" <- ")[0] for line in lines(caplog)]
    assert told == [
        "discarded step",
        f"a fault of otel-step-hook: {type(bomb.error).__name__}",
        "1 more like this: discarded step",
    ]


def test_shutdown_in_the_middle_of_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """The turn that fails has heard of it; it is the next one, after a pause, that ends it."""
    monkeypatch.setattr(worker_module, "_PAUSE_AFTER_FAULT", 0.3)
    released = threading.Event()
    receiver = Receiver(lambda: released.wait(WAIT))
    with working(receiver) as worker:
        worker.submit(submission())
        assert receiver.arrived.acquire(timeout=WAIT)
        _break(worker)
        stopping = threading.Thread(target=worker.shutdown, args=(WAIT,))
        stopping.start()
        wait_until(worker._own.inbox.wishes.qsize)
        released.set()
        assert 0.25 < seconds(lambda: stopping.join(WAIT)) < 0.3 + AT_ONCE
        assert worker.pending == 0


def test_what_comes_in_while_a_fault_is_cleared_away() -> None:
    """It is the next turn's, which delivers it."""
    leaving = threading.Event()

    def parting() -> float:
        leaving.set()
        return 0.1  # the time of a connection that closes properly

    receiver = Receiver(parting=parting)
    receiver.gate.clear()
    with working(receiver) as worker:
        worker.submit(submission())
        assert receiver.arrived.acquire(timeout=WAIT)
        turn = worker._own.turn
        _break(worker)
        assert leaving.wait(WAIT)
        worker.submit(submission())
        wait_until(lambda: worker._own.turn not in {None, turn})
        receiver.gate.set()
        assert worker.flush(WAIT)
        assert worker.pending == 0
    assert len(receiver.bodies) == 2


def test_what_comes_in_with_a_fault_that_ends_the_loop() -> None:
    """It is the next turn's, too: the one that ends takes nothing any more that it could not deliver."""
    receiver = Receiver()
    with working(receiver) as worker:

        class Bomb(_ExitingBomb):
            __slots__ = ()

            def __iter__(self) -> Iterator[str]:
                worker.submit(submission())
                raise self.error

        worker.submit(submission())
        assert worker.flush(WAIT)
        turn = worker._own.turn
        receiver.gate.clear()
        _break(worker, Bomb)
        wait_until(lambda: worker._own.turn not in {None, turn})
        receiver.gate.set()
        assert worker.flush(WAIT)
        assert worker.pending == 0


def test_faults_are_told_of_in_time(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What a turn that failed has counted and not told is told by the next, after a minute, without being asked."""
    with working(Receiver()) as worker:
        for _ in range(2):
            _break(worker)
            wait_until(lambda: not worker.is_running)
        assert len(lines(caplog)) == 1
        monkeypatch.setattr(log_module, "EVERY", 0.1)  # seconds; a minute in life
        worker.submit(submission())
        wait_until(lambda: len(lines(caplog)) == 2)
    assert lines(caplog)[1].startswith("1 more like this: a fault of otel-step-hook: LookupError")


def test_faults_without_end() -> None:
    """However often the loop has to start anew, no wake-up is lost and each step gets its last word."""
    receiver = Receiver()
    with working(receiver, max_queue_size=100_000) as worker:

        def submit() -> None:
            for number in range(300):
                worker.submit(submission())
                if number % 10 == 0:
                    _break(worker)

        submitting = [threading.Thread(target=submit) for _ in range(4)]
        for thread in submitting:
            thread.start()
        for thread in submitting:
            thread.join(WAIT)
        assert worker.flush(WAIT)
        assert worker.pending == 0
        assert worker.dropped == []


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
