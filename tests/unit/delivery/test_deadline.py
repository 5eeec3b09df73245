"""`Deadline`, the time limit of an attempt: how it acts on the task that it runs in."""

import asyncio
import gc
import weakref

import pytest

from otel_step_hook.delivery.deadline import LAST_TURNS, Deadline

pytestmark = pytest.mark.anyio


async def within(timeout: float, seconds: float) -> None:
    """Sleep for *seconds* with a deadline of *timeout* seconds."""
    async with Deadline(timeout):
        await asyncio.sleep(seconds)


@pytest.mark.parametrize("rounds", range(0, LAST_TURNS + 10, 3))
async def test_a_cancellation_counts_until_the_timeout_is_raised(rounds: int) -> None:
    """A task that is cancelled before or during the last polls of its sockets ends as cancelled, not as late."""
    task = asyncio.create_task(within(0.0, 600.0))
    for _ in range(rounds):
        await asyncio.sleep(0)
    is_late = task.done()
    task.cancel()
    with pytest.raises(TimeoutError if is_late else asyncio.CancelledError):
        await task


async def test_time_limits_nest() -> None:
    """Each of two nested time limits ends its own block; an inner one that has expired does not affect the outer."""
    async with asyncio.timeout(60.0):
        with pytest.raises(TimeoutError):
            await within(0.0, 600.0)
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.0):
            await within(60.0, 600.0)


async def test_a_task_is_freed_without_the_garbage_collector() -> None:
    """A task that ends in time is freed at once, instead of waiting with thousands of others for a collection."""
    gc.disable()
    try:
        task = asyncio.create_task(within(60.0, 0.0))
        await task
        ended = weakref.ref(task)
        del task
        await asyncio.sleep(0)  # until then the running callback of the loop refers to the task
        assert ended() is None
    finally:
        gc.enable()
