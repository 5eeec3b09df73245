"""Fixtures of the tests that run real frameworks, which the other tests only replay from recordings."""

import importlib.util
from collections.abc import Iterator

import pytest
from observing import Observed
from support import pipeline

from otel_step_hook.testing import ScriptedReceiver

# Only the environment of `make test-live` has the frameworks; elsewhere, pytest collects no test here.
collect_ignore_glob = [] if importlib.util.find_spec("dbos") else ["test_*.py"]


@pytest.fixture
def observed(step_receiver: ScriptedReceiver) -> Iterator[Observed]:
    """A new pipeline and receiver, with the profiles of all frameworks, and no rules of the application."""
    with pipeline(step_receiver.url, payload="full") as hooked:
        yield Observed(hooked, step_receiver)
