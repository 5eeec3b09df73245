"""Steps that start or end inside a handler of an asyncio cancellation, in real event loops.

A test's name contains the letter of its case, as in test_cancellation.py.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator

from stepping import Steps, Work, cancel


async def _clean_up(steps: Steps) -> None:
    with steps.current("clean-up"):
        await asyncio.sleep(0)


def test_h_a_step_inside_except_is_a_success(steps: Steps) -> None:
    """The exception that is being handled was in flight before the step started, so it does not count."""

    async def work(hang: Work) -> None:
        try:
            await hang()
        except asyncio.CancelledError:
            with steps.current():
                await asyncio.sleep(0)
            raise

    cancel(work)
    assert steps.outcomes == {"step": "success"}


def test_i_a_step_inside_finally_is_a_success(steps: Steps) -> None:
    """An exception that passes a ``finally`` does not count for a step in it, but for the step around it."""

    async def work(hang: Work) -> None:
        with steps.current("outer"):
            try:
                await hang()
            finally:
                with steps.current("clean-up"):
                    await asyncio.sleep(0)

    cancel(work)
    assert steps.outcomes == {"outer": "cancelled", "clean-up": "success"}


def test_j_a_step_in_a_function_that_except_awaits_is_a_success(steps: Steps) -> None:
    """The ``except`` may be in a caller of the function that starts the step."""

    async def work(hang: Work) -> None:
        try:
            await hang()
        except asyncio.CancelledError:
            await _clean_up(steps)

    cancel(work)
    assert steps.outcomes == {"clean-up": "success"}


def test_k_a_step_in_a_task_that_except_creates_is_a_success(steps: Steps) -> None:
    """In the new task no exception is in flight."""

    async def work(hang: Work) -> None:
        try:
            await hang()
        except asyncio.CancelledError:
            await asyncio.create_task(_clean_up(steps))

    cancel(work)
    assert steps.outcomes == {"clean-up": "success"}


def test_l_a_step_that_reraises_the_handled_exception_is_a_success(steps: Steps) -> None:
    """A known limit of the rule for H, I and J: the same exception, raised again inside the step, does not count."""

    async def work(hang: Work) -> None:
        try:
            await hang()
        except asyncio.CancelledError:
            with steps.current():
                raise

    cancel(work)
    assert steps.outcomes == {"step": "success"}


def test_m_a_clean_up_that_is_cancelled_too_is_cancelled(steps: Steps) -> None:
    """A second cancellation is a new exception, so it counts for the step."""

    async def work(hang: Work) -> None:
        try:
            await hang()
        except asyncio.CancelledError:
            with steps.current():
                await hang()

    cancel(work, times=2)
    assert steps.outcomes == {"step": "cancelled"}


def test_n_a_step_ended_in_the_handler_of_its_cancellation_is_cancelled(steps: Steps) -> None:
    """The step started before the exception, so the exception counts, although it is not raised again."""

    async def work(hang: Work) -> None:
        span = steps.begin()
        try:
            await hang()
        except asyncio.CancelledError:
            span.end()

    cancel(work)
    assert steps.outcomes == {"step": "cancelled"}


# Generators, callbacks, threads


def test_s_an_async_generator_that_is_closed_early_is_a_success(steps: Steps) -> None:
    """A consumer that stops early raises GeneratorExit in the generator, which is no failure, recorded or not."""

    async def current() -> AsyncIterator[int]:
        with steps.current("current"):
            yield 1

    async def recorded() -> AsyncIterator[int]:
        with steps.begin("recorded"):
            yield 1

    async def work() -> None:
        for generator in (current(), recorded()):
            async with contextlib.aclosing(generator) as items:  # type: ignore[type-var]  # -- they are generators
                async for _ in items:
                    break

    asyncio.run(work())
    assert steps.outcomes == {"current": "success", "recorded": "success"}


def test_z_a_step_in_a_generator_that_a_handler_resumes_is_cancelled(steps: Steps) -> None:
    """A known false positive: the step started before the exception, and happens to end inside its handler."""

    def generator() -> Iterator[None]:
        with steps.current():
            yield

    async def work(hang: Work) -> None:
        items = generator()
        next(items)
        try:
            await hang()
        except asyncio.CancelledError:
            assert next(items, "ended") == "ended"

    cancel(work)
    assert steps.outcomes == {"step": "cancelled"}


def test_r_a_step_ended_by_a_callback_is_a_success(steps: Steps) -> None:
    """A known limit: in a done callback of a cancelled task no exception is in flight."""

    async def main() -> None:
        span = steps.begin()
        task = asyncio.create_task(asyncio.Event().wait())
        task.add_done_callback(lambda _: span.end())
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    assert steps.outcomes == {"step": "success"}


def test_z2_a_step_ended_in_another_thread_is_a_success(steps: Steps) -> None:
    """A known limit: another thread does not see the exception in flight."""

    async def work(hang: Work) -> None:
        span = steps.begin()
        try:
            await hang()
        except asyncio.CancelledError:
            thread = threading.Thread(target=span.end)
            thread.start()
            thread.join()

    cancel(work)
    assert steps.outcomes == {"step": "success"}
