"""Steps that asyncio cancels, in real event loops: the cases that the outcome rules were measured with.

A test's name contains the letters of its cases. Cases H to S and Z are in test_cancellation_cleanup.py.
"""

import asyncio
import contextlib
import signal
from functools import partial

import pytest
from opentelemetry.trace import StatusCode
from stepping import FORMS, Steps, Work, cancel, do, fail

# Steps that are cancelled


def test_abcdf_a_cancelled_step_is_cancelled(steps: Steps) -> None:
    """In each form of a step, ``task.cancel()`` makes it cancelled."""
    for form in FORMS:
        cancel(partial(do, form, steps))
    assert steps.outcomes == dict.fromkeys(FORMS, "cancelled")


def test_a_step_that_fails_is_failed(steps: Steps) -> None:
    """In each form of a step, an exception that leaves it makes it failed, recorded or not."""

    async def work() -> None:
        raise ValueError("no")

    for form in FORMS:
        with pytest.raises(ValueError, match="no"):
            asyncio.run(do(form, steps, work))
    assert steps.outcomes == dict.fromkeys(FORMS, "failed")


def test_a_step_without_an_exception_is_a_success(steps: Steps) -> None:
    """In each form of a step, reaching its end makes it a success."""

    async def succeed() -> None:
        await asyncio.sleep(0)

    for form in FORMS:
        asyncio.run(do(form, steps, succeed))
    assert steps.outcomes == dict.fromkeys(FORMS, "success")


def test_e_nested_steps_are_all_cancelled(steps: Steps) -> None:
    """A cancellation cancels every open step that it passes through."""

    async def work(hang: Work) -> None:
        with steps.current("outer"), steps.current("inner"):
            await hang()

    cancel(work)
    assert steps.outcomes == {"outer": "cancelled", "inner": "cancelled"}


def test_g_a_step_that_swallows_its_cancellation_is_a_success(steps: Steps) -> None:
    """A step that catches the cancellation is a success, whether it goes on or returns."""

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
    """Some instrumentations set OK before the step ends; a cancellation after that still counts."""

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


# Timeouts and failing siblings


def test_p_a_step_with_a_timeout_inside_is_failed(steps: Steps) -> None:
    """When ``asyncio.timeout`` inside the step expires, a TimeoutError leaves the step."""

    async def work() -> None:
        with steps.current():
            async with asyncio.timeout(0):
                await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(work())
    assert steps.outcomes == {"step": "failed"}


def test_p_a_step_with_a_timeout_around_it_is_cancelled(steps: Steps) -> None:
    """When ``asyncio.timeout`` around the step expires, a CancelledError leaves the step."""

    async def work() -> None:
        async with asyncio.timeout(0):
            with steps.current():
                await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(work())
    assert steps.outcomes == {"step": "cancelled"}


def test_p_wait_for_cancels_the_inner_step_and_fails_the_outer(steps: Steps) -> None:
    """P1 and P2: the step that waits gets a TimeoutError, the step that it waits for a CancelledError."""

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
    """In a TaskGroup, one task fails, its sibling is cancelled, and the step around both has failed."""

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
