"""What the tests of delivery share: workers that are shut down at the end, and rows of an outbox."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from delivering import WAIT, NewRig, Rig, threads, wait_until
from sending import Attempts
from storing import Clock, NewOutbox, outbox, rows_of

from otel_step_hook.delivery import aiohttp_transport, outbox_file, runner
from otel_step_hook.delivery.database import Database
from otel_step_hook.delivery.outbox import OutboxStore
from otel_step_hook.delivery.rows import EndpointRows
from otel_step_hook.delivery.sender import Transport
from otel_step_hook.delivery.transport import connector

# The transports that test_hostile.py and test_transport*.py run on, except for tests of one HTTP library. A second
# transport is added here.
TRANSPORTS = [
    pytest.param(Attempts(connector, "ProxyError", "ReadError", "RemoteProtocolError"), id="httpx"),
    pytest.param(
        Attempts(
            aiohttp_transport.connector,
            "ClientResponseError",
            "ServerDisconnectedError",
            "ClientOSError",
            "ClientConnectionResetError",
            "ClientHttpProxyError",
        ),
        id="aiohttp",
        marks=pytest.mark.slow,  # the tests of whole processes, which a person waits for, use it
    ),
]


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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a file that is not there yet."""
    return tmp_path / "steps.db"


@pytest.fixture
def clock() -> Clock:
    """The clock that the stores of a test go by."""
    return Clock()


@pytest.fixture
def new_outbox(path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[NewOutbox]:
    """Makes stores at *path*, which do not wait for a file that is locked, and closes them at the end."""
    monkeypatch.setattr(outbox_file, "BUSY_TIME", 0.0)
    made: list[OutboxStore] = []

    def new(endpoint: str = "default", **more: object) -> OutboxStore:
        made.append(outbox(path, clock, endpoint, **more))  # type: ignore[arg-type]  # -- by name
        return made[-1]

    yield new
    for store in made:
        store.close()
