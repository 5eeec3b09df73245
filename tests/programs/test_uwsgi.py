"""uWSGI, which forks its workers without Python's knowledge, and may load the application before that or after."""

import signal
import socket
import sys
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
from processes import LIMIT, Ended, Program, StepReceiver

UWSGI = str(Path(sys.executable).with_name("uwsgi"))
NOT_DELIVERED = "a step ended in uWSGI's master process, where no thread may run before it forks its workers"


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port: int = server.getsockname()[1]
        return port


def _serve(receiver: StepReceiver, *options: str) -> Ended:
    """Serve seven requests with two workers, wait for their webhooks, and send SIGTERM."""
    port = _free_port()
    served = ("--http-socket", f"127.0.0.1:{port}", "--module", "served:application", "--need-app")
    workers = ("--master", "--processes", "2", "--enable-threads", "--die-on-term")
    program = Program(UWSGI, *served, *workers, *options, STEP_COMPLETE_WEBHOOK=receiver.url)
    try:
        assert program.stderr is not None
        log = ""
        loads = 2 if "--lazy-apps" in options else 1
        while "spawned uWSGI worker 2" not in log or log.count("WSGI app 0") < loads:
            log += program.stderr.readline() or pytest.fail(log)
        for path in range(7):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=LIMIT).close()
        # Before the signal: of a worker that is in a request uWSGI runs no exit handlers.
        receiver.wait_for(9 if "--lazy-apps" in options else 7)
        program.send_signal(signal.SIGTERM)
        ended = program.ended()
        return ended._replace(err=log + ended.err)
    finally:
        program.kill_group()


SERVED = [f"request-{number}" for number in range(7)]


def test_an_application_that_is_loaded_in_the_workers(receiver: StepReceiver) -> None:
    """With lazy-apps every step is delivered, also those of load time, and SIGTERM ends the workers."""
    ended = _serve(receiver, "--lazy-apps")
    assert (ended.code, receiver.steps) == (0, ["loaded", "loaded", *SERVED])
    assert NOT_DELIVERED not in ended.err


def test_an_application_that_is_loaded_before_the_fork(receiver: StepReceiver) -> None:
    """The workers serve and deliver; an ERROR line names the step that ended in the master, before the fork."""
    ended = _serve(receiver)
    assert (ended.code, receiver.steps) == (0, SERVED)
    assert ended.err.count(NOT_DELIVERED) == 1
