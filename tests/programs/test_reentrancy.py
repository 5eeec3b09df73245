"""Steps that end at any moment, on any thread: nothing deadlocks, and each is delivered, or counted as dropped."""

import pytest
from processes import Ended, Run, StepReceiver, metric_points

from otel_step_hook.testing import ScriptedReceiver


def _ended_and_dropped(ended: Ended) -> tuple[int, int]:
    *_, count, metrics = ended.out
    return int(count), int(sum(metric_points(metrics).get("step_hook.dropped {event}", {}).values()))


@pytest.mark.parametrize(
    "where",
    [
        "in_signal_handler",
        pytest.param("first_in_signal_handler", marks=pytest.mark.slow),
        pytest.param("in_finaliser", marks=pytest.mark.slow),
        pytest.param("in_many_threads", marks=pytest.mark.slow),
    ],
)
def test_each_step_is_accounted_for(receiver: StepReceiver, run: Run, where: str) -> None:
    """Each step that ends in a signal handler, a finaliser or one of many threads is delivered or counted."""
    ended = run("reentrant", where, max_queue_size=300, shutdown_timeout=30)
    assert (ended.code, ended.noise) == (0, [])
    count, dropped = _ended_and_dropped(ended)
    assert len(receiver.steps) == len(set(receiver.steps))
    assert len(receiver.steps) + dropped == count
    assert count >= 40
    assert len(ended.err.splitlines()) <= 2  # the first dropped step, and the count of the others


@pytest.mark.slow
def test_misuse_by_a_log_handler(step_receiver: ScriptedReceiver, run: Run) -> None:
    """A log handler that ends steps, flushes, shuts down and exits on the worker thread does not stop that thread."""
    step_receiver.answers(503)
    ended = run("reentrant", "in_log_handler", webhook=step_receiver.url, initial_backoff=0.01)
    assert (ended.code, ended.err) == (0, "")
    count, dropped = _ended_and_dropped(ended)
    assert dropped >= 1  # the steps that ended after the handler had shut down
    assert len({received.step_id for received in step_receiver.received}) + dropped == count


@pytest.mark.slow
def test_misuse_by_an_exporter(receiver: StepReceiver, run: Run) -> None:
    """With an exporter that flushes and exits on the worker thread, every step is delivered."""
    ended = run("reentrant", "in_exporter")
    assert (ended.code, len(receiver.steps)) == (0, 20)
    assert _ended_and_dropped(ended) == (20, 0)


@pytest.mark.slow
def test_sigterm_at_any_moment(receiver: StepReceiver, run: Run) -> None:
    """At whatever point of the main thread's work SIGTERM comes, each step that has ended is delivered."""
    ended = run(
        """
        import measured, signal
        reading, writing = os.pipe()
        def in_child(number):
            os.write(writing, b"!")
            while True:
                end_step(f"{number}")
                os.write(writing, b".")
        for number in range(40):
            pid = os.fork()
            if pid == 0:
                in_child(number)
            assert os.read(reading, 1) == b"!"
            compute(number * 0.0003)  # seconds; the first deliveries take about 10 ms
            os.kill(pid, signal.SIGTERM)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.write(writing, b"!")
            print(status, os.read(reading, 60_000).count(b"."))
        """,
        drain_on_sigterm="true",
        shutdown_timeout=30,
        max_queue_size=100_000,
    )
    assert (ended.code, ended.noise) == (0, [])
    results = [(int(status), int(count)) for status, count in map(str.split, ended.out)]
    assert [status for status, _ in results] == [-15] * 40
    lost = [count - receiver.steps.count(str(number)) for number, (_, count) in enumerate(results)]
    # The signal may come after a step has ended, and before the child counts it.
    assert set(lost) <= {0, -1}
