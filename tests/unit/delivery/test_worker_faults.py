"""The worker when its loop or a task fails: it logs the fault, accounts for every step, and goes on."""

import asyncio
import contextlib
import gc
import itertools
import re
import threading

import pytest
from delivering import AT_ONCE, DELIVERED, WAIT, NewRig, Script, event, failed, seconds, wait_until
from support import log_lines

from otel_step_hook.delivery import log as log_module
from otel_step_hook.delivery import runner as runner_module
from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.delivery.sender import Transport

pytestmark = pytest.mark.usefixtures("short_pause")

FAULT = "a fault of otel-step-hook: LookupError"


def _fail() -> None:
    raise LookupError("a secret")


def kill() -> None:
    """End the worker's loop during an attempt, by a callback that raises."""
    asyncio.get_running_loop().call_soon(_fail)


class SlowCancellation(Script):
    """A script whose cancelled attempts take a while to end, like a connection that closes properly."""

    def __init__(self, *results: object) -> None:
        super().__init__(*results)  # type: ignore[arg-type]  # -- checked there
        self.is_cancelled = threading.Event()

    async def cancelled(self) -> None:
        self.is_cancelled.set()
        await asyncio.sleep(0.1)


def test_a_disabled_endpoint_stays_disabled_after_a_fault(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """After a fault of the loop an endpoint is still disabled, until the process starts anew."""
    script = Script(kill, failed(410, directive="disable"), DELIVERED)
    rig = rigged(script)
    rig.submit(event("last"))
    wait_until(lambda: FAULT in caplog.text)
    rig.deliver(event("later"))
    assert rig.results == [("last", "discarded", "410"), ("later", "discarded", "endpoint_disabled")]
    assert len(script.posts) == 1


def test_two_faults_in_one_turn_of_the_loop_end_it_once(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """One is logged, and the step is delivered by the loop that is started next."""

    def kill_twice() -> None:
        kill()
        kill()

    rig = rigged(Script(kill_twice, DELIVERED))
    rig.submit(event("step"))
    wait_until(lambda: rig.results == [("step", "delivered", None)])
    rig.worker.shutdown(WAIT)
    (line,) = log_lines(caplog)
    assert line.startswith(f"ERROR {FAULT}")


def test_steps_are_discarded_while_no_transport_can_be_made(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """Each step is discarded and logged; once transports can be made again, steps are delivered again."""
    script = Script()
    refusals = iter(range(3))

    def connect() -> Transport:
        for _ in refusals:
            _fail()
        return script()

    rig = rigged(connect)
    rig.deliver(event(), event(), event())
    assert script.posts == []
    rig.deliver()
    rig.worker.shutdown(WAIT)
    assert [(result, error) for _, result, error in rig.results] == [("discarded", "LookupError")] * 3 + [
        ("delivered", None)
    ]
    assert "a secret" not in caplog.text
    first, second, *rest = log_lines(caplog)
    assert first.startswith(f"ERROR {FAULT} <- test_worker_faults.py")
    assert second.startswith("ERROR discarded step step-")
    assert [line.partition(" more")[0] for line in rest] == ["ERROR 2", "ERROR 2"]


@pytest.mark.parametrize("error", [LookupError("a secret"), SystemExit("not ours to do")])
def test_a_fault_of_the_loop_loses_no_step(
    rigged: NewRig, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """Attempts in flight are counted and made again at once; waiting deliveries keep their due time."""

    def fail() -> None:
        raise error

    script = Script(failed(), lambda: asyncio.get_running_loop().call_soon(fail), threading.Event(), DELIVERED)
    rig = rigged(script, concurrency=1, initial_backoff=0.5, max_backoff=0.5)
    rig.submit(event("waiting"), event("in flight"), event("queued"))
    wait_until(lambda: len(rig.results) == 3)
    rig.deliver(event("later"))
    rig.worker.shutdown(WAIT)
    deliveries = [span.attributes or {} for span in rig.named("step_hook.deliver")]
    assert {one["step_hook.step_id"]: one["step_hook.attempts"] for one in deliveries} == {
        "waiting": 2,
        "in flight": 2,
        "queued": 1,
        "later": 1,
    }
    assert {one["step_hook.result"] for one in deliveries} == {"delivered"}
    assert "a secret" not in caplog.text
    _, line = log_lines(caplog)  # the first line is about the 503
    assert line.startswith(f"ERROR a fault of otel-step-hook: {type(error).__name__} <- test_worker_faults.py")


def test_attempts_before_and_after_a_fault_have_one_parent(rigged: NewRig) -> None:
    """The next loop continues the count of attempts, below the same delivery span."""
    rig = rigged(Script(kill, threading.Event(), DELIVERED))
    rig.submit()
    wait_until(lambda: rig.results)
    *attempts, delivery = rig.exporter.get_finished_spans()
    assert [(span.attributes or {}).get("http.request.resend_count") for span in attempts] == [None, 1]
    assert {span.parent and span.parent.span_id for span in attempts} == {delivery.context.span_id}


def test_a_flush_during_a_fault_keeps_its_timeout(rigged: NewRig) -> None:
    """A flush during a fault returns by its timeout, and the next flush waits for all steps."""
    answer = threading.Event()
    script = Script(answer, kill, threading.Event(), DELIVERED)
    rig = rigged(script)
    flushed: list[bool] = []
    rig.submit()
    script.wait_for(1)
    waiting = threading.Thread(target=lambda: flushed.append(rig.worker.flush(0.2)))
    waiting.start()
    rig.submit()
    answer.set()
    assert seconds(lambda: waiting.join(WAIT)) < 0.2 + AT_ONCE
    assert len(flushed) == 1
    assert rig.worker.flush(WAIT)
    assert [result for _, result, _ in rig.results] == ["delivered"] * 2


def test_a_shutdown_during_a_fault_delivers_and_ends_in_time(rigged: NewRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop that fails is stopped; the next one delivers after a pause, and ends in time."""
    monkeypatch.setattr(runner_module, "_PAUSE_AFTER_FAULT", 0.3)
    script = SlowCancellation(kill, threading.Event(), DELIVERED)
    rig = rigged(script)
    rig.submit()
    assert script.is_cancelled.wait(WAIT)
    assert seconds(lambda: rig.worker.shutdown(WAIT)) < 0.1 + 0.3 + AT_ONCE
    assert [result for _, result, _ in rig.results] == ["delivered"]
    first, again = script.posts
    assert first.body == again.body


def test_a_step_that_is_submitted_during_a_fault_is_delivered(rigged: NewRig) -> None:
    """The next loop delivers the step together with those that it has taken over."""
    script = SlowCancellation(kill, threading.Event(), DELIVERED)
    rig = rigged(script)
    rig.submit(event("in flight"))
    assert script.is_cancelled.wait(WAIT)
    rig.submit(event("late"))
    wait_until(lambda: len(rig.results) == 2)
    assert sorted(rig.results) == [("in flight", "delivered", None), ("late", "delivered", None)]
    assert len(script.posts) == 3


def test_faults_are_logged_in_time(
    rigged: NewRig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next loop logs the counts of a loop that has died, after a minute and without a new fault."""
    monkeypatch.setattr(log_module, "EVERY", 0.3)  # seconds

    def answer() -> AttemptResult:
        kill()
        return DELIVERED

    script = Script(answer)
    rig = rigged(script)
    for _ in range(500):
        rig.submit()
        script.wait_for(1)
        if "more like this" in caplog.text:
            break
    lines = log_lines(caplog)
    assert lines[0].startswith(f"ERROR {FAULT}")
    assert any(re.match(rf"ERROR \d+ more like this: {FAULT}", line) for line in lines)


def test_repeated_faults_lose_no_step(rigged: NewRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the loop has to start anew, each step is delivered."""
    monkeypatch.setattr(runner_module, "_PAUSE_AFTER_FAULT", 0.0)
    count = itertools.count()

    def answer() -> AttemptResult:
        if next(count) % 30 == 0:
            kill()
        return DELIVERED

    script = Script(answer)
    rig = rigged(script, max_queue_size=100_000)
    submitting = [threading.Thread(target=lambda: rig.submit(*(event() for _ in range(300)))) for _ in range(4)]
    for thread in submitting:
        thread.start()
    for thread in submitting:
        thread.join(WAIT)
    wait_until(lambda: len(rig.results) == 1200)
    assert {result for _, result, _ in rig.results} == {"delivered"}
    assert len({post.body for post in script.posts}) == 1200


def test_errors_that_asyncio_reports_are_logged(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """An error in a task that is never awaited is logged without its message, and stops no delivery."""

    async def fail() -> None:
        _fail()

    def cause_reports() -> None:
        asyncio.get_running_loop().create_task(fail())
        asyncio.get_running_loop().call_exception_handler({"message": "something is wrong"})

    script = Script(cause_reports, DELIVERED, cause_reports, DELIVERED)
    rig = rigged(script)
    for _ in range(2):
        rig.deliver()
        gc.collect()
    rig.worker.shutdown(WAIT)
    assert len(script.posts) == 2
    assert "a secret" not in caplog.text
    first, rest = log_lines(caplog)
    assert first == "ERROR a fault of otel-step-hook: something is wrong"
    assert rest.startswith(f"ERROR 3 more like this: {FAULT}")


def test_a_task_that_ignores_cancellation_does_not_delay_the_shutdown(
    rigged: NewRig, caplog: pytest.LogCaptureFixture
) -> None:
    """A task that a fault has left, and that suppresses its cancellation, does not keep the thread."""
    ended = threading.Event()

    async def persist() -> None:
        while not ended.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)  # suppresses each cancellation, not only the first

    kept: list[object] = []
    rig = rigged(Script(lambda: kept.append(asyncio.get_running_loop().create_task(persist())), DELIVERED))
    rig.deliver()
    assert seconds(lambda: rig.worker.shutdown(WAIT)) < AT_ONCE
    kept.clear()
    gc.collect()
    assert log_lines(caplog) == ["ERROR a fault of otel-step-hook: Task was destroyed but it is pending!"]
