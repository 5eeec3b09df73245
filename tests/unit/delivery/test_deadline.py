"""The limit of an attempt: what it does to the task it runs in."""

import asyncio
import gc
import weakref

import pytest

from otel_step_hook.delivery.deadline import LAST_POLLS, Deadline

pytestmark = pytest.mark.anyio


async def within(timeout: float, seconds: float) -> None:
    """Wait for so many seconds, within this limit."""
    async with Deadline(timeout):
        await asyncio.sleep(seconds)


@pytest.mark.parametrize("rounds", range(0, LAST_POLLS + 10, 3))
async def test_a_cancellation_counts_at_any_moment(rounds: int) -> None:
    """Cancelled before or while the loop looks at its sockets for the last time, a task is cancelled, not late."""
    task = asyncio.create_task(within(0.0, 600.0))
    for _ in range(rounds):
        await asyncio.sleep(0)
    is_late = task.done()
    task.cancel()
    with pytest.raises(TimeoutError if is_late else asyncio.CancelledError):
        await task


async def test_limits_nest() -> None:
    """A limit around a limit ends what it is around, and the inner one that has ended does not count for the outer."""
    async with asyncio.timeout(60.0):
        with pytest.raises(TimeoutError):
            await within(0.0, 600.0)
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.0):
            await within(60.0, 600.0)


async def test_nothing_is_left_for_the_garbage_collector() -> None:
    """A task that ended in time is gone at once: thousands a minute would else wait for a collection."""
    gc.disable()
    try:
        task = asyncio.create_task(within(60.0, 0.0))
        await task
        ended = weakref.ref(task)
        del task
        await asyncio.sleep(0)  # the round of the loop that has woken us knows the task
        assert ended() is None
    finally:
        gc.enable()
