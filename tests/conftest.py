"""Settings and fixtures of all tests."""

import os
import runpy
import signal
import socket
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

# Environment variables of the shell that runs pytest must not reach the code under test.
for _name in [name for name in os.environ if name.startswith(("STEP_COMPLETE_", "OTEL_", "TEMPORAL_"))]:
    del os.environ[_name]

# A shell starts background jobs with SIGINT ignored, and child processes inherit that: restore Python's handler.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Some tests send SIGINT to their own process.
runpy.run_path(str(Path(__file__).parent / "programs" / "interruptible.py"))

# No deadline, and no check of how long examples take to make: a busy machine must not fail a test. "brief", the
# default, tries the same few examples in every run; "thorough" tries new ones in each CI run, and prints how to repeat
# a failure.
_any_speed = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("brief", _any_speed, max_examples=20, derandomize=True)
hypothesis.settings.register_profile("thorough", _any_speed, derandomize="CI" not in os.environ, print_blob=True)
hypothesis.settings.load_profile("brief")


@pytest.fixture
def anyio_backend() -> str:
    """The backend of tests that are marked with `anyio`: asyncio, unless a test names another one."""
    return "asyncio"


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A loopback port on which nothing listens; it stays bound, so that nothing else can take it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


pytest_plugins = ["otel_step_hook.testing", "starting"]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape lone surrogates in what hypothesis reports of its examples: pytest-xdist cannot send them."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
