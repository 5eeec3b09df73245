"""The outbox in whole processes: kills, exits, forks, and what the next process delivers."""

import re
import signal
from pathlib import Path

import pytest
from processes import Run, Start, StepReceiver
from storing import locked
from test_fork_unseen import UNSEEN

from otel_step_hook.delivery.database import Database

NOWHERE = "http://127.0.0.1:9/"  # nothing listens on the discard port
# A program that ends no step: its worker delivers what others have left, and then it exits.
DELIVER = """
from otel_step_hook.delivery import dispatch, outbox_file
outbox_file.LOOK_INTERVAL = dispatch.IDLE = 0.1  # seconds, instead of half a minute
tracer.start_span("no step").end()
wait_for_test()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The path of the outbox."""
    return tmp_path / "steps.db"


def left_in(file: Path) -> list[str]:
    """The files beside the outbox, journals of processes that were killed among them."""
    return sorted(path.suffix for path in file.parent.iterdir() if path != file)


def deliver_rest(start: Start, receiver: StepReceiver, file: Path, count: int) -> None:
    """Let another process deliver what is left, *count* webhooks in all."""
    program = start(DELIVER, outbox=file)
    receiver.wait_for(count)
    program.go_on()
    ended = program.ended()
    assert (ended.code, ended.noise) == (0, [])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_loses_nothing(
    receiver: StepReceiver, start: Start, run: Run, file: Path, number: signal.Signals
) -> None:
    """Steps that ended just before the kill are delivered by the next process, which ends none itself."""
    ended = run(f"end_steps('step', 300); os.kill(os.getpid(), {int(number)})", webhook=NOWHERE, outbox=file)
    assert ended.code == -number
    deliver_rest(start, receiver, file, 300)
    assert receiver.steps == sorted(f"step-{number}" for number in range(300))
    assert left_in(file) == []


@pytest.mark.slow
def test_what_was_flushed_survives_a_kill(receiver: StepReceiver, start: Start, run: Run, file: Path) -> None:
    """A flush returns once everything is durable, also what is too long for the journal, and waits for no receiver."""
    long = "x" * 2000
    ended = run(
        f"end_step('{long}'); print(provider.force_flush()); os.kill(os.getpid(), 9)", webhook=NOWHERE, outbox=file
    )
    assert (ended.code, ended.out) == (-9, ["True"]) or (ended.code, ended.out) == (-9, [])
    deliver_rest(start, receiver, file, 1)
    assert receiver.steps == [long]


@pytest.mark.slow
def test_an_exit_leaves_the_rest_to_the_next_process(
    receiver: StepReceiver, start: Start, run: Run, file: Path
) -> None:
    """A process exits although the receiver is down; what waits is delivered by the next one, once."""
    ended = run("end_steps('step', 40)", webhook=NOWHERE, outbox=file, shutdown_timeout=600)
    assert (ended.code, ended.noise) == (0, [])
    assert left_in(file) == []
    deliver_rest(start, receiver, file, 40)
    assert receiver.steps == sorted(f"step-{number}" for number in range(40))


