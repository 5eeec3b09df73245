"""What the tests of delivery share: workers that are shut down at the end, and rows of an outbox."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from delivering import WAIT, NewRig, Rig, threads, wait_until
from sending import Attempts
from storing import rows_of

from otel_step_hook.delivery import runner
from otel_step_hook.delivery.database import Database
from otel_step_hook.delivery.rows import EndpointRows
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


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """An open outbox."""
    made = Database(tmp_path / "steps.db")
    yield made
    made.close()


@pytest.fixture
def rows(database: Database) -> EndpointRows:
    """The rows of the endpoint "default", for the process "own"."""
    return rows_of(database)
