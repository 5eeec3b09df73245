"""Steps that exceptions other than an event loop's cancellation pass through, or that start in a handler of one.

A test's name contains the letter of its case, as in test_cancellation.py.
"""

import concurrent.futures
import contextlib
from collections.abc import Iterator
from itertools import product

import pytest
from stepping import BLOCKS, Steps, fail


class _OwnError(Exception):
    """An exception of a Python class, which supports weak references, unlike built-in ones."""


def test_the_exception_that_leaves_a_step_decides_its_outcome(steps: Steps) -> None:
    """Ctrl-C, ``sys.exit()`` and a cancelled future make a step cancelled; any other exception, failed."""
    outcomes = {
        KeyboardInterrupt(): "cancelled",
        SystemExit(0): "cancelled",
        concurrent.futures.CancelledError(): "cancelled",
        BaseExceptionGroup("all of them", [KeyboardInterrupt()]): "cancelled",
        ValueError("no"): "failed",
        ExceptionGroup("some of them", [ValueError("no")]): "failed",
    }
    expected = {}
    for form, (error, outcome) in product(BLOCKS, outcomes.items()):
        expected[f"{form}: {error!r}"] = outcome
        with pytest.raises(type(error)), BLOCKS[form](steps, f"{form}: {error!r}"):
            raise error
    for error, outcome in outcomes.items():
        expected[f"decorated: {error!r}"] = outcome
        with pytest.raises(type(error)):
            steps.current(f"decorated: {error!r}")(fail)(error)  # type: ignore[operator]  # -- it is a decorator too
    assert steps.outcomes == expected


def test_a_cancelled_future_cancels_the_step_that_waits_for_it(steps: Steps) -> None:
    """A step that asks a cancelled ``concurrent.futures.Future`` for its result is cancelled."""
    future: concurrent.futures.Future[None] = concurrent.futures.Future()
    future.cancel()
    with pytest.raises(concurrent.futures.CancelledError), steps.current():
        future.result()
    assert steps.outcomes == {"step": "cancelled"}


def test_n_a_step_ended_in_the_handler_of_its_failure_is_failed(steps: Steps) -> None:
    """The step started before the exception, so the exception counts, although it is not recorded."""
    span = steps.begin()
    try:
        fail(ValueError)
    except ValueError:
        span.end()
    assert steps.outcomes == {"step": "failed"}


def test_y_a_generator_that_is_closed_early_is_a_success(steps: Steps) -> None:
    """A consumer that stops early raises GeneratorExit in the generator, which is no failure, recorded or not."""

    def current() -> Iterator[int]:
        with steps.current("current"):
            yield 1

    def recorded() -> Iterator[int]:
        with steps.begin("recorded"):
            yield 1

    for items in (current(), recorded()):
        assert next(items) == 1
        items.close()  # type: ignore[attr-defined]  # -- they are generators
    assert steps.outcomes == {"current": "success", "recorded": "success"}


# Steps inside except and finally


def test_t_a_step_inside_except_is_a_success(steps: Steps) -> None:
    """A fallback that works is a success, whether the handled exception is of a C or of a Python class."""
    for name, kind in {"builtin": ValueError, "own": _OwnError}.items():
        try:
            fail(kind)
        except kind:
            with steps.current(name):
                pass
    assert steps.outcomes == {"builtin": "success", "own": "success"}


def test_a_step_inside_finally_is_a_success(steps: Steps) -> None:
    """An exception that passes a ``finally`` does not fail a step in it, but the step that it leaves."""
    span = steps.begin("work")
    with contextlib.suppress(ValueError):
        try:
            fail(ValueError)
        finally:
            steps.begin("clean-up").end()
            span.end()
    assert steps.outcomes == {"work": "failed", "clean-up": "success"}


def test_a_step_inside_except_that_fails_itself_is_failed(steps: Steps) -> None:
    """An exception that is raised inside the step counts, also if it has the type of the handled one."""
    for name, kind in {"same": ValueError, "other": KeyError}.items():
        with contextlib.suppress(kind):
            try:
                fail(ValueError)
            except ValueError:
                span = steps.begin(name)
                try:
                    fail(kind)
                finally:
                    span.end()
    assert steps.outcomes == {"same": "failed", "other": "failed"}


def test_a_retry_started_in_one_handler_and_ended_by_the_next_exception_is_failed(steps: Steps) -> None:
    """A new exception counts, also if it has the type and the memory address of the handled one."""
    for number in range(20):
        retry = None
        for _ in range(2):
            try:
                try:
                    fail(ValueError)
                finally:
                    if retry is not None:
                        retry.end()
            except ValueError:
                retry = retry or steps.begin(f"retry-{number}")
    assert set(steps.outcomes.values()) == {"failed"}
    assert len(steps.outcomes) == 20


def test_a_step_inside_nested_handlers_is_a_success(steps: Steps) -> None:
    """The innermost handled exception is compared, at the start and at the end."""
    try:
        fail(ValueError)
    except ValueError:
        try:
            fail(KeyError)
        except KeyError:
            steps.begin("inner").end()
        steps.begin("outer").end()
    assert steps.outcomes == {"inner": "success", "outer": "success"}
