"""What all tests share."""

import os
import runpy
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# Settings of whoever runs the tests must not reach them.
for _name in [name for name in os.environ if name.startswith(("STEP_COMPLETE_", "OTEL_"))]:
    del os.environ[_name]

# Whoever runs the tests in the background has them ignore Ctrl-C, and every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests interrupt their own process, too.
runpy.run_path(str(Path(__file__).parent / "programs" / "interruptible.py"))

# A machine that is busy makes no test fail. Where a person waits, every run tries the same few examples; CI
# tries new ones each time, and says how to repeat a failure.
hypothesis.settings.register_profile("brief", deadline=None, max_examples=20, derandomize=True)
hypothesis.settings.register_profile("thorough", deadline=None, derandomize="CI" not in os.environ, print_blob=True)
hypothesis.settings.load_profile("brief")


@pytest.fixture
def anyio_backend() -> str:
    """Tests marked with `anyio` run on asyncio; those for trio say so themselves."""
    return "asyncio"


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on loopback that is taken, and on which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


pytest_plugins = ["otel_step_hook.testing", "starting"]
