"""SIGTERM, with and without ``STEP_COMPLETE_DRAIN_ON_SIGTERM``: what arrives, and how the process ends.

For servers and other handlers see test_sigterm_handlers.py.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from processes import PROCESS_1, Program, Run, Start, StepReceiver, has_process_1

STEPS = sorted(f"step-{number}" for number in range(60))
DRAINING = {"drain_on_sigterm": "true", "shutdown_timeout": 30}  # seconds, less than a test waits for the end
LONG = {"timeout": 600, "give_up_after": 600}  # seconds: only the shutdown timeout ends the program in time

# Waits in short slices: a signal that arrives just before a wait begins is handled when the wait ends.
PLAIN = """
import measured, signal
end_steps("step", 60)
while True:
    threading.Event().wait(0.1)
"""
# Prints a line when the handler of the hook has begun its work, and with it changed the handler.
WATCHED = """
import measured, signal, time
def watch(known):
    while signal.getsignal(signal.SIGTERM) is known:
        time.sleep(0.01)  # seconds; there is no event to wait for
    print("draining", flush=True)
threading.Thread(target=watch, args=(signal.getsignal(signal.SIGTERM),), daemon=True).start()
end_steps("step", 60)
while True:
    threading.Event().wait(0.1)
"""


def _terminate(program: Program, receiver: StepReceiver) -> None:
    """Send SIGTERM while the first eight steps wait for the receiver's answer."""
    receiver.wait_for(8)
    program.send_signal(signal.SIGTERM)


# Plain programs


def test_a_program_that_gets_sigterm(receiver: StepReceiver, start: Start) -> None:
    """It delivers what is queued; its status is that of the signal, as without a handler."""
    receiver.gate.clear()
    program = start(PLAIN, **DRAINING)
    _terminate(program, receiver)
    receiver.gate.set()
    ended = program.ended()
    assert (ended.code, ended.err, receiver.steps) == (-signal.SIGTERM, "", STEPS)


def test_without_the_setting_nothing_is_changed(receiver: StepReceiver, start: Start) -> None:
    """SIGTERM keeps its default handler, and ends the program at once; what is queued is lost."""
    receiver.gate.clear()
    program = start(f"import signal\nprint(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, flush=True){PLAIN}")
    _terminate(program, receiver)
    ended = program.ended()
    assert (ended.code, ended.out, ended.err, len(receiver.steps)) == (-signal.SIGTERM, ["True"], "", 8)


@pytest.mark.slow
def test_a_receiver_that_hangs(receiver: StepReceiver, start: Start) -> None:
    """What is not delivered within the shutdown timeout is discarded, and the log says so."""
    receiver.gate.clear()
    program = start(f"keep_time_to_record(0.5){PLAIN}", drain_on_sigterm="true", shutdown_timeout=4, **LONG)
    _terminate(program, receiver)
    ended = program.ended()
    assert (ended.code, ended.noise) == (-signal.SIGTERM, [])
    assert "59 more like this: discarded step" in ended.err


@pytest.mark.slow
def test_the_longest_timeout_counts(receiver: StepReceiver, start: Start) -> None:
    """Two hooks may spend the longer one of their shutdown timeouts."""
    receiver.gate.clear()
    program = start(f"longer = StepHookProcessor(shutdown_timeout=30){PLAIN}", drain_on_sigterm="1", shutdown_timeout=1)
    _terminate(program, receiver)
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(2)  # seconds; the shorter timeout would be over
    receiver.gate.set()
    ended = program.ended()
    assert (ended.code, ended.err, receiver.steps) == (-signal.SIGTERM, "", STEPS)


def test_a_second_sigterm(receiver: StepReceiver, start: Start) -> None:
    """The second one ends the program at once, in the middle of the drain."""
    receiver.gate.clear()
    program = start(WATCHED, drain_on_sigterm="true", shutdown_timeout=600, **LONG)
    _terminate(program, receiver)
    assert program.read_line() == "draining"
    program.send_signal(signal.SIGTERM)
    ended = program.ended()
    assert (ended.code, ended.err, len(receiver.steps)) == (-signal.SIGTERM, "", 8)


@pytest.mark.slow
def test_ctrl_c_during_the_drain(receiver: StepReceiver, start: Start) -> None:
    """It ends the program at once, with the status of the SIGTERM."""
    receiver.gate.clear()
    program = start(WATCHED, drain_on_sigterm="true", shutdown_timeout=600, **LONG)
    _terminate(program, receiver)
    assert program.read_line() == "draining"
    program.send_signal(signal.SIGINT)
    ended = program.ended()
    assert (ended.code, len(receiver.steps)) == (-signal.SIGTERM, 8)


