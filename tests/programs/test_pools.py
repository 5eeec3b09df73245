"""Children of pools: many are ended by `os._exit`, which passes by atexit. Their steps are delivered all the same.

The receiver refuses each step at first, so that a child has undelivered steps when its work is done.
"""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import LIMIT, Ended, Program, Run, Start, StepReceiver

STEPS = [f"step-{number}" for number in range(4)]
IN_ONE_PROCESS = ("gevent", "eventlet", "threads", "solo")  # Celery's pools that fork no children
PATIENT = {"shutdown_timeout": LIMIT, "give_up_after": LIMIT, "initial_backoff": 2}


@pytest.fixture(autouse=True)
def refuses_first(receiver: StepReceiver) -> None:
    """Answer 503 to the first attempt of each step."""
    receiver.refuses_first = True


def _assert_delivered(receiver: StepReceiver, ended: Ended) -> None:
    assert (ended.code, ended.noise, receiver.steps) == (0, [], sorted(STEPS * 2)), ended.err


CELERY_POOLS = ("--pool prefork --max-tasks-per-child 2", *(f"--pool {name}" for name in ("prefork", *IN_ONE_PROCESS)))


@pytest.fixture
def celery(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Program]:
    """Start a worker of Celery with these options, which sends itself the tasks."""
    monkeypatch.setenv("FOLDER", str(tmp_path))
    monkeypatch.setenv("TASKS", str(len(STEPS)))
    command = ("celery", "--app", "queued", "worker", "--concurrency", "2")
    return lambda options: start(*command, *options.split(), **PATIENT)


@pytest.mark.slow
@pytest.mark.parametrize("options", CELERY_POOLS)
def test_celery(receiver: StepReceiver, celery: Callable[[str], Program], options: str) -> None:
    """A worker of Celery delivers when SIGTERM comes, and a child when it has done its number of tasks."""
    program = celery(options)
    # Children that have been replaced are killed together with the thread of the pool that has forked them.
    receiver.wait_for(len(STEPS) * (2 if "max-tasks" in options else 1))
    program.send_signal(signal.SIGTERM)
    _assert_delivered(receiver, program.ended())


@pytest.mark.slow
# Without the hook, too, eventlet's worker does not end at SIGQUIT, which asks for a cold stop.
@pytest.mark.parametrize("pool", ["prefork", *(name for name in IN_ONE_PROCESS if name != "eventlet")])
def test_celery_that_stops_cold(receiver: StepReceiver, celery: Callable[[str], Program], pool: str) -> None:
    """It delivers, too, when it is asked not to wait for its tasks."""
    program = celery(f"--pool {pool}")
    receiver.wait_for(len(STEPS))
    assert program.stdout is not None
    assert "done\n" in program.stdout  # lines until that: Celery kills tasks that it has not done, or fails
    program.send_signal(signal.SIGQUIT)
    _assert_delivered(receiver, program.ended())


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--use-spawn",)], ids=["", "spawn"])
def test_dramatiq(receiver: StepReceiver, start: Start, options: tuple[str, ...]) -> None:
    """Dramatiq's processes deliver when SIGTERM comes."""
    program = start("dramatiq", "acting", "--processes", "1", "--threads", "2", *options, **PATIENT)
    receiver.wait_for(len(STEPS))
    program.send_signal(signal.SIGTERM)
    _assert_delivered(receiver, program.ended())


@pytest.mark.slow
def test_dramatiq_that_discards(receiver: StepReceiver, start: Start) -> None:
    """What it discards is in its stderr: Dramatiq closes the log before it ends its processes."""
    receiver.gate.clear()
    limits = {"shutdown_timeout": 2, "timeout": 600, "give_up_after": 600}  # seconds; the first ends it in time
    program = start("dramatiq", "acting", "--processes", "1", "--threads", "2", **limits)
    receiver.wait_for(len(STEPS))
    program.send_signal(signal.SIGTERM)
    ended = program.ended()
    assert (ended.code, ended.noise) == (0, [])
    assert "\n3 more like this: discarded step" in ended.err


POOLS = {
    "billiard process": """
        import billiard
        children = [billiard.Process(target=end_step, args=(step,)) for step in steps]
        for child in children:
            child.start()
        for child in children:
            child.join()
    """,
    "billiard pool": """
        import billiard
        pool = billiard.Pool(2, maxtasksperchild=2)
        pool.map(end_step, steps, 1)
        pool.close()
        pool.join()
    """,
    "multiprocessing pool": """
        import multiprocessing
        pool = multiprocessing.Pool(2, maxtasksperchild=2)
        pool.map(end_step, steps, 1)
        pool.close()
        pool.join()
    """,
    "loky": """
        from loky import get_reusable_executor
        list(get_reusable_executor(2).map(end_step, steps))
    """,
    "joblib": """
        from joblib import Parallel, delayed
        Parallel(2)(delayed(end_step)(step) for step in steps)
    """,
    # The horse is forked, runs the job and leaves as with a real Redis; its result stays in its copy of this one.
    "RQ": """
        import fakeredis, rq
        redis = fakeredis.FakeRedis()
        redis.set_response_callback("CLIENT INFO", lambda *_, **__: {"addr": "unknown"})  # fakeredis' is malformed
        queue = rq.Queue(connection=redis)
        for step in steps:
            queue.enqueue("application.end_step", step)
        rq.Worker([queue], connection=redis).work(burst=True, logging_level="ERROR")
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_pools(receiver: StepReceiver, run: Run, pool: str) -> None:
    """The children of each pool deliver when they end."""
    _assert_delivered(receiver, run(f"steps = {STEPS}\n" + POOLS[pool].replace("\n        ", "\n"), **PATIENT))


TERMINATED = {
    "multiprocessing pool": """
        import multiprocessing
        with multiprocessing.Pool(2) as pool:
            pool.map(end_step, steps, 1)
    """,
    "multiprocessing process": """
        import multiprocessing
        def work(ended):
            for step in steps:
                end_step(step)
            ended.set()
            while True:  # a signal that arrives just before a wait begins is handled when the wait ends
                threading.Event().wait(0.1)
        ended = multiprocessing.Event()
        child = multiprocessing.Process(target=work, args=(ended,))
        child.start()
        ended.wait()
        child.terminate()
        child.join()
    """,
    "joblib": """
        from joblib import Parallel, delayed
        Parallel(2, backend="multiprocessing")(delayed(end_step)(step) for step in steps)
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("pool", TERMINATED)
def test_children_that_are_terminated(receiver: StepReceiver, run: Run, pool: str) -> None:
    """With ``STEP_COMPLETE_DRAIN_ON_SIGTERM`` children deliver before the SIGTERM of their pool ends them."""
    program = f"steps = {STEPS}\n" + TERMINATED[pool].replace("\n        ", "\n")
    _assert_delivered(receiver, run(program, drain_on_sigterm="true", **PATIENT))


@pytest.mark.slow
def test_a_process_that_is_no_child_is_left_alone(receiver: StepReceiver, run: Run) -> None:
    """Where the libraries are imported, and this process is not a child of one, nothing of theirs is changed."""
    receiver.refuses_first = False
    ended = run("""
        del sys.modules["click"]  # Celery needs it
        import billiard.pool, celery.signals, multiprocessing.util, rq.worker
        def what_could_change():
            finalizers = list(multiprocessing.util._finalizer_registry)
            return os._exit, finalizers, list(celery.signals.worker_process_shutdown.receivers)
        before = what_could_change()
        deliver("step-0")
        sys.exit(0 if what_could_change() == before else 1)
    """)
    assert (ended.code, ended.err, receiver.steps) == (0, "", ["step-0"])
