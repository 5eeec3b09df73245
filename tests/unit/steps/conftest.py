"""What the tests of steps share."""

from collections.abc import Iterator

import pytest
from stepping import Steps
from support import pipeline

from otel_step_hook.testing import ScriptedReceiver


@pytest.fixture
def steps(step_receiver: ScriptedReceiver) -> Iterator[Steps]:
    """Steps of a provider of their own, whose events go to the receiver."""
    with pipeline(step_receiver.url, payload="full") as hooked:
        yield Steps(hooked, step_receiver)
