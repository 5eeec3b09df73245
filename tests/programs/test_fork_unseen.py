"""Forks that Python does not see, such as uWSGI's: a child is recognised by its process id."""

import pytest
from processes import Run, Start, StepReceiver

# Like `application.fork`, but with fork() of the C library, which runs no hooks of `os.register_at_fork`.
UNSEEN = """
import ctypes, time
def fork_unseen(in_child):
    # A thread that waits for the interpreter's lock at such a fork has the child wait for it, for ever: that is
    # CPython's, and the server's to avoid. Nothing says when the thread has gone to sleep. In pieces: a process that is
    # stopped meanwhile loses one of them.
    for _ in range(10):
        time.sleep(0.03)
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:
        in_child()
        sys.exit(3)
    return pid
def ended(pid):
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def test_parent_and_child_deliver(receiver: StepReceiver, run: Run) -> None:
    """The child delivers its steps over its own connection; the parent still uses the one that it had."""
    ended = run(
        UNSEEN
        + """
deliver("parent-0")
ended(fork_unseen(lambda: end_steps("child", 2)))
deliver("parent-1")
end_step("parent-2")
"""
    )
    assert (ended.code, ended.out, ended.noise) == (0, ["3"], [])
    assert receiver.steps == ["child-0", "child-1", "parent-0", "parent-1", "parent-2"]
    assert len(receiver.connections_of("parent")) == 1
    assert receiver.connections_of("parent").isdisjoint(receiver.connections_of("child"))


def test_fork_with_deliveries_in_flight(receiver: StepReceiver, start: Start) -> None:
    """The parent sends its deliveries once; the child has nothing to flush, and exits at once."""
    receiver.gate.clear()
    program = start(
        UNSEEN
        + """
def in_child():
    print(hook.force_flush(0), flush=True)
    provider.shutdown()
end_steps("parent", 12)
wait_for_test()
ended(fork_unseen(in_child))
wait_for_test()
end_step("parent-last")
""",
        concurrency=4,
        shutdown_timeout=600,
    )
    receiver.wait_for(4)
    program.go_on()
    assert [program.read_line(), program.read_line()] == ["True", "3"]
    assert len(receiver.steps) == 4
    receiver.gate.set()
    program.go_on()
    ended = program.ended()
    assert (ended.code, ended.noise) == (0, [])
    assert receiver.steps == sorted([*(f"parent-{number}" for number in range(12)), "parent-last"])


@pytest.mark.slow
def test_flush_and_shutdown_of_the_child_end_in_time(receiver: StepReceiver, run: Run) -> None:
    """With a receiver that does not answer, flush and shutdown of the child return within their timeouts."""
    receiver.gate.clear()
    ended = run(
        UNSEEN
        + """
def in_child():
    end_step("child")
    print(hook.force_flush(200), flush=True)  # milliseconds
keep_time_to_record(0.75)
end_step("parent")
child = fork_unseen(in_child)
ended(child)
""",
        shutdown_timeout=4,
        timeout=600,
        give_up_after=600,
    )
    assert (ended.code, ended.out, ended.noise) == (0, ["False", "3"], [])
    assert ended.err.count("discarded step child: the process ended before it was delivered") == 1
    assert ended.err.count("discarded step parent: the process ended before it was delivered") == 1


@pytest.mark.slow
def test_grandchildren(receiver: StepReceiver, run: Run) -> None:
    """Each of three generations delivers, with both kinds of forks in between."""
    ended = run(
        UNSEEN
        + """
def in_child():
    deliver("child-0")
    fork(lambda: deliver("grandchild-0"))
    ended(fork_unseen(lambda: end_step("grandchild-1")))
    end_step("child-1")
deliver("parent-0")
ended(fork_unseen(in_child))
end_step("parent-1")
"""
    )
    assert (ended.code, ended.out, ended.noise) == (0, ["3", "3", "3"], [])
    assert receiver.steps == ["child-0", "child-1", "grandchild-0", "grandchild-1", "parent-0", "parent-1"]
