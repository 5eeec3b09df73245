"""Steps that trio and anyio cancel, in real event loops."""

import anyio
import anyio.lowlevel
import pytest
import trio
from stepping import FORMS, Steps, do

# trio


def test_a_step_that_trio_cancels_is_cancelled(steps: Steps) -> None:
    """In each form of a step, a cancelled scope makes it cancelled."""

    async def main(form: str) -> None:
        async with trio.open_nursery() as nursery:
            is_waiting = trio.Event()

            async def work() -> None:
                is_waiting.set()
                await trio.sleep_forever()

            nursery.start_soon(do, form, steps, work)
            await is_waiting.wait()
            nursery.cancel_scope.cancel()

    for form in FORMS:
        trio.run(main, form)
    assert steps.outcomes == dict.fromkeys(FORMS, "cancelled")


def test_a_failing_child_of_a_nursery_cancels_its_sibling(steps: Steps) -> None:
    """In a nursery, one task fails, its sibling is cancelled, and the step around both has failed."""

    async def main() -> None:
        is_waiting = trio.Event()

        async def sibling() -> None:
            with steps.current("sibling"):
                is_waiting.set()
                await trio.sleep_forever()

        async def failing() -> None:
            with steps.current("failing"):
                await is_waiting.wait()
                raise ValueError

        with steps.current("outer"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sibling)
                nursery.start_soon(failing)

    with pytest.raises(ExceptionGroup):
        trio.run(main)
    assert steps.outcomes == {"outer": "failed", "sibling": "cancelled", "failing": "failed"}


def test_a_step_around_a_cancelled_nursery_is_cancelled(steps: Steps) -> None:
    """A cancellation that leaves a nursery, alone or as a group of cancellations, cancels the step around it."""

    async def main() -> None:
        with trio.CancelScope() as scope, steps.current():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(trio.sleep_forever)
                scope.cancel()

    trio.run(main)
    assert steps.outcomes == {"step": "cancelled"}


# anyio

_backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@_backends
def test_a_step_that_anyio_cancels_is_cancelled(backend: str, steps: Steps) -> None:
    """In each form of a step, and on each backend, a cancelled task group makes it cancelled."""

    async def main(form: str) -> None:
        async with anyio.create_task_group() as group:
            is_waiting = anyio.Event()

            async def work() -> None:
                is_waiting.set()
                await anyio.sleep_forever()

            group.start_soon(do, form, steps, work)
            await is_waiting.wait()
            group.cancel_scope.cancel()

    for form in FORMS:
        anyio.run(main, form, backend=backend)
    assert steps.outcomes == dict.fromkeys(FORMS, "cancelled")


@_backends
def test_a_step_is_cancelled_by_its_caller_s_scope_alone(backend: str, steps: Steps) -> None:
    """``move_on_after`` around a step cancels it; inside a step it does not."""

    async def main() -> None:
        with anyio.move_on_after(0), steps.current("inside"):
            await anyio.sleep_forever()
        with steps.current("around"), anyio.move_on_after(0):
            await anyio.sleep_forever()

    anyio.run(main, backend=backend)
    assert steps.outcomes == {"inside": "cancelled", "around": "success"}


@_backends
def test_a_step_with_a_timeout_inside_is_failed(backend: str, steps: Steps) -> None:
    """When ``fail_after`` inside the step expires, a TimeoutError leaves the step."""

    async def main() -> None:
        with steps.current(), anyio.fail_after(0):
            await anyio.sleep_forever()

    with pytest.raises(TimeoutError):
        anyio.run(main, backend=backend)
    assert steps.outcomes == {"step": "failed"}


@_backends
def test_a_shielded_clean_up_is_a_success(backend: str, steps: Steps) -> None:
    """A step that cleans up in ``finally`` is not the step that was cancelled."""

    async def main() -> None:
        with anyio.CancelScope() as scope, steps.current("work"):
            try:
                scope.cancel()
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True), steps.current("clean-up"):
                    await anyio.lowlevel.checkpoint()

    anyio.run(main, backend=backend)
    assert steps.outcomes == {"work": "cancelled", "clean-up": "success"}
