"""Many deliveries at a time: lanes, connections, flushes."""

import asyncio
import gc

import pytest
from dispatching import DELIVERED, WAIT, Script, event, failed, rigged
from sending import OK, answering

from otel_step_hook.delivery.telemetry import Delivery
from otel_step_hook.testing import HostileReceiver

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("concurrency", [1, 3, 8])
async def test_no_more_attempts_are_in_flight_than_allowed(concurrency: int) -> None:
    """STEP_COMPLETE_CONCURRENCY is never exceeded, and it is reached; the queue keeps its order."""
    script = Script()
    async with rigged(script, concurrency=concurrency) as rig:
        rig.submit(*(event(f"step-{number}") for number in range(50)))
        await rig.done()
        assert (script.most_in_flight, script.senders) == (concurrency, concurrency)
    bodies = [body for body, _ in script.posts]
    assert bodies == [b'{"step_id": "step-%d"}' % number for number in range(50)]
    assert script.closed == concurrency


async def test_a_slow_delivery_holds_back_no_other() -> None:
    """While one attempt waits for its answer, the other lane goes on delivering."""
    release = asyncio.Event()
    script = Script(release, DELIVERED)
    async with rigged(script, concurrency=2) as rig:
        rig.submit(event("slow"), *(event(f"step-{number}") for number in range(10)))
        async with asyncio.timeout(WAIT):
            while len(rig.results) < 10:  # noqa: ASYNC110 -- the exporter tells nobody
                await asyncio.sleep(0)
        assert "slow" not in [step for step, _, _ in rig.results]
        release.set()
        await rig.done()
    assert len(rig.results) == 11


async def test_a_delivery_that_waits_for_its_next_attempt_holds_no_lane() -> None:
    """With one lane, a step that was refused waits aside, and the next ones are delivered meanwhile."""
    script = Script(failed(retry_after=0.5), DELIVERED)
    async with rigged(script, concurrency=1, max_backoff=0.5) as rig:
        rig.submit(event("refused"), event("next"))
        await rig.done()
    assert [step for step, _, _ in rig.results] == ["next", "refused"]


async def test_sparse_steps_share_one_warm_connection() -> None:
    """The lane used last is used next: steps that come one by one need one connection, whatever the concurrency."""
    with HostileReceiver(answering(OK)) as receiver:
        async with rigged(webhook=receiver.url, concurrency=8) as rig:
            for number in range(10):
                rig.submit(event(f"step-{number}"))
                await rig.done()
        assert receiver.connections == 1


async def test_the_lane_used_last_is_used_next() -> None:
    """After a burst, sparse steps go on using one of its connections, and the others cool down."""
    script = Script()
    async with rigged(script, concurrency=4) as rig:
        rig.submit(*(event(f"burst-{number}") for number in range(20)))
        await rig.done()
        for number in range(8):
            await asyncio.sleep(0)  # the lane comes to its end
            rig.submit(event(f"step-{number}"))
            await rig.done()
    assert script.senders == 4
    assert len(set(script.by[20:])) == 1


async def test_every_lane_has_one_connection() -> None:
    """A burst opens as many connections as there are lanes, and no more."""
    with HostileReceiver(answering(OK)) as receiver:
        async with rigged(webhook=receiver.url, concurrency=4) as rig:
            rig.submit(*(event(f"step-{number}") for number in range(100)))
            await rig.done()
        assert receiver.connections == 4


async def test_a_flush_waits_for_what_came_before_it_and_nothing_else() -> None:
    """Steps that are submitted after a flush do not keep it waiting, and each flush is answered."""
    first, second = asyncio.Event(), asyncio.Event()
    script = Script(first, DELIVERED, second, DELIVERED)
    nothing, one, two = asyncio.Event(), asyncio.Event(), asyncio.Event()
    async with rigged(script, concurrency=1) as rig:
        rig.dispatcher.when_done(nothing)
        rig.submit(event("one"))
        rig.dispatcher.when_done(one)
        rig.submit(event("two"))
        rig.dispatcher.when_done(two)
        assert [flush.is_set() for flush in (nothing, one, two)] == [True, False, False]
        first.set()
        await asyncio.wait_for(one.wait(), WAIT)
        assert not two.is_set()
        second.set()
        await asyncio.wait_for(two.wait(), WAIT)


async def test_a_flush_waits_for_the_oldest_of_what_came_before_it() -> None:
    """Deliveries do not end in the order of their steps: a flush waits for all."""
    release, flush = asyncio.Event(), asyncio.Event()
    script = Script(release, DELIVERED)
    async with rigged(script, concurrency=2) as rig:
        rig.submit(event("slow"), event("quick"))
        rig.dispatcher.when_done(flush)
        async with asyncio.timeout(WAIT):
            while not rig.results:  # noqa: ASYNC110 -- the exporter tells nobody
                await asyncio.sleep(0)
        assert not flush.is_set()
        release.set()
        await asyncio.wait_for(flush.wait(), WAIT)
        assert len(rig.results) == 2


async def test_nothing_of_a_delivery_is_kept_after_its_last_word() -> None:
    """Deliveries that are over, whatever became of them, are forgotten."""
    script = Script(failed(), RuntimeError(), failed(410), DELIVERED)
    async with rigged(script, concurrency=2) as rig:
        rig.submit(*(event(f"kept-{number}") for number in range(100)))
        await rig.done()
        await asyncio.sleep(0)  # the last lane comes to its end
        gc.collect()
        kept = [item for item in gc.get_objects() if isinstance(item, Delivery)]  # of other tests, too
        assert not [delivery for delivery in kept if delivery.event.step_id.startswith("kept-")]
    assert len(rig.results) == 100
