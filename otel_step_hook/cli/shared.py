"""What the commands share: sentences on the terminal, exit statuses, and the endpoints that they need."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from rich.console import Console
from rich.text import Text

from otel_step_hook.delivery.model import Endpoint
from otel_step_hook.errors import ConfigurationError
from otel_step_hook.settings import StepHookSettings, endpoints_of

FAILED, USAGE_ERROR = 1, 2  # exit statuses: the command failed; the settings or the arguments are wrong


def print_line(console: Console, sentence: str, style: str = "") -> None:
    """Print *sentence* without line breaks of our own, and without reading markup in it."""
    console.print(Text(sentence, style=style), soft_wrap=True)


def exit_with(sentence: str, exit_status: int) -> NoReturn:
    """Print *sentence* to stderr, and exit."""
    print_line(Console(stderr=True), sentence)
    sys.exit(exit_status)


def required_endpoints(settings: StepHookSettings) -> tuple[Endpoint, ...]:
    """Return the endpoints of *settings*. Raises `ConfigurationError` when there are none."""
    endpoints = endpoints_of(settings)
    if not endpoints:
        raise ConfigurationError(
            "STEP_COMPLETE_WEBHOOK is not set, so no webhook is sent; expected the URL of your receiver; "
            "for one to try with, run: otel-step-hook listen"
        )
    return endpoints


@contextlib.contextmanager
def on_signal(name: str, act: Callable[[], object]) -> Iterator[None]:
    """Call *act*, on the main thread, for each signal *name* that comes while the body runs. For the main thread."""
    number = signal.Signals[name]
    before = signal.signal(number, lambda *_: act())
    try:
        yield
    finally:
        signal.signal(number, before)
