"""Forks of a process that has used Temporal's SDK: a second runtime of it would crash the child, or let it hang.

No server is needed: the runtime is there once a connection is tried.
"""

import re
from pathlib import Path

import pytest
from processes import Ended, Run
from storing import step_ids
from test_fork_unseen import UNSEEN

_REFUSED = "this process was forked from one that had used Temporal, whose SDK does not work across forks"
_MANY_CORES = "16"  # threads of a runtime: it has one for each core, and the more there are, the surer is the crash


@pytest.fixture
def forked(run: Run, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a program whose engine is a Temporal server that is not there."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", f"127.0.0.1:{closed_port}")
    monkeypatch.setenv("TOKIO_WORKER_THREADS", _MANY_CORES)
    return lambda program, **settings: run(program, engine="temporal", **settings)


def _discarded(ended: Ended) -> list[str]:
    """The steps of children that were discarded because of the fork."""
    return re.findall(r"^discarded step (\S+): ForkedError ", ended.err, re.MULTILINE)


@pytest.mark.slow
def test_a_child_discards_its_steps(forked: Run) -> None:
    """It says why, once, and keeps its exit code."""
    ended = forked("deliver('parent')\nfork(lambda: [deliver('child-0'), end_step('child-1')])", give_up_after=0.2)
    assert (ended.code, ended.out, ended.noise) == (0, ["3"], [])
    assert _discarded(ended) == ["child-0"]
    assert "1 more like this: discarded step" in ended.err
    assert ended.err.count(_REFUSED) == 1


@pytest.mark.slow
def test_a_child_of_an_application_that_has_used_temporal(forked: Run) -> None:
    """It discards its steps, too, if the runtime is the application's own."""
    # With os._exit, as multiprocessing does: the SDK waits for threads when an interpreter ends, which are not there.
    ended = forked("""
        import temporalio.runtime
        temporalio.runtime.Runtime.default()
        fork(lambda: [deliver("child-0"), os._exit(3)])
        os._exit(0)
    """)
    assert (ended.code, ended.out, ended.noise) == (0, ["3"], [])
    assert _discarded(ended) == ["child-0"]


@pytest.mark.slow
def test_a_child_whose_fork_python_does_not_see(forked: Run) -> None:
    """The process id shows it, as for uWSGI's workers."""
    ended = forked(f"{UNSEEN}deliver('parent')\nended(fork_unseen(lambda: end_step('child-0')))", give_up_after=0.2)
    assert (ended.code, ended.out, ended.noise) == (0, ["3"], [])
    assert _discarded(ended) == ["child-0"]


@pytest.mark.slow
def test_a_grandchild(forked: Run) -> None:
    """A child that may not use the SDK has children that may not."""
    ended = forked("deliver('parent')\nfork(lambda: fork(lambda: end_step('child-0')))", give_up_after=0.2)
    assert (ended.code, ended.out, ended.noise) == (0, ["3", "3"], [])
    assert _discarded(ended) == ["child-0"]


@pytest.mark.slow
def test_an_outbox_keeps_the_steps_of_a_child(forked: Run, tmp_path: Path) -> None:
    """The child leaves its steps to other processes, however many there are, and ends at once."""
    path = tmp_path / "steps.db"
    program = """
    from otel_step_hook.temporal import client
    def in_child():
        has_logged = print_log()
        end_steps("child", 20)
        has_logged.wait()
        for number in range(24):  # more steps than the journal and the memory have room for
            end_steps(f"more-{number}", 500)
            while len(hook._workers[0]._runner().store):
                time.sleep(0.01)  # no event says that the outbox has them
    deliver("parent")
    client.runtime()  # a flush with an outbox waits for no attempt, which would make it
    fork(in_child)
    """
    ended = forked(program, outbox=path, shutdown_timeout=600)
    assert ended.code == 0
    assert ended.out[-1] == "3"
    assert [line for line in ended.out[:-1] if not line.startswith(_REFUSED)] == []
    more = [f"more-{number}-{step}" for number in range(24) for step in range(500)]
    assert sorted(step_ids(path)) == sorted(["parent", *(f"child-{number}" for number in range(20)), *more])


@pytest.mark.slow
def test_a_child_whose_outbox_cannot_be_used(forked: Run, tmp_path: Path) -> None:
    """It tries each step once at most, and leaves them in its journal to the next process."""
    path = tmp_path / "notes.db"
    path.write_text("the notes of somebody\n" * 50)
    program = """
    from otel_step_hook.temporal import client
    made, tries = client.runtime, []
    def runtime():
        tries.append(1)
        return made()
    def in_child():
        client.runtime = runtime
        has_logged = print_log()
        end_steps("child", 20)
        has_logged.wait()
        time.sleep(1)  # seconds; what would try again and again does it meanwhile
        print("tries", len(tries), flush=True)
    deliver("parent")
    made()  # a flush with an outbox waits for no attempt, which would make it
    fork(in_child)
    """
    ended = forked(program, outbox=path, shutdown_timeout=5)
    (tries,) = [int(line.split()[1]) for line in ended.out if line.startswith("tries ")]
    assert (ended.code, ended.out[-1]) == (0, "3")
    assert 1 <= tries <= 20
    assert list(tmp_path.glob("notes.db.*.journal")) != []
