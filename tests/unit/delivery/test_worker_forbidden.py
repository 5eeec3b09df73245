"""The worker while pytest-socket forbids sockets, as it does in an application's tests."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_socket
from delivering import AT_ONCE, WAIT, NewRig, event, seconds, threads, wait_until
from support import log_lines

from otel_step_hook.testing import ScriptedReceiver

# pytest-socket warns when it raises.
pytestmark = pytest.mark.filterwarnings("ignore:A test tried to use socket:UserWarning")

_DESCRIPTORS = Path("/proc/self/fd")


@pytest.fixture(params=[False, True], ids=["all", "but for unix"], autouse=True)
def _forbidden(request: pytest.FixtureRequest, step_receiver: ScriptedReceiver) -> Iterator[None]:
    """Forbids all sockets, or all but those that asyncio makes for itself."""
    assert step_receiver.url  # the receiver's socket is made before
    pytest_socket.disable_socket(allow_unix_socket=request.param)
    yield
    pytest_socket.enable_socket()


def test_each_step_is_discarded_at_once(
    rigged: NewRig, step_receiver: ScriptedReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """One line gives the reason, the rest is counted; once sockets are allowed, steps are delivered again."""
    rig = rigged(webhook=step_receiver.url)
    for number in range(3):
        rig.submit(event(f"step-{number}"))
        assert seconds(lambda: rig.worker.flush(WAIT)) < AT_ONCE
        assert len(rig.results) == number + 1
    assert {(result, error) for _, result, error in rig.results} == {("discarded", "SocketBlockedError")}
    why, first = log_lines(caplog)
    assert why.startswith("ERROR no event loop can be made: SocketBlockedError <- ")
    assert first.startswith("ERROR discarded step step-0: SocketBlockedError")
    pytest_socket.enable_socket()
    rig.deliver(event("allowed"))
    assert rig.results[3:] == [("allowed", "delivered", None)]


def test_a_shutdown_returns_at_once(
    rigged: NewRig, step_receiver: ScriptedReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """A shutdown returns at once, logs the counts of repeated lines, and ends the thread."""
    rig = rigged(webhook=step_receiver.url)
    rig.submit(event(), event(), event())
    assert seconds(lambda: rig.worker.shutdown(WAIT)) < AT_ONCE
    assert [result for _, result, _ in rig.results] == ["discarded"] * 3
    assert any(line.startswith("ERROR 2 more like this: discarded step") for line in log_lines(caplog))
    wait_until(lambda: not threads())
    rig.submit(event("late"))
    wait_until(lambda: "dropped a step (shutdown, endpoint default)" in caplog.text and not threads())


@pytest.mark.skipif(not _DESCRIPTORS.exists(), reason="the system does not say how many descriptors are open")
def test_no_descriptor_is_left(rigged: NewRig, step_receiver: ScriptedReceiver) -> None:
    """An event loop that cannot be made leaves no descriptor open."""
    rig = rigged(webhook=step_receiver.url)
    gc.collect()
    before = len(list(_DESCRIPTORS.iterdir()))
    for _ in range(20):
        rig.deliver()
    gc.collect()
    assert len(list(_DESCRIPTORS.iterdir())) <= before
