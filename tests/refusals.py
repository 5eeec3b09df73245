"""What several test files need: settings that are refused, and whether the refusal gives a secret away."""

import traceback
from collections.abc import Callable, Iterator

import pytest

from otel_step_hook import ConfigurationError, StepHookSettings


def everything_in(error: BaseException | None) -> Iterator[str]:
    """Whatever can be read off *error* and the errors behind it, shown by default or not."""
    while error is not None:
        yield from (str(error), repr(error), repr(error.args), repr(vars(error)))
        yield from traceback.format_exception(error)
        yield repr(getattr(error, "errors", list)())  # pydantic's, which hold the input
        error = error.__cause__ or error.__context__


def refusal(secret: str = "", **values: object) -> str:
    """The one sentence that refuses *values*; *secret* is nowhere in it, nor behind it."""
    with pytest.raises(ConfigurationError) as caught:
        StepHookSettings(**values)
    assert not secret or not any(secret in text for text in everything_in(caught.value))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _by_argument(_: pytest.MonkeyPatch, name: str, value: str, secret: str = "") -> str:
    return refusal(secret, **{name: value})


def _by_environment(monkeypatch: pytest.MonkeyPatch, name: str, value: str, secret: str = "") -> str:
    monkeypatch.setenv(f"STEP_COMPLETE_{name.upper()}", value)
    return refusal(secret)


Refuse = Callable[..., str]
from_both = pytest.mark.parametrize("refuse", [_by_argument, _by_environment])
