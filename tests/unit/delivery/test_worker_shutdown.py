"""The worker's shutdown: it returns in time, may be called from any thread, and accounts for every step."""

import _thread
import functools
import sys
import threading
import time
from collections.abc import Callable

import pytest
from delivering import AT_ONCE, DELIVERED, WAIT, NewRig, Rig, Script, counts, event, seconds, threads, wait_until
from support import log_lines

from otel_step_hook.delivery import clock, worker

_start_new_thread = _thread.start_new_thread
LATE = "dropped a step (shutdown, endpoint default): the step ended after shutdown()"


class Starts:
    """Counts the threads that the worker has started through `_thread`, and those of them that have ended."""

    begun = ended = 0

    def __call__(self, function: Callable[..., object], args: tuple[object, ...]) -> int:
        self.begun += 1
        return _start_new_thread(self._run, (function, args))

    def _run(self, function: Callable[..., object], args: tuple[object, ...]) -> None:
        function(*args)
        self.ended += 1


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    """Counts the threads that are started from now on, except those of `threading`."""
    counting = Starts()
    monkeypatch.setattr(_thread, "start_new_thread", counting)
    return counting


def test_on_the_workers_own_thread_flush_and_shutdown_return_at_once(rigged: NewRig) -> None:
    """No other thread could deliver meanwhile, so that flush() returns False."""
    returned: list[object] = []

    def stop() -> None:
        returned.append(rig.worker.flush(WAIT))
        rig.worker.shutdown(WAIT)
        returned.append("returned")

    script = Script(stop, DELIVERED)
    rig = rigged(script)
    rig.submit(event(), event())
    wait_until(lambda: returned[1:] and not threads())
    assert returned == [False, "returned"]
    assert len(script.posts) == 2


