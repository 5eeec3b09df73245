"""What the tests of delivery share: workers that are shut down at the end."""

from collections.abc import Callable, Iterator

import pytest
from delivering import WAIT, NewRig, Rig, threads, wait_until

from otel_step_hook.delivery import worker
from otel_step_hook.delivery.dispatch import Sender


@pytest.fixture
def rigged() -> Iterator[NewRig]:
    """Makes workers; at the end they are shut down, and no thread of theirs is left."""
    made: list[Rig] = []

    def rig(connect: Callable[[], Sender] | None = None, **settings: object) -> Rig:
        made.append(Rig(connect, **settings))
        return made[-1]

    yield rig
    for one in made:
        one.worker.shutdown(WAIT)
    wait_until(lambda: not threads())


@pytest.fixture
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose loop has died starts the next one after less time than in production, where it is a second."""
    monkeypatch.setattr(worker, "_PAUSE_AFTER_FAULT", 0.02)
