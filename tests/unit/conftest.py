"""What the unit tests share: pipelines whose hooks send to `step_receiver`."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import support
from support import NewPipeline, Pipeline

from otel_step_hook.testing import ScriptedReceiver


@pytest.fixture
def pipeline(step_receiver: ScriptedReceiver) -> Iterator[NewPipeline]:
    """Makes pipelines with the settings given by name, and shuts them down at the end."""
    with ExitStack() as made:
        yield lambda url=step_receiver.url, **options: made.enter_context(support.pipeline(url, **options))


@pytest.fixture
def hooked(pipeline: NewPipeline) -> Pipeline:
    """A pipeline with the default settings."""
    return pipeline()
