"""What the tests of delivery share: workers that are shut down at the end."""

from collections.abc import Callable, Iterator

import pytest
from delivering import WAIT, NewRig, Rig, threads, wait_until
from sending import Attempts

from otel_step_hook.delivery import runner
from otel_step_hook.delivery.sender import Transport
from otel_step_hook.delivery.transport import connector

# What every transport promises: test_hostile.py and test_transport*.py, but for those of one library. A second
# transport is one more line.
TRANSPORTS = [pytest.param(Attempts(connector, "ProxyError", "ReadError", "RemoteProtocolError"), id="httpx")]


@pytest.fixture(params=TRANSPORTS)
def attempts(request: pytest.FixtureRequest) -> Attempts:
    """Makes attempts over transports of each kind."""
    made: Attempts = request.param
    return made


@pytest.fixture
def rigged() -> Iterator[NewRig]:
    """Makes workers; at the end they are shut down, and no thread of theirs is left."""
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
    """A worker whose loop has died starts the next one after less time than in production, where it is a second."""
    monkeypatch.setattr(runner, "_PAUSE_AFTER_FAULT", 0.02)
