"""The exceptions that this library raises on purpose."""

from typing import Literal


class StepHookError(Exception):
    """The base class of all exceptions that this library raises on purpose."""


class ConfigurationError(StepHookError, ValueError):
    """Raised for a setting, a profile or a key that cannot be used.

    The message names the setting, what was expected and what to do. It never holds the value of a secret.
    """


class VerificationError(StepHookError):
    """Raised for a request that is not a genuine, fresh and readable step webhook.

    The message says what was missing or wrong, what was expected and what to do. It never holds a secret, so it
    may be sent back. *status_code* is the HTTP status to answer with: 401 when the sender has not proved who it
    is, 400 when it has, but the body is no step.
    """

    def __init__(self, message: str, *, status_code: Literal[400, 401] = 401) -> None:
        super().__init__(message)
        self.status_code = status_code
