"""Steps that begin or end while a cancellation by asyncio is handled, as real programs.

A row's letter of the table stands in its test's name, as in test_cancellation.py.
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
    """The exception that is being handled is not the new step's."""

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
    """The same in ``finally``; the cancelled step around it is cancelled."""

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
    """The handler may be far away, in a caller."""

    async def work(hang: Work) -> None:
        try:
            await hang()
        except asyncio.CancelledError:
            await _clean_up(steps)

    cancel(work)
    assert steps.outcomes == {"clean-up": "success"}


def test_k_a_step_in_a_task_that_except_makes_is_a_success(steps: Steps) -> None:
    """A task of its own sees nothing of its maker's exception."""

    async def work(hang: Work) -> None:
        try:
            await hang()
        except asyncio.CancelledError:
            await asyncio.create_task(_clean_up(steps))

    cancel(work)
    assert steps.outcomes == {"clean-up": "success"}


def test_l_a_step_that_only_passes_on_what_was_in_flight_is_a_success(steps: Steps) -> None:
    """The known limit of the rule for H, I and J: the same exception, raised again inside the step, is not seen."""

    async def work(hang: Work) -> None:
        try:
            await hang()
        except asyncio.CancelledError:
            with steps.current():
                raise

    cancel(work)
    assert steps.outcomes == {"step": "success"}


def test_m_a_clean_up_that_is_cancelled_too_is_cancelled(steps: Steps) -> None:
    """A second cancellation is a new exception, and the step's own."""

    async def work(hang: Work) -> None:
        try:
            await hang()
        except asyncio.CancelledError:
            with steps.current():
                await hang()

    cancel(work, times=2)
    assert steps.outcomes == {"step": "cancelled"}


def test_n_a_step_ended_in_the_handler_of_its_cancellation_is_cancelled(steps: Steps) -> None:
    """It began before, so the exception is its own, though it is not raised again."""

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
    """Its consumer had enough: GeneratorExit is no failure, recorded or not."""

    async def current() -> AsyncIterator[int]:
        with steps.current("current"):
            yield 1

    async def recorded() -> AsyncIterator[int]:
        with steps.begin("recorded"):
            yield 1

    async def work() -> None:
        for made in (current(), recorded()):
            async with contextlib.aclosing(made) as items:  # type: ignore[type-var]  # -- generators, as written
                async for _ in items:
                    break

    asyncio.run(work())
    assert steps.outcomes == {"current": "success", "recorded": "success"}


def test_z_a_generator_resumed_by_a_handler_is_cancelled(steps: Steps) -> None:
    """The one false positive that is left: the step began before, and ends by chance inside the handler."""

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
    """A known limit: in a task's callback nothing of its cancellation is in flight."""

    async def main() -> None:
        span = steps.begin()
        task = asyncio.create_task(asyncio.Event().wait())
        task.add_done_callback(lambda _: span.end())
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    assert steps.outcomes == {"step": "success"}


def test_z2_a_step_ended_in_another_thread_is_a_success(steps: Steps) -> None:
    """A known limit: another thread does not see what is in flight."""

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
