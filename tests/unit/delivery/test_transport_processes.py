"""One attempt after a fork, and while the interpreter exits."""

import gc
import os
import signal
import socket
import threading
import warnings

import pytest
from processes import Run, StepReceiver
from sending import OK, Attempts, endpoint_to, secured, server_context

from otel_step_hook.delivery.loop import EventLoop
from otel_step_hook.delivery.sender import Transport
from otel_step_hook.testing import HostileReceiver, read_request

CHILD_LIMIT = 30  # seconds after which a child that hangs is killed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # the receiver's threads
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_child_has_a_connection_of_its_own(attempts: Attempts, trusted: str, scheme: str) -> None:
    """A process that forks continues on its connection, which its child neither uses nor closes."""
    users: list[tuple[bytes, socket.socket]] = []

    def behave(connection: socket.socket, _: threading.Event) -> None:
        while request := read_request(connection):
            users.append((request.partition(b"\r\n\r\n")[2], connection))
            connection.sendall(OK)

    def post(loop: EventLoop, transport: Transport, content: bytes) -> bool:
        return loop.run_until_complete(transport.post(content, [], timeout=10.0)).is_success

    behaviour = behave if scheme == "http" else secured(server_context("127.0.0.1"), behave)
    with HostileReceiver(behaviour) as receiver:
        connect = attempts.connector(endpoint_to(receiver.url.replace("http:", f"{scheme}:"), certificate=trusted))
        loop, transport = EventLoop(), connect()
        assert post(loop, transport, b"parent")
        child = os.fork()
        if not child:
            signal.alarm(CHILD_LIMIT)
            is_sent = False
            try:
                warnings.simplefilter("ignore", ResourceWarning)  # as in production: an error would end a finaliser
                del transport
                gc.collect()  # first without the loop: what is collected could still use it
                del loop
                gc.collect()
                is_sent = post(EventLoop(), connect(), b"child")
            finally:
                os._exit(0 if is_sent else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert post(loop, transport, b"parent")
        loop.run_until_complete(transport.aclose())
        loop.close()
    assert [content for content, _ in users] == [b"parent", b"child", b"parent"]
    (before, own, after) = (connection for _, connection in users)
    assert before is after is not own


AT_EXIT = """
import asyncio, atexit, ssl
from otel_step_hook import StepHookSettings
from otel_step_hook.delivery.loop import EventLoop
from otel_step_hook.settings import endpoints_of
{connector_import}
connect = connector(*endpoints_of(StepHookSettings()))
def attempt():
    known, made = set(sys.modules), []
    def note(frame, event, _):
        if frame.f_code is ssl.SSLContext.__new__.__code__:
            made.append("a TLS context")
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        runner.get_loop()
        sys.setprofile(note)
        transport = connect()
        result = runner.run(transport.post(b'{{"step_id": "step-0"}}', [], timeout=10.0))
        runner.run(transport.aclose())
        sys.setprofile(None)
    print(result.status_code, sorted({{*sys.modules}} - known) + made, threading.active_count())
atexit.register(attempt)
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_attempt_succeeds_while_the_interpreter_exits(
    attempts: Attempts, receiver: StepReceiver, run: Run, host: str
) -> None:
    """An attempt without threads succeeds, imports nothing and makes no TLS context."""
    program = AT_EXIT.format(connector_import=attempts.connector_import)
    ended = run(program, webhook=receiver.url.replace("127.0.0.1", host))
    assert (ended.code, ended.out, ended.err) == (0, ["204 [] 1"], "")
    assert receiver.steps == ["step-0"]