@pytest.mark.parametrize("is_in_flight", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_exit_while_the_file_is_locked_loses_nothing(
    receiver: StepReceiver, start: Start, file: Path, *, is_in_flight: bool
) -> None:
    """What waits, or is cut off, stays in the journal for the next process; what is in memory alone is discarded."""
    Database(file).close()
    receiver.gate.clear()
    with locked(file):
        program = start(
            """
            from otel_step_hook.delivery import outbox_file
            outbox_file.BUSY_TIME = 0.1  # seconds
            end_steps("step", 40)
            end_step("x" * 2000)  # no slot has room for it
            wait_for_test()
            """,
            outbox=file,
            concurrency=2,
            shutdown_timeout=3,
            **({} if is_in_flight else {"webhook": NOWHERE}),
        )
        receiver.wait_for(2 if is_in_flight else 0)
        program.go_on()
        ended = program.ended()
    assert (ended.code, ended.noise) == (0, [])
    assert re.findall(r"discarded step (\w)", ended.err) == ["x"]
    assert "40 steps wait in a journal beside the outbox" in ended.err
    receiver.gate.set()
    sent = len(receiver.steps)
    deliver_rest(start, receiver, file, sent + 40)
    assert {*receiver.steps} - {"x" * 2000} == {f"step-{number}" for number in range(40)}
    assert left_in(file) == []


@pytest.mark.slow
def test_an_attempt_in_flight_may_end_at_exit(receiver: StepReceiver, start: Start, file: Path) -> None:
    """A delivery that is answered during the exit is not sent again by the next process."""
    receiver.gate.clear()
    program = start(
        """
        dispatch._MOVE_TIME = 600  # seconds, instead of one: this machine may be busy
        end_step("step")
        wait_for_test()
        print("exits", flush=True)
        """,
        outbox=file,
        shutdown_timeout=600,
    )
    receiver.wait_for(1)
    program.go_on()
    assert program.read_line() == "exits"
    receiver.gate.set()
    assert program.ended().code == 0
    next_one = start("end_step('last'); wait_for_test()", outbox=file)
    receiver.wait_for(2)
    next_one.go_on()
    assert next_one.ended().code == 0
    assert receiver.steps == ["last", "step"]


@pytest.mark.slow
def test_an_exit_does_not_wait_for_a_receiver_that_hangs(receiver: StepReceiver, start: Start, file: Path) -> None:
    """An attempt that does not move is broken off, and made again by the next process, below the same span."""
    receiver.gate.clear()
    program = start("end_step('step'); wait_for_test()", outbox=file, shutdown_timeout=600)
    receiver.wait_for(1)
    program.go_on()
    assert program.ended().code == 0
    receiver.gate.set()
    deliver_rest(start, receiver, file, 2)
    assert receiver.steps == ["step", "step"]


@pytest.mark.slow
def test_a_living_process_takes_a_dead_ones_steps_over(receiver: StepReceiver, start: Start, file: Path) -> None:
    """A process that shares the file delivers what a killed one had in its journal and in its leases."""
    living = start(DELIVER, outbox=file)
    receiver.gate.clear()
    killed = start("end_steps('step', 100); print('ended', flush=True); wait_for_test()", outbox=file, concurrency=3)
    assert killed.read_line() == "ended"
    receiver.wait_for(1)
    killed.kill()
    killed.ended()
    receiver.gate.set()
    receiver.wait_for(100)
    while len(set(receiver.steps)) < 100:
        receiver.wait_for(len(receiver.steps) + 1)
    living.go_on()
    assert living.ended().code == 0
    assert left_in(file) == []


@pytest.mark.slow
def test_forked_children_write_to_journals_of_their_own(receiver: StepReceiver, run: Run, file: Path) -> None:
    """Parent and children, forked while the parent writes to the file, deliver each step once, and none hangs."""
    ended = run(
        """
        from otel_step_hook.delivery import outbox_file
        outbox_file.LOOK_INTERVAL = dispatch.IDLE = 0.2  # seconds: a child that has ended leaves its leases
        stop = threading.Event()
        def work():
            number = 0
            while not stop.is_set() and number < 300:  # as many as a busy machine delivers in time
                end_step(f"parent-{number}")
                number += 1
                stop.wait(0.01)  # seconds: as many steps as can be delivered
            print(number, flush=True)
        thread = threading.Thread(target=work)
        thread.start()
        for number in range(30):
            pid = os.fork()
            if pid == 0:
                end_step(f"child-{number}")
                provider.force_flush()
                os._exit(3)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
        stop.set()
        thread.join()
        while hook._workers[0]._runner().store.counts().waiting:
            stop.wait(0.01)  # no event says that the outbox is empty
        """,
        outbox=file,
    )
    assert (ended.code, ended.noise) == (0, [])
    parents = int(ended.out[-1])
    wanted = [f"child-{number}" for number in range(30)] + [f"parent-{number}" for number in range(parents)]
    assert set(receiver.steps) == set(wanted)


@pytest.mark.slow
def test_an_unseen_fork_leaves_the_parents_journal_alone(
    receiver: StepReceiver, start: Start, run: Run, file: Path
) -> None:
    """A child that Python did not fork writes to a journal of its own; killed, both lose nothing."""
    ended = run(
        UNSEEN
        + """
def in_child():
    end_steps("child", 5)
    os.kill(os.getpid(), 9)
end_steps("parent", 5)
while hook._workers[0]._runner().store.counts().waiting:
    time.sleep(0.01)  # until the worker thread has nothing to do, since no event says so
os.waitpid(fork_unseen(in_child), 0)
end_steps("later", 5)
os.kill(os.getpid(), 9)
""",
        outbox=file,
    )
    assert ended.code == -9
    program = start(DELIVER, outbox=file)
    wanted = {f"{who}-{number}" for who in ("parent", "child", "later") for number in range(5)}
    while set(receiver.steps) != wanted:
        receiver.wait_for(len(receiver.steps) + 1)
    program.go_on()
    assert program.ended().code == 0


def test_the_applications_thread_opens_nothing(run: Run, file: Path) -> None:
    """After the first span, the end of a step makes no call that Python audits: no file, no SQLite, no thread."""
    ended = run(
        """
        end_step("first")
        provider.force_flush()
        own, seen = threading.get_ident(), []
        sys.addaudithook(lambda event, _: threading.get_ident() == own and is_on and seen.append(event))
        is_on = True
        end_steps("step", 200)
        is_on = False
        print({*seen} - {"marshal.dumps", "builtins.id"})
        """,
        webhook=NOWHERE,
        outbox=file,
    )
    assert (ended.code, ended.out) == (0, ["set()"])


@pytest.mark.slow
def test_a_hook_that_is_collected_leaves_its_steps_in_the_file(
    receiver: StepReceiver, start: Start, run: Run, file: Path
) -> None:
    """When hook and provider are garbage-collected, thread and files are closed; the next process delivers the rest."""
    ended = run(
        """
        import gc
        before = len(os.listdir("/proc/self/fd"))
        own = TracerProvider(shutdown_on_exit=False)
        own.add_span_processor(StepHookProcessor())
        end_step("step", own.get_tracer("tests"))
        del own
        file = os.environ["STEP_COMPLETE_OUTBOX"]
        while threading.active_count() > 1 or len(os.listdir("/proc/self/fd")) > before or not os.path.exists(file):
            gc.collect()
        """,
        webhook=NOWHERE,
        outbox=file,
    )
    assert (ended.code, ended.noise) == (0, [])
    assert left_in(file) == []
    deliver_rest(start, receiver, file, 1)
    assert receiver.steps == ["step"]


def test_a_file_that_cannot_be_used_costs_no_step(receiver: StepReceiver, run: Run, file: Path) -> None:
    """Where the file is no database, one line says so, and webhooks are sent from memory."""
    file.write_text("no database, but the notes of somebody")
    ended = run("end_steps('step', 5)", outbox=file)
    assert (ended.code, receiver.steps) == (0, [f"step-{number}" for number in range(5)])
    assert ended.err.count("cannot be used: file is not a database") == 1
    assert file.read_text() == "no database, but the notes of somebody"
    assert left_in(file) == []
