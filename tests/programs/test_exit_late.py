"""Steps that end after the hook's exit handler has run: they are dropped, and the log counts each of them."""

import sys

import pytest
from processes import Program, Run, StepReceiver, metric_points

DROPPED = "dropped a step (shutdown, endpoint default): the step ended after shutdown()"

# Exit handlers run in the reverse order of their registration: this one runs after that of the hook below it.
EARLY_HANDLER = """
import atexit
tracers = []
atexit.register(lambda: [end_step("late", *tracers) for _ in range(3)])
tracers.append(provider_with(StepHookProcessor()).get_tracer("tests"))
"""
FINALISER = """
class Late:
    def __del__(self):
        end_step("late")
"""
LATE = {
    "an exit handler": EARLY_HANDLER,
    "finalisers": f"{FINALISER}late = [Late(), Late(), Late()]",
    "finalisers of a cycle": f"{FINALISER}late = [Late(), Late(), Late()]; late.append(late)",
    "finalisers of another module": f"{FINALISER}import application; application.late = [Late(), Late(), Late()]",
    "both": f"{EARLY_HANDLER}{FINALISER}late = Late(), Late()",
}


def _count(lines: list[str]) -> int:
    """How many dropped steps the *lines* of the log count."""
    counts = [line.removesuffix(DROPPED).removesuffix(" more like this: ") or "1" for line in lines]
    return sum(int(count) for count in counts)


@pytest.mark.slow
@pytest.mark.parametrize("end", LATE)
def test_late_steps_are_counted(receiver: StepReceiver, run: Run, end: str) -> None:
    """Steps that end in an exit handler that runs late, or in finalisers of the interpreter's end, are all counted."""
    ended = run(f"end_step('step-0')\n{LATE[end]}")
    assert (ended.code, ended.noise, receiver.steps) == (0, [], ["step-0"])
    assert _count(ended.err.splitlines()) == (5 if end == "both" else 3)


def test_many_late_steps_are_few_lines(receiver: StepReceiver, run: Run) -> None:
    """Any number of steps in a late exit handler is two lines of the log, by the application's own logging handler."""
    ended = run(f"""
        import logging
        logging.basicConfig(format="%(levelname)s %(threadName)s %(message)s", stream=sys.stdout)
        {EARLY_HANDLER.replace(chr(10), chr(10) + " " * 8).replace("range(3)", "range(300)")}
    """)
    assert (ended.code, ended.err, receiver.steps) == (0, "", [])
    assert [line.removeprefix("ERROR MainThread ") for line in ended.out] == [DROPPED, f"299 more like this: {DROPPED}"]


@pytest.mark.slow
def test_late_steps_are_in_the_metrics(run: Run) -> None:
    """The metric counts steps of a late exit handler."""
    ended = run(f"""
        import atexit
        print_metrics = count_metrics()
        atexit.register(lambda: print_metrics())
        {EARLY_HANDLER.replace(chr(10), chr(10) + " " * 8)}
    """)
    dropped = metric_points(ended.out[-1])["step_hook.dropped {event}"]
    assert dropped == {"endpoint=default, reason=shutdown": 3}


def test_a_hook_that_is_deleted_last(run: Run) -> None:
    """A hook that `sys` refers to is deleted after all modules that it needs, in silence."""
    ended = run("sys._last = StepHookProcessor()")
    assert (ended.code, ended.err) == (0, "")


@pytest.mark.slow
def test_a_lock_that_nobody_releases(receiver: StepReceiver) -> None:
    """The exit does not wait for a logging handler whose lock a daemon thread holds that Python has stopped."""
    # The last of all exit handlers, since it is registered before logging is imported: the thread takes the lock after
    # logging's own exit handler has closed all handlers.
    program = f"""
import atexit, threading
may_take = threading.Event()
atexit.register(lambda: (may_take.set(), thread.join()))
from application import *
import logging
handler = logging.StreamHandler()
logging.getLogger().addHandler(handler)
def hold():
    may_take.wait()
    handler.acquire()  # and ends: Python keeps frames of a thread that it stops, and with them all that is named here
thread = threading.Thread(target=hold, daemon=True)
thread.start()
{FINALISER}
late = Late()
"""
    ended = Program(sys.executable, "-c", program, STEP_COMPLETE_WEBHOOK=receiver.url).ended()
    assert (ended.code, ended.err) == (0, "")
