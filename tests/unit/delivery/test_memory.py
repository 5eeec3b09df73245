"""The store in memory: a bounded queue that may be filled from anywhere."""

import signal
import threading
import time
from types import FrameType

import pytest
from delivering import event
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from opentelemetry.sdk.resources import Resource

from otel_step_hook.delivery.memory import MemoryStore, Submission
from otel_step_hook.delivery.telemetry import Pipeline

MAX_SIZE = 4


def submission(step_id: str = "step-1") -> Submission:
    """An event on its way."""
    return Submission(event(step_id), Pipeline(None, Resource({})), time.monotonic())


class _Model(RuleBasedStateMachine):
    """The store against two lists: what waits, and how many have been taken and have had no last word."""

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore(MAX_SIZE)
        self.waiting: list[Submission] = []
        self.taken = 0

    @rule()
    def put(self) -> None:
        new = submission()
        is_taken = self.store.put(new)
        assert is_taken == (len(self.waiting) + self.taken < MAX_SIZE)
        if is_taken:
            self.waiting.append(new)

    @rule()
    def take(self) -> None:
        expected = self.waiting.pop(0) if self.waiting else None
        self.taken += expected is not None
        assert self.store.take() is expected

    @precondition(lambda self: self.taken)
    @rule()
    def release(self) -> None:
        self.taken -= 1
        self.store.release()

    @invariant()
    def counts(self) -> None:
        assert self.store.pending == len(self.waiting) + self.taken
        assert self.store.waiting == len(self.waiting)


TestMemoryStore = _Model.TestCase
TestMemoryStore.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


def test_the_bound_holds_for_many_threads() -> None:
    """However many threads put at the same moment, exactly as many events are taken as there is room for."""
    store = MemoryStore(1000)
    taken: list[bool] = []
    start = threading.Barrier(8)

    def fill() -> None:
        start.wait()
        taken.extend(store.put(submission()) for _ in range(200))

    threads = [threading.Thread(target=fill) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (taken.count(True), taken.count(False)) == (1000, 600)
    assert (store.pending, store.waiting) == (1000, 1000)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no such signals")
def test_a_signal_handler_may_put_at_any_moment() -> None:
    """A handler that interrupts a put in the same thread, again and again, neither deadlocks nor loses an event."""
    count = 300_000
    store, one = MemoryStore(2 * count), submission()
    in_handler: list[bool] = []  # a counter would lose counts: the handler interrupts itself, too

    def interrupt(_: int, __: FrameType | None) -> None:
        in_handler.append(store.put(one))

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
    try:
        put = [store.put(one) for _ in range(count)]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert in_handler
    assert all(put + in_handler)
    assert store.waiting == store.pending == count + len(in_handler)