def test_shutdown_keeps_its_limit(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """A shutdown with a receiver that hangs ends at its limit, discards the steps, and ends the thread."""
    never = threading.Event()
    script = Script(never, never)
    rig = rigged(script, concurrency=2)
    rig.submit(*(event() for _ in range(5)))
    script.wait_for(2)
    assert 0.2 < seconds(lambda: rig.worker.shutdown(0.3)) < 0.3 + AT_ONCE
    wait_until(lambda: not threads())  # a tenth of 0.3 s may be too short to record what is discarded
    first, rest = [line for line in log_lines(caplog) if "shutdown took its 0.3 s" not in line]
    assert first.startswith("ERROR discarded step step-")
    assert rest.startswith("ERROR 4 more like this: discarded step step-")


def test_shutdown_keeps_its_limit_when_the_thread_is_stuck(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """A shutdown ends at its limit and logs once how many steps are left; a second one returns at once."""
    released = threading.Event()
    script = Script(functools.partial(released.wait, WAIT), DELIVERED)
    rig = rigged(script)
    rig.submit(event(), event())
    script.wait_for(1)
    assert 0.2 <= seconds(lambda: rig.worker.shutdown(0.2)) < 0.2 + AT_ONCE
    assert seconds(lambda: rig.worker.shutdown(WAIT)) < AT_ONCE
    assert log_lines(caplog) == [
        "ERROR shutdown took its 0.2 s; 2 steps for endpoint default are neither delivered nor discarded"
    ]
    released.set()


def test_a_shutdown_before_the_first_step_starts_no_thread(rigged: NewRig, starts: Starts) -> None:
    """A flush after it starts none either, and a later shutdown has its own limit."""
    rig = rigged(Script())
    rig.worker.shutdown(0)
    assert rig.worker.flush(WAIT)
    rig.worker.shutdown(WAIT)
    assert starts.begun == 0


def test_steps_after_a_shutdown_are_dropped(rigged: NewRig, starts: Starts, caplog: pytest.LogCaptureFixture) -> None:
    """Late steps are dropped and logged, by a thread that is started at most once a second."""
    script = Script()
    rig = rigged(script)
    rig.submit()
    rig.worker.shutdown(WAIT)
    # Or a thread that is about to end takes the first late step, too.
    wait_until(lambda: starts.ended == starts.begun and not threads())
    before, began = starts.begun, time.monotonic()
    for number in range(500):
        rig.submit()
        if number < 5:
            wait_until(lambda: starts.ended == starts.begun and not threads())
    rig.worker.add_fault(LookupError())
    assert 1 <= starts.begun - before <= 1 + (time.monotonic() - began)
    rig.worker.shutdown(WAIT)
    assert counts(caplog) == {LATE: 500, "a fault of otel-step-hook: LookupError": 1}
    assert len(script.posts) == 1


def test_a_late_step_shortly_after_a_drop_before_the_shutdown(
    rigged: NewRig, starts: Starts, caplog: pytest.LogCaptureFixture
) -> None:
    """The first late step is logged at once, whatever was reported before the shutdown."""
    rig = rigged(Script())
    rig.worker.drop("unreadable")
    rig.worker.shutdown(WAIT)
    wait_until(lambda: starts.ended == starts.begun and not threads())
    rig.submit()
    wait_until(lambda: f"ERROR {LATE}" in log_lines(caplog))


def test_late_steps_are_logged_once_a_minute(
    rigged: NewRig, starts: Starts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Further late steps are counted, however often a thread is started for them."""
    rig = rigged(Script())
    rig.worker.shutdown(WAIT)
    usual, passed = clock.monotonic, 0.0
    monkeypatch.setattr(worker, "monotonic", lambda: usual() + passed)
    for number in (1, 2, 3):
        passed += 1.0
        rig.submit()
        wait_until(lambda: starts.ended == starts.begun and not threads())
        assert starts.begun == number
    assert log_lines(caplog) == [f"ERROR {LATE}"]
    rig.submit()
    rig.worker.shutdown(WAIT)
    assert log_lines(caplog) == [f"ERROR {LATE}", f"ERROR 3 more like this: {LATE}"]


def test_the_count_of_late_steps_is_logged_at_the_next_shutdown(
    rigged: NewRig, caplog: pytest.LogCaptureFixture
) -> None:
    """A second shutdown logs the count, even if a thread has counted the steps before: the process may end then."""
    rig = rigged(Script())
    rig.worker.shutdown(WAIT)
    rig.submit(*(event() for _ in range(5)))
    wait_until(lambda: log_lines(caplog) and not threads())
    assert log_lines(caplog)[0] == f"ERROR {LATE}"
    rig.worker.shutdown(WAIT)
    counts = [int(line.split()[1]) for line in log_lines(caplog)[1:]]
    assert sum(counts) == 4


def test_steps_that_end_while_the_last_loop_ends_are_counted(
    rigged: NewRig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Steps that come after the last loop has read its queue, and before it logs its counts, are in the count."""
    rig = rigged(Script())
    dispatch = rig.worker._runner().dispatch
    usual = dispatch.run

    async def run() -> None:
        await usual()
        rig.submit(*(event() for _ in range(10)))

    rig.worker.shutdown(WAIT)
    monkeypatch.setattr(dispatch, "run", run)
    rig.submit()
    rig.worker.shutdown(WAIT)
    assert log_lines(caplog)[0] == f"ERROR {LATE}"
    assert counts(caplog)[LATE] % 10 == 1
    assert counts(caplog)[LATE] > 10


@pytest.mark.parametrize("limit", [WAIT, 0.0])
def test_each_step_during_a_shutdown_is_accounted_for(
    rigged: NewRig, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that is submitted during a shutdown is delivered, discarded or dropped, and the thread ends."""

    def submit(rig: Rig) -> None:
        for _ in range(60):
            rig.submit()

    def is_accounted(rig: Rig, dropped: list[str]) -> bool:
        return len(rig.results) + len(dropped) == 180

    for _ in range(20):
        rig, dropped = rigged(Script(), max_queue_size=10), list[str]()
        monkeypatch.setattr(rig.worker, "drop", dropped.append)
        submitting = [threading.Thread(target=submit, args=(rig,)) for _ in range(3)]
        for thread in submitting:
            thread.start()
        rig.worker.shutdown(limit)
        for thread in submitting:
            thread.join(WAIT)
        wait_until(functools.partial(is_accounted, rig, dropped))


@pytest.mark.slow
def test_the_workers_are_found_while_others_are_made(rigged: NewRig) -> None:
    """A thread that makes and forgets workers does not disturb another one that asks for all of them."""
    own, made = rigged(Script()), threading.Event()

    def make() -> None:
        for _ in range(60):
            Rig(Script())
        made.set()

    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # seconds
    maker = threading.Thread(target=make)
    maker.start()
    try:
        while not made.is_set():
            assert own.worker in worker.existing_workers()
    finally:
        sys.setswitchinterval(usual)
        maker.join()
