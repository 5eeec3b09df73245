"""Steps that asyncio cancels, as real programs: the rows of the table that the outcome rules were measured with.

A row's letter stands in its test's name. Rows H to S and Z: test_cancellation_cleanup.py.
"""

import asyncio
import contextlib
import signal
from functools import partial

import pytest
from opentelemetry.trace import StatusCode
from stepping import FORMS, Steps, Work, cancel, do, fail

# A step that is cancelled


def test_abcdf_a_cancelled_step_is_cancelled(steps: Steps) -> None:
    """However a step is written, ``task.cancel()`` makes it cancelled."""
    for form in FORMS:
        cancel(partial(do, form, steps))
    assert steps.outcomes == dict.fromkeys(FORMS, "cancelled")


def test_a_step_that_fails_is_failed(steps: Steps) -> None:
    """However a step is written, an exception that leaves it makes it failed, recorded or not."""

    async def work() -> None:
        raise ValueError("no")

    for form in FORMS:
        with pytest.raises(ValueError, match="no"):
            asyncio.run(do(form, steps, work))
    assert steps.outcomes == dict.fromkeys(FORMS, "failed")


def test_a_step_that_ends_well_is_a_success(steps: Steps) -> None:
    """However a step is written, reaching its end makes it a success."""

    async def succeed() -> None:
        await asyncio.sleep(0)

    for form in FORMS:
        asyncio.run(do(form, steps, succeed))
    assert steps.outcomes == dict.fromkeys(FORMS, "success")


def test_e_nested_steps_are_all_cancelled(steps: Steps) -> None:
    """A cancellation passes through every step that is open."""

    async def work(hang: Work) -> None:
        with steps.current("outer"), steps.current("inner"):
            await hang()

    cancel(work)
    assert steps.outcomes == {"outer": "cancelled", "inner": "cancelled"}


def test_g_a_step_that_swallows_its_cancellation_is_a_success(steps: Steps) -> None:
    """A step that catches the cancellation and goes on has done its work; leaving by ``return`` is the same."""

    async def goes_on() -> None:
        with steps.current("goes on"), contextlib.suppress(asyncio.CancelledError):
            raise asyncio.CancelledError

    async def returns() -> None:
        with steps.current("returns"):
            try:
                fail(asyncio.CancelledError)
            except asyncio.CancelledError:
                return

    asyncio.run(goes_on())
    asyncio.run(returns())
    assert steps.outcomes == {"goes on": "success", "returns": "success"}


def test_o_a_status_ok_does_not_hide_a_cancellation(steps: Steps) -> None:
    """Instrumentations set OK too early; the cancellation comes later, and is true."""

    async def work(hang: Work) -> None:
        with steps.current() as span:
            span.set_status(StatusCode.OK)
            await hang()

    cancel(work)
    assert steps.outcomes == {"step": "cancelled"}


def test_ctrl_c_cancels_the_step_of_the_main_task(steps: Steps) -> None:
    """Under ``asyncio.run`` Ctrl-C arrives as a cancellation of the main task."""

    async def work() -> None:
        with steps.current():
            signal.raise_signal(signal.SIGINT)
            await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(work())
    assert steps.outcomes == {"step": "cancelled"}


# A limit in time, a failing sibling


def test_p_a_step_that_runs_out_of_its_own_time_is_failed(steps: Steps) -> None:
    """``asyncio.timeout`` inside the step: TimeoutError leaves it."""

    async def work() -> None:
        with steps.current():
            async with asyncio.timeout(0):
                await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(work())
    assert steps.outcomes == {"step": "failed"}


def test_p_a_step_that_runs_out_of_its_caller_s_time_is_cancelled(steps: Steps) -> None:
    """``asyncio.timeout`` outside of the step: to the step it is a cancellation."""

    async def work() -> None:
        async with asyncio.timeout(0):
            with steps.current():
                await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(work())
    assert steps.outcomes == {"step": "cancelled"}


def test_p_wait_for_cancels_the_inner_step_and_fails_the_outer(steps: Steps) -> None:
    """P1 and P2: whoever waits has failed, whoever was waited for was cancelled."""

    async def inner() -> None:
        with steps.current("inner"):
            await asyncio.Event().wait()

    async def outer() -> None:
        with steps.current("outer"):
            await asyncio.wait_for(inner(), 0.001)

    with pytest.raises(TimeoutError):
        asyncio.run(outer())
    assert steps.outcomes == {"outer": "failed", "inner": "cancelled"}


def test_u_a_failing_task_cancels_its_sibling(steps: Steps) -> None:
    """In a TaskGroup one fails, its sibling is cancelled, and the step around them has failed."""

    async def work() -> None:
        is_waiting = asyncio.Event()

        async def sibling() -> None:
            with steps.current("sibling"):
                is_waiting.set()
                await asyncio.Event().wait()

        async def failing() -> None:
            with steps.current("failing"):
                await is_waiting.wait()
                raise ValueError

        with steps.current("outer"):
            async with asyncio.TaskGroup() as group:
                group.create_task(sibling())
                group.create_task(failing())

    with pytest.raises(ExceptionGroup):
        asyncio.run(work())
    assert steps.outcomes == {"outer": "failed", "sibling": "cancelled", "failing": "failed"}
