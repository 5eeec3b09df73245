"""Owns the exceptions that this library raises on purpose."""

from typing import Literal


class StepHookError(Exception):
    """Whatever this library raises on purpose: catch it, and you have caught them all."""


class ConfigurationError(StepHookError, ValueError):
    """A setting that cannot work.

    The message names the setting, what was expected and what to do. It never holds the value of a secret.
    """


class VerificationError(StepHookError):
    """A request that is not a genuine, fresh and readable step webhook.

    The message says what was missing or wrong, what was expected and what to do: it may be sent back, for it
    never holds a secret. *status_code* is what a receiver should answer: 401 when the sender has not proved
    who it is, 400 when it has, but the body is no step.
    """

    def __init__(self, message: str, *, status_code: Literal[400, 401] = 401) -> None:
        super().__init__(message)
        self.status_code = status_code
