"""A worker at the end of its process: the thread that ends a step reports it. Whole processes: see programs/."""

import functools
import logging
import sys
import threading

import pytest
from delivering import DELIVERED, WAIT, NewRig, Script, threads, wait_until
from support import log_lines

from otel_step_hook import StepHookProcessor
from otel_step_hook.delivery import worker
from otel_step_hook.delivery.log import log_safely
from otel_step_hook.delivery.worker import shut_down_at_exit

LATE = "ERROR dropped a step (shutdown, endpoint default): the step ended after shutdown()"


@pytest.fixture
def is_finalizing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter finalizes, as far as `sys` knows."""
    monkeypatch.setattr(sys, "is_finalizing", lambda: True)


def test_late_steps_are_reported_by_their_own_thread(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """The first late step is logged at once, the count of the others when the hook is deleted, later ones at once."""
    rig = rigged(Script())
    shut_down_at_exit([rig.worker], WAIT)
    for _ in range(5):
        rig.submit()
    assert (log_lines(caplog), threads()) == ([LATE], [])
    rig.worker.report_rest()
    rig.submit()
    assert log_lines(caplog)[1:] == [f"ERROR 4 more like this: {LATE[6:]}", f"ERROR 1 more like this: {LATE[6:]}"]
    assert {record.threadName for record in caplog.records} == {threading.current_thread().name}


def test_a_worker_thread_that_still_runs_reports_late_steps(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """A worker thread that was stuck for longer than the shutdown timeout reports late steps when it goes on."""
    released = threading.Event()
    script = Script(functools.partial(released.wait, WAIT), DELIVERED)
    rig = rigged(script)
    rig.submit()
    script.wait_for(1)
    shut_down_at_exit([rig.worker], 0.1)
    rig.submit()
    assert LATE not in log_lines(caplog)
    released.set()
    wait_until(lambda: LATE in log_lines(caplog) and not threads())


@pytest.mark.usefixtures("is_finalizing")
def test_a_thread_that_is_stuck_for_ever(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """While the interpreter finalizes, late steps are reported even if the worker thread never ended."""
    released = threading.Event()
    script = Script(functools.partial(released.wait, WAIT), DELIVERED)
    rig = rigged(script)
    rig.submit()
    script.wait_for(1)
    shut_down_at_exit([rig.worker], 0.1)
    rig.submit()
    assert LATE in log_lines(caplog)
    released.set()
    wait_until(lambda: not threads())


def test_a_late_step_while_another_one_is_reported(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """A log handler that ends a step while a late step is logged does not begin again, and the step is counted."""
    rig = rigged(Script())

    class Ending(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            rig.submit()

    shut_down_at_exit([rig.worker], WAIT)
    logger, ending = logging.getLogger("otel_step_hook"), Ending()
    logger.addHandler(ending)
    rig.submit()
    logger.removeHandler(ending)
    rig.worker.report_rest()
    assert log_lines(caplog) == [LATE, f"ERROR 1 more like this: {LATE[6:]}"]


def test_a_shutdown_that_is_interrupted(
    rigged: NewRig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A signal handler that raises during the shutdown at exit does not keep late steps from being reported."""
    rig = rigged(Script())

    def interrupted(*_: object) -> None:
        rig.worker.is_closed = True
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "shut_down_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shut_down_at_exit([rig.worker], WAIT)
    rig.submit()
    assert log_lines(caplog) == [LATE]


@pytest.mark.usefixtures("is_finalizing")
def test_finalisation_logs_only_what_cannot_block(caplog: pytest.LogCaptureFixture) -> None:
    """While the interpreter finalizes, a line is logged unless a lock is held, of a handler or of logging itself."""
    log_safely(logging.ERROR, "free")
    held, released = threading.Event(), threading.Event()

    def hold() -> None:
        with caplog.handler.lock:  # type: ignore[union-attr]  # -- it has one
            held.set()
            released.wait(WAIT)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(WAIT)
    log_safely(logging.ERROR, "held")
    released.set()
    thread.join()
    assert log_lines(caplog) == ["ERROR free"]


@pytest.mark.usefixtures("is_finalizing")
def test_finalisation_without_locks(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler without a lock, and no handler of last resort, keep no line from the log; nor does no propagation."""
    monkeypatch.setattr(logging, "lastResort", None)
    logger = logging.getLogger("otel_step_hook")
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "handlers", [logging.NullHandler(), caplog.handler])  # the first has no lock
    log_safely(logging.ERROR, "a line")
    assert log_lines(caplog) == ["ERROR a line"]


@pytest.mark.usefixtures("is_finalizing")
def test_a_hook_that_is_deleted_by_finalisation(caplog: pytest.LogCaptureFixture) -> None:
    """A hook that is deleted while the interpreter finalizes reports the counts that are not logged yet."""
    hook = StepHookProcessor("http://127.0.0.1:9/")
    (own,) = hook._workers
    shut_down_at_exit([own], WAIT)
    for _ in range(3):
        own.drop("shutdown")
    hook.__del__(sys.is_finalizing)
    assert log_lines(caplog) == [LATE, f"ERROR 2 more like this: {LATE[6:]}"]


def test_what_can_no_longer_be_reported(rigged: NewRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been deleted before the hook, by the interpreter, is no error."""
    rig = rigged(Script())
    monkeypatch.setattr(worker, "os", None)
    rig.worker.report_rest()
