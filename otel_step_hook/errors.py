"""The exceptions that this library raises on purpose, and how they leave it without a secret."""

import functools
from collections.abc import Callable
from typing import Literal, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")
VerificationReason = Literal[
    "missing_header",
    "malformed_header",
    "wrong_key",
    "signature_mismatch",
    "timestamp_too_old",
    "timestamp_in_future",
    "bad_body",
]


class StepHookError(Exception):
    """The base class of all exceptions that this library raises on purpose."""


class ConfigurationError(StepHookError, ValueError):
    """Raised for a setting, a profile, a key or another argument that cannot be used.

    The message names the setting, what was expected and what to do. It never holds the value of a secret.
    """


class VerificationError(StepHookError):
    """Raised for a request that is not a genuine, fresh and readable step webhook.

    The message says what was missing or wrong, what was expected and what to do. It never holds a secret, so it
    may be sent back. *reason* is one of ``missing_header``, ``malformed_header``, ``wrong_key``,
    ``signature_mismatch``, ``timestamp_too_old``, ``timestamp_in_future`` and ``bad_body``. *status_code* is the HTTP
    status to answer with: 400 for ``bad_body``, and 401 for all else, since the sender has not proved who it is.
    """

    def __init__(self, message: str, reason: VerificationReason) -> None:
        super().__init__(message, reason)  # both, so that the error can be pickled
        self.reason = reason
        self.status_code: Literal[400, 401] = 400 if reason == "bad_body" else 401

    def __str__(self) -> str:
        return str(self.args[0])


def hide_arguments(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return *function* so that a `StepHookError` leaves it without the frames in which it was raised.

    Tools that report errors send the local variables of each frame in a traceback, and those of *function* and of what
    it calls hold secrets. Any other exception keeps its frames. What called *function* stays in the traceback.
    """

    @functools.wraps(function)
    def hiding(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except StepHookError as error:
            failure = error
        # Raised outside of `except`, which would make the error its own context, and with the arguments gone.
        del args, kwargs
        failure.__cause__ = failure.__context__ = None
        try:
            raise failure.with_traceback(None)
        finally:
            del failure  # or the error would keep this frame alive, and this frame the error

    return hiding
