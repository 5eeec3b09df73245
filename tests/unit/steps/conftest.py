"""Fixtures of the tests of steps."""

from collections.abc import Iterator

import pytest
from stepping import Steps
from support import pipeline

from otel_step_hook.testing import ScriptedReceiver


@pytest.fixture
def steps(step_receiver: ScriptedReceiver) -> Iterator[Steps]:
    """Steps on a new provider, whose events are sent to the receiver."""
    with pipeline(step_receiver.url, payload="full") as hooked:
        yield Steps(hooked, step_receiver)
