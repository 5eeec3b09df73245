"""What the tests of delivery share: workers that are shut down at the end."""

from collections.abc import Callable, Iterator

import pytest
from delivering import WAIT, NewRig, Rig, threads, wait_until
from sending import Attempts

from otel_step_hook.delivery import runner
from otel_step_hook.delivery.sender import Transport
from otel_step_hook.delivery.transport import connector

# The transports that test_hostile.py and test_transport*.py run on, except for tests of one HTTP library. A second
# transport is added here.
TRANSPORTS = [pytest.param(Attempts(connector, "ProxyError", "ReadError", "RemoteProtocolError"), id="httpx")]


@pytest.fixture(params=TRANSPORTS)
def attempts(request: pytest.FixtureRequest) -> Attempts:
    """Makes attempts, over each kind of transport in turn."""
    made: Attempts = request.param
    return made


@pytest.fixture
def rigged() -> Iterator[NewRig]:
    """Makes workers, shuts them down at the end, and waits until their threads have ended."""
    made: list[Rig] = []

    def rig(connect: Callable[[], Transport] | None = None, **settings: object) -> Rig:
        made.append(Rig(connect, **settings))
        return made[-1]

    yield rig
    for one in made:
        one.worker.shutdown(WAIT)
    wait_until(lambda: not threads())


@pytest.fixture
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens the pause after a fault of the loop, which is a second in production."""
    monkeypatch.setattr(runner, "_PAUSE_AFTER_FAULT", 0.02)
