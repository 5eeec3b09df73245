"""What every store promises: order, due times, marks, leases. A second store is added to `STORES`."""

import dataclasses
import itertools
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
from delivering import event
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from opentelemetry.sdk.resources import Resource

from otel_step_hook.delivery.memory import MemoryStore
from otel_step_hook.delivery.model import Delivery, Pipeline
from otel_step_hook.delivery.outbox import OutboxStore
from otel_step_hook.delivery.outbox_file import OutboxOptions
from otel_step_hook.delivery.store import Store, Stored

MAX_SIZE = 4
PIPELINE = Pipeline(None, Resource({}))


class Clock:
    """A monotonic clock that advances when a test says so, and a wall clock that jumps beside it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.jumped = 0.0

    def __call__(self) -> float:
        return self.now


NewStore = Callable[[int, Clock], Store]


def memory(_: Path, size: int, clock: Clock) -> MemoryStore:
    """A store in memory."""
    return MemoryStore(size, monotonic=clock)


def outbox(directory: Path, size: int, clock: Clock) -> OutboxStore:
    """A store in a file of its own."""
    path = directory / f"{uuid.uuid4().hex}.db"
    options = OutboxOptions(path, "default", frozenset({"default"}), 40.0, 3600.0, 604_800.0, max_rows=size)
    return OutboxStore(options, size, monotonic=clock, now=lambda: 1.7e9 + clock.now + clock.jumped)


@pytest.fixture(params=[memory, outbox])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NewStore]:
    """Makes a store with room for so many events, which goes by the given clock."""
    made: list[Store] = []

    def new(size: int, clock: Clock) -> Store:
        made.append(request.param(tmp_path, size, clock))
        return made[-1]

    yield new
    for store in made:
        store.close()


class Conformance(RuleBasedStateMachine):
    """Compares a store with a plain model: when each event is due, and whether it is leased."""

    new_store: NewStore

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.store = self.new_store(MAX_SIZE, self.clock)
        self.put_ids: list[str] = []
        self.ended_at: dict[str, float] = {}
        self.due: dict[str, float] = {}  # the due time of each step id that is not leased
        self.leased: dict[str, Delivery] = {}
        self.tried: set[str] = set()
        self.marks: dict[int, set[str]] = {}  # the unfinished step ids when the mark was made

    @property
    def unfinished(self) -> set[str]:
        return {*self.due, *self.leased}

    @rule()
    def put(self) -> None:
        is_full = len(self.unfinished) >= MAX_SIZE
        step = event()
        assert (self.store.put(step, PIPELINE) is Stored.FULL) == is_full
        if not is_full:
            self.due[step.step_id] = self.ended_at[step.step_id] = self.clock.now

    @rule(limit=st.integers(0, MAX_SIZE))
    def claim(self, limit: int) -> None:
        ready = [step_id for step_id, due in self.due.items() if due <= self.clock.now]
        claimed = self.store.claim(limit)
        assert len(claimed) == min(limit, len(ready))
        assert {one.event.step_id for one in claimed} <= set(ready)
        self.lease(claimed)

    @rule(age=st.sampled_from([0.0, 5.0, 60.0]))
    def claim_older(self, age: float) -> None:
        old = {step_id for step_id in self.due if self.clock.now - self.ended_at[step_id] >= age}
        claimed = self.store.claim_older(age)
        assert {one.event.step_id for one in claimed} == old
        self.lease(claimed)

    def lease(self, claimed: list[Delivery]) -> None:
        for one in claimed:
            step_id = one.event.step_id
            del self.due[step_id]
            self.leased[step_id] = one
            assert one.attempts == (1 if step_id in self.tried else 0)
            self.tried.add(step_id)
            one.attempts = 1  # dispatch counts attempts, and the store keeps the count

    @precondition(lambda self: self.leased)
    @rule(data=st.data(), delay=st.sampled_from([0.0, 1.0, 30.0]))
    def retry(self, data: st.DataObject, delay: float) -> None:
        step_id = data.draw(st.sampled_from(sorted(self.leased)))
        self.store.retry(self.leased.pop(step_id), delay=delay)
        self.due[step_id] = self.clock.now + delay

    @precondition(lambda self: self.leased)
    @rule()
    def unclaim_all(self) -> None:
        self.store.unclaim(self.leased.values())
        self.due |= dict.fromkeys(self.leased, self.clock.now)
        self.leased.clear()

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        step_id = data.draw(st.sampled_from(sorted(self.leased)))
        self.store.finish(self.leased.pop(step_id), "delivered")

    @rule()
    def mark(self) -> None:
        self.marks[self.store.mark()] = self.unfinished

    @rule(seconds=st.sampled_from([0.5, 1.0, 30.0, 90.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(seconds=st.sampled_from([-3600.0, 3600.0]))
    def wall_clock_jumps(self, seconds: float) -> None:
        self.clock.jumped += seconds

    @invariant()
    def marks_are_flushed_once_their_events_are_finished_or_durable(self) -> None:
        for mark, before in self.marks.items():
            assert self.store.is_flushed(mark) == (self.store.is_durable or before.isdisjoint(self.unfinished))

    @invariant()
    def the_next_due_time_size_and_age_are_known(self) -> None:
        # In this order, as the worker does: a durable store writes what has changed when it is asked.
        first = min(self.due.values(), default=None)
        due = self.store.next_due()
        assert due == (None if first is None else pytest.approx(max(0.0, first - self.clock.now), abs=1e-5))
        assert self.store.counts().waiting == len(self.unfinished)
        oldest = min((self.ended_at[step_id] for step_id in self.unfinished), default=self.clock.now)
        assert self.store.oldest_age() == pytest.approx(self.clock.now - oldest, abs=1e-5)


def test_any_order_of_calls_agrees_with_the_model(new_store: NewStore) -> None:
    """The store agrees with the model after any order of calls, and while the wall clock jumps by an hour."""
    machine = type("Machine", (Conformance,), {"new_store": staticmethod(new_store)})
    run_state_machine_as_test(machine)


def all_of(store: Store) -> list[Delivery]:
    """All deliveries that are due, claimed in as many calls as the store wants."""
    return list(itertools.chain.from_iterable(iter(lambda: store.claim(10_000), [])))


def ids(claimed: list[Delivery]) -> list[str]:
    """The step ids of these deliveries."""
    return [one.event.step_id for one in claimed]


def test_a_claim_is_half_the_oldest_due_and_half_the_newest(new_store: NewStore) -> None:
    """After an outage a receiver gets new events while it catches up, from the oldest on."""
    clock = Clock()
    store = new_store(100, clock)
    for number in range(4):
        store.put(event(f"old-{number}"), PIPELINE)
    for delivery in store.claim(4):
        store.retry(delivery, delay=10.0 + int(delivery.event.step_id[-1]))
    clock.now += 60.0
    for number in range(6):
        store.put(event(f"new-{number}"), PIPELINE)
    assert set(ids(store.claim(4))) == {"old-0", "old-1", "new-5", "new-4"}
    assert set(ids(store.claim(4))) == {"old-2", "old-3", "new-3", "new-2"}
    assert ids(store.claim(4)) == ["new-0", "new-1"]


def test_the_age_of_the_oldest_is_known_at_once(new_store: NewStore) -> None:
    """The age of the oldest event is known before the worker has claimed anything."""
    clock = Clock()
    store = new_store(4, clock)
    assert store.oldest_age() == 0.0
    store.put(event(), PIPELINE)
    clock.now += 100.0
    assert store.oldest_age() == pytest.approx(100.0)


def test_a_burst_is_claimed_in_its_order(new_store: NewStore) -> None:
    """While no event is late, the oldest are claimed first, however few at a time."""
    clock = Clock()
    store = new_store(100, clock)
    for number in range(10):
        store.put(event(f"step-{number}"), PIPELINE)
        clock.now += 0.05
    claimed = [step_id for limit in (1, 2, 3, 4) for step_id in ids(store.claim(limit))]
    assert claimed == [f"step-{number}" for number in range(10)]


def test_a_delivery_keeps_its_state_between_claims(new_store: NewStore) -> None:
    """Each claim gives the same id, event and body, and the attempts and the error type so far."""
    store = new_store(4, Clock())
    step = event("step-1")
    store.put(step, PIPELINE)
    (first,) = store.claim(1)
    first.attempts, first.error_type, first.body = 3, "503", b"{}"
    store.unclaim([first])
    (again,) = store.claim(1)
    assert (again.event, again.pipeline.processor) == (step, None)
    assert again.pipeline.resource.attributes == PIPELINE.resource.attributes
    assert (again.id, again.attempts, again.error_type, again.body) == (first.id, 3, "503", b"{}")


def test_events_after_a_mark_do_not_count_for_it(new_store: NewStore) -> None:
    """A mark is flushed when all events before it are finished, in whatever order they end, or durable."""
    store = new_store(4, Clock())
    store.put(event("one"), PIPELINE)
    store.put(event("two"), PIPELINE)
    mark = store.mark()
    store.put(event("three"), PIPELINE)
    by_id = {one.event.step_id: one for one in store.claim(3)}
    store.finish(by_id["two"], "discarded")
    assert store.is_flushed(mark) == store.is_durable
    store.finish(by_id["one"], "delivered")
    assert store.is_flushed(mark)
    assert store.counts().waiting == 1


def test_what_is_lost_with_the_process(new_store: NewStore) -> None:
    """A store that is durable keeps all deliveries, leased or not; another one gives those that wait, due or not."""
    store = new_store(4, Clock())
    for step_id in ("leased", "backs off", "waits"):
        store.put(event(step_id), PIPELINE)
    leased, backs_off = store.claim(2)
    assert store.keeps(leased) == store.is_durable
    store.retry(backs_off, delay=30.0)
    assert ids(store.claim_lost()) == ([] if store.is_durable else ["backs off", "waits"])


def test_claiming_by_age_again_and_again_duplicates_nothing(new_store: NewStore) -> None:
    """A delivery that is leased by its age and given back many times is due once."""
    store = new_store(1000, Clock())
    for _ in range(1000):
        store.put(event(), PIPELINE)
    for _ in range(30):
        store.unclaim(store.claim_older(0.0))
    claimed = store.claim(5000)
    assert len(claimed) == len(set(claimed)) == 1000
    assert store.next_due() is None


def test_what_was_claimed_by_its_age_is_not_due_again(new_store: NewStore) -> None:
    """A delivery that is leased by its age before its retry is not due a second time; the others stay due."""
    clock = Clock()
    store = new_store(500, clock)
    for _ in range(200):
        store.put(event(), PIPELINE)
    clock.now += 50.0
    store.put(event("young"), PIPELINE)
    for delivery in store.claim(300):
        store.retry(delivery, delay=1.0 if delivery.event.step_id == "young" else 100.0)
    assert len(store.claim_older(30.0)) == 200
    clock.now += 1000.0
    assert ids(store.claim(500)) == ["young"]
    assert store.next_due() is None


def test_the_bound_holds_for_many_threads(new_store: NewStore) -> None:
    """If many threads put events at the same time, as many are taken as there is room for."""
    store, taken, start = new_store(1000, Clock()), list[Stored](), threading.Barrier(8)

    def fill() -> None:
        start.wait()
        taken.extend(store.put(event(), PIPELINE) for _ in range(200))

    threads = [threading.Thread(target=fill) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    dropped = taken.count(Stored.FULL)
    # An outbox counts rows, journal and memory one after the other: each thread may put one event too many.
    assert 600 - len(threads) * store.is_durable <= dropped <= 600
    assert store.counts().waiting == len(all_of(store)) == 1600 - dropped


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no such signals")
def test_a_signal_handler_may_put_at_any_moment(new_store: NewStore) -> None:
    """A signal handler that interrupts a put on its own thread neither deadlocks nor loses an event."""
    count = 20_000
    store, numbers, first = new_store(20 * count, Clock()), itertools.count(), event()

    def put() -> Stored:
        return store.put(dataclasses.replace(first, step_id=str(next(numbers))), PIPELINE)

    in_handler: list[Stored] = []  # a counter would lose counts: the handler interrupts itself, too

    def interrupt(_: int, __: FrameType | None) -> None:
        in_handler.append(put())

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
    try:
        outside = [put() for _ in range(count)]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert in_handler
    assert Stored.FULL not in outside + in_handler
    assert len(all_of(store)) == count + len(in_handler)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_leaves_its_parents_store_alone(new_store: NewStore) -> None:
    """A forked child that uses a store of its own changes nothing in its parent's."""
    store = new_store(4, Clock())
    store.put(event("parents"), PIPELINE)
    child = os.fork()
    if not child:
        own = new_store(4, Clock())
        own.put(event("childs"), PIPELINE)
        os._exit(0 if ids(own.claim(9)) == ["childs"] else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert ids(store.claim(9)) == ["parents"]