@pytest.mark.slow
def test_a_hook_that_was_garbage_collected(receiver: StepReceiver, start: Start) -> None:
    """Its steps are delivered, too."""
    receiver.gate.clear()
    program = start(
        """
        import gc, measured, signal
        from opentelemetry.sdk.trace import TracerProvider
        own = TracerProvider(shutdown_on_exit=False)
        own.add_span_processor(StepHookProcessor())
        for number in range(60):
            end_step(f"step-{number}", own.get_tracer("tests"))
        del own
        gc.collect()
        while True:
            threading.Event().wait(0.1)
        """,
        **DRAINING,
    )
    _terminate(program, receiver)
    receiver.gate.set()
    ended = program.ended()
    assert (ended.code, ended.err, receiver.steps) == (-signal.SIGTERM, "", STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("count", [60, 0])
def test_too_many_threads(receiver: StepReceiver, run: Run, count: int) -> None:
    """A program that can start no thread delivers on its main thread, if anything is queued."""
    ended = run(
        f"""
        import measured, signal
        threading.stack_size(1 << 46)  # bytes; so much memory that no thread can start
        end_steps("step", {count})
        signal.raise_signal(signal.SIGTERM)
        """,
        **DRAINING,
    )
    assert (ended.code, ended.err, receiver.steps) == (-signal.SIGTERM, "", STEPS[:count])


@pytest.mark.slow
def test_a_main_thread_that_keeps_a_lock(receiver: StepReceiver, start: Start) -> None:
    """A main thread that is interrupted while it writes to the log's stream keeps nobody from ending the program."""
    receiver.gate.clear()
    program = start(
        """
        import io, logging, measured, signal
        class Pipe(io.RawIOBase):
            def writable(self):
                return True
            def write(self, written):  # its buffer is locked meanwhile
                signal.raise_signal(signal.SIGTERM)
                return len(written)
        stream = io.TextIOWrapper(io.BufferedWriter(Pipe()))
        logging.getLogger().addHandler(logging.StreamHandler(stream))
        end_steps("step", 3)
        wait_for_test()
        stream.write("from the main thread")
        stream.flush()
        """,
        drain_on_sigterm="true",
        shutdown_timeout=2,
        **LONG,
    )
    receiver.wait_for(3)
    program.go_on()
    assert program.ended().code == -signal.SIGTERM


# Processes


@pytest.mark.slow
def test_a_forked_child(receiver: StepReceiver, start: Start) -> None:
    """It delivers its own steps before SIGTERM ends it; what is queued in the parent is sent once, by the parent."""
    receiver.gate.clear()
    program = start(
        """
        import measured, signal
        def in_child():
            end_steps("child", 2)
            signal.raise_signal(signal.SIGTERM)
        end_steps("parent", 12)
        wait_for_test()
        fork(in_child)
        """,
        concurrency=4,
        **DRAINING,
    )
    receiver.wait_for(4)
    program.go_on()
    receiver.wait_for(6)
    receiver.gate.set()
    ended = program.ended()
    assert (ended.code, ended.out, ended.noise) == (0, [str(-signal.SIGTERM)], [])
    assert receiver.steps == sorted([f"parent-{number}" for number in range(12)] + ["child-0", "child-1"])
    assert receiver.connections_of("parent").isdisjoint(receiver.connections_of("child"))


@pytest.fixture
def process_1(receiver: StepReceiver) -> Iterator[tuple[Program, int]]:
    """`WATCHED` as process 1 of a container, and its process id outside of it; the receiver has its first steps."""
    receiver.gate.clear()
    # Without a /proc of its own, it sees the process ids of outside there.
    ids = "import os, threading; print(os.getpid(), os.readlink('/proc/self'), flush=True)"
    settings = {"WEBHOOK": receiver.url, "DRAIN_ON_SIGTERM": "true", "SHUTDOWN_TIMEOUT": "30"}  # seconds
    variables = {f"STEP_COMPLETE_{name}": value for name, value in settings.items()}
    program = Program(*PROCESS_1, sys.executable, "-c", f"{ids}\nfrom application import *\n{WATCHED}", **variables)
    try:
        inside, outside = program.read_line().split()
        assert inside == "1"
        receiver.wait_for(8)
        yield program, int(outside)
    finally:
        program.kill_group()


needs_namespaces = pytest.mark.skipif(not has_process_1(), reason="needs unshare, and a kernel that permits it")


@needs_namespaces
def test_process_1(receiver: StepReceiver, process_1: tuple[Program, int]) -> None:
    """The kernel ends no process 1 by a signal without a handler: it delivers, and exits with 143."""
    program, pid = process_1
    os.kill(pid, signal.SIGTERM)
    receiver.gate.set()
    ended = program.ended()
    assert (ended.code, ended.err, receiver.steps) == (143, "", STEPS)


@needs_namespaces
@pytest.mark.slow
def test_a_second_sigterm_for_process_1(receiver: StepReceiver, process_1: tuple[Program, int]) -> None:
    """The second one ends it at once, in the middle of the drain."""
    program, pid = process_1
    os.kill(pid, signal.SIGTERM)
    assert program.read_line() == "draining"
    os.kill(pid, signal.SIGTERM)
    ended = program.ended()
    assert (ended.code, ended.err, len(receiver.steps)) == (143, "", 8)
