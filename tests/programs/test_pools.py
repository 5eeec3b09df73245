"""Children of pools: many are ended by `os._exit`, which passes by atexit. Their steps are delivered all the same.

The receiver refuses each step at first, so that a child has undelivered steps when its work is done.
"""

import signal
from pathlib import Path

import pytest
from processes import LIMIT, Ended, Run, Start, StepReceiver

STEPS = [f"step-{number}" for number in range(4)]
PATIENT = {"shutdown_timeout": LIMIT, "give_up_after": LIMIT, "initial_backoff": 2}


@pytest.fixture(autouse=True)
def refuses_first(receiver: StepReceiver) -> None:
    """Answer 503 to the first attempt of each step."""
    receiver.refuses_first = True


def _assert_delivered(receiver: StepReceiver, ended: Ended) -> None:
    assert (ended.code, ended.noise, receiver.steps) == (0, [], sorted(STEPS * 2)), ended.err


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--max-tasks-per-child", "2"), ()], ids=["max tasks", ""])
def test_celery(
    receiver: StepReceiver, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    """Children of Celery's prefork pool deliver when they have done their number of tasks, and when SIGTERM comes."""
    monkeypatch.setenv("FOLDER", str(tmp_path))
    monkeypatch.setenv("TASKS", str(len(STEPS)))
    program = start("celery", "--app", "queued", "worker", "--concurrency", "2", *options, **PATIENT)
    # Children that have been replaced are killed together with the thread of the pool that has forked them.
    receiver.wait_for(len(STEPS) * (2 if options else 1))
    program.send_signal(signal.SIGTERM)
    _assert_delivered(receiver, program.ended())


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--use-spawn",)], ids=["", "spawn"])
def test_dramatiq(receiver: StepReceiver, start: Start, options: tuple[str, ...]) -> None:
    """Dramatiq's processes deliver when SIGTERM comes."""
    program = start("dramatiq", "acting", "--processes", "1", "--threads", "2", *options, **PATIENT)
    receiver.wait_for(len(STEPS))
    program.send_signal(signal.SIGTERM)
    _assert_delivered(receiver, program.ended())


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
