"""The worker without work: its thread ends after a while, and starts again with the next step or flush."""

import functools
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from delivering import DELIVERED, WAIT, NewRig, Rig, Script, event, failed, threads, wait_until
from support import log_lines

from otel_step_hook.delivery import dispatch
from otel_step_hook.delivery import log as log_module
from otel_step_hook.testing import ScriptedReceiver

_DESCRIPTORS = Path("/proc/self/fd")


def _descriptors() -> int:
    return len(list(_DESCRIPTORS.iterdir())) if _DESCRIPTORS.exists() else 0


@pytest.fixture
def _ends_when_idle(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the loop end as soon as it is idle, and switches threads all the time, so that races occur."""
    monkeypatch.setattr(dispatch, "IDLE", 0.0)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # seconds
    yield
    sys.setswitchinterval(usual)


def test_an_idle_thread_ends(rigged: NewRig, step_receiver: ScriptedReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle thread closes its connections, leaves no descriptor, and starts again with the next step."""
    monkeypatch.setattr(dispatch, "IDLE", 0.05)  # seconds, instead of half a minute
    rig = rigged(webhook=step_receiver.url)
    gc.collect()
    before = _descriptors()
    for number in range(3):
        rig.deliver(event(f"step-{number}"))
        wait_until(lambda: not threads())
        wait_until(lambda: gc.collect() >= 0 and _descriptors() <= before)  # the receiver has to close its end, too
    assert [webhook.step_id for webhook in step_receiver.received] == ["step-0", "step-1", "step-2"]


def test_a_thread_does_not_end_before_its_counts_are_logged(
    rigged: NewRig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A thread without work stays until the counts of repeated lines are due, and logs them."""
    monkeypatch.setattr(dispatch, "IDLE", 0.05)  # seconds; see above
    monkeypatch.setattr(log_module, "EVERY", 1.0)  # seconds; longer than IDLE, instead of a minute
    together = threading.Event()
    script = Script(*[together] * 3, failed(), failed(), failed(), DELIVERED)
    rig = rigged(script, concurrency=3)
    rig.submit(event(), event(), event())
    script.wait_for(3)
    together.set()
    assert rig.worker.flush(WAIT)
    wait_until(lambda: not threads())
    first, rest = log_lines(caplog)
    assert first.startswith("WARNING the receiver http://receiver.test answered 503")
    assert rest.startswith("WARNING 2 more like this: the receiver http://receiver.test answered 503")


@pytest.mark.usefixtures("_ends_when_idle")
def test_each_step_starts_a_loop(rigged: NewRig) -> None:
    """A step that comes while a loop is about to end is delivered by the next loop, without a later step."""
    script = Script()
    rig = rigged(script)
    steps = [event() for _ in range(600)]
    while steps:
        rig.submit(steps.pop())
        for _ in range(len(steps) % 100 * 100):  # the loop ends at about the end of this
            pass
        rig.submit(steps.pop())
        script.wait_for(2)


@pytest.mark.usefixtures("_ends_when_idle")
def test_no_step_and_no_flush_is_lost_between_two_loops(rigged: NewRig) -> None:
    """Steps are delivered and flushes return while loops end and start all the time."""
    rig = rigged(Script(), max_queue_size=100_000)
    flushed: list[bool] = []

    def work() -> None:
        for _ in range(40):
            rig.submit()
            flushed.append(rig.worker.flush(WAIT))

    _all_at_once(*[work] * 4)
    assert flushed == [True] * 160
    assert len(rig.results) == 160


@pytest.mark.usefixtures("_ends_when_idle")
def test_concurrent_shutdowns_wait_for_every_step(rigged: NewRig) -> None:
    """Each of several shutdowns returns when every step is delivered, whatever the loop is about to do."""
    left: list[int] = []

    def shut_down(rig: Rig) -> None:
        rig.worker.shutdown(WAIT)
        left.append(3 - len(rig.results))

    for number in range(60):
        rig = rigged(Script())
        rig.submit(event(), event())
        for _ in range(number * 100):  # the loop ends at about the end of this
            pass
        rig.submit()
        _all_at_once(*[functools.partial(shut_down, rig)] * 3)
    assert left == [0] * 180
    wait_until(lambda: not threads())


def test_shutdowns_share_their_limit(rigged: NewRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the receiver does not answer, each of them returns at the limit, with every step discarded."""
    monkeypatch.setattr(dispatch, "_STOP_MARGIN", 0.9)  # share of the limit; a tenth is short on a busy machine
    never = threading.Event()
    script = Script(never, never)
    rig = rigged(script)
    rig.submit(event(), event())
    script.wait_for(2)
    left: list[int] = []

    def shut_down() -> None:
        rig.worker.shutdown(3.0)
        left.append(2 - len(rig.results))

    _all_at_once(shut_down, shut_down)
    assert left == [0, 0]


def _all_at_once(*calls: Callable[[], object]) -> None:
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> None:
        barrier.wait(WAIT)
        call()

    started = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(WAIT)
    assert not any(thread.is_alive() for thread in started)
