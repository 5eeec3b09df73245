"""Assertions about refused settings, none of which may show a secret: any text with SEKRET in it."""

import traceback
from collections.abc import Callable, Iterable

import pytest

from otel_step_hook import ConfigurationError, StepHookSettings


def refusal(**values: object) -> str:
    """The sentence that refuses *values*, "not refused", or a complaint about a sentence that shows a secret."""
    try:
        StepHookSettings(**values)
    except ConfigurationError as refused:
        error: BaseException | None = refused
        while error is not None:  # and its causes and contexts, suppressed or not
            inputs: Callable[[], object] = getattr(error, "errors", list)  # what a pydantic error holds
            if "SEKRET" in f"{traceback.format_exception(error)} {error!r} {vars(error)} {inputs()}":
                return f"shows a secret: {error!r}"
            error = error.__cause__ or error.__context__
        return str(refused) if "\n" not in str(refused) else f"more than a line: {refused}"
    return "not refused"


def assert_refused(cases: Iterable[tuple[str, object, str]]) -> None:
    """Assert for each name, value and sentence of *cases* that it refuses the value, as argument and as variable.

    Only text without NUL can be the value of a variable.
    """
    wrong = []
    for name, value, sentence in cases:
        refusals = {"argument": refusal(**{name: value})}
        if isinstance(value, str) and "\0" not in value:
            with pytest.MonkeyPatch.context() as environment:
                environment.setenv(f"STEP_COMPLETE_{name.upper()}", value)
                refusals["variable"] = refusal()
        wrong += [f"{name}={value!r} as {way}: {got}" for way, got in refusals.items() if got != sentence]
    assert not wrong, "\n".join(wrong)
