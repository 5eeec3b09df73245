"""Real frameworks, of which the ordinary tests only have recordings; each test has a hook and a receiver of its own."""

import importlib.util
from collections.abc import Iterator

import pytest
from observing import Observed
from support import pipeline

from otel_step_hook.testing import ScriptedReceiver

# The ordinary environments have not got the frameworks: there, pytest finds no test here.
collect_ignore_glob = [] if importlib.util.find_spec("dbos") else ["test_*.py"]


@pytest.fixture
def observed(step_receiver: ScriptedReceiver) -> Iterator[Observed]:
    """A pipeline as an application has it: the rules of all frameworks, and none of the application's."""
    with pipeline(step_receiver.url, payload="full") as hooked:
        yield Observed(hooked, step_receiver)
