"""How settings are refused, and that no refusal shows a secret, which is any text with SEKRET in it."""

import traceback
from collections.abc import Iterable

import pytest
from pydantic import ValidationError

from otel_step_hook import ConfigurationError, StepHookSettings


def text_of(error: BaseException) -> str:
    """All that *error* and the errors behind it hold, printed by default or not."""
    shown = [*traceback.format_exception(error), repr(error), repr(vars(error))]
    if isinstance(error, ValidationError):
        shown.append(repr(error.errors()))  # which hold the input
    behind = error.__cause__ or error.__context__
    return "\n".join(shown if behind is None else [*shown, text_of(behind)])


def refusal(**values: object) -> str:
    """The sentence that refuses *values*, or what is wrong with the refusal."""
    try:
        StepHookSettings(**values)
    except ConfigurationError as error:
        if "SEKRET" in text_of(error):
            return f"shows the secret: {error}"
        return str(error) if "\n" not in str(error) else f"more than one line: {error}"
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
