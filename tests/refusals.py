"""How settings are refused, and that no refusal shows a secret, which is any text with SEKRET in it."""

import traceback
from collections.abc import Callable, Iterable

import pytest

from otel_step_hook import ConfigurationError, StepHookSettings


def refusal(**values: object) -> str:
    """The sentence that refuses *values*; what is wrong with it; or that there is none."""
    try:
        StepHookSettings(**values)
    except ConfigurationError as refused:
        error: BaseException | None = refused
        while error is not None:  # with those behind it, printed by default or not
            inputs: Callable[[], object] = getattr(error, "errors", list)  # of pydantic's
            if "SEKRET" in f"{traceback.format_exception(error)} {error!r} {vars(error)} {inputs()}":
                return f"shows a secret: {error!r}"
            error = error.__cause__ or error.__context__
        return str(refused) if "\n" not in str(refused) else f"more than a line: {refused}"
    return "not refused"


def assert_refused(cases: Iterable[tuple[str, object, str]]) -> None:
    """Each setting and value is refused with its sentence, as an argument and, where it can be, as a variable."""
    wrong = []
    for name, value, sentence in cases:
        refusals = {"argument": refusal(**{name: value})}
        if isinstance(value, str) and "\0" not in value:
            with pytest.MonkeyPatch.context() as environment:
                environment.setenv(f"STEP_COMPLETE_{name.upper()}", value)
                refusals["variable"] = refusal()
        wrong += [f"{name}={value!r} as {way}: {got}" for way, got in refusals.items() if got != sentence]
    assert not wrong, "\n".join(wrong)
