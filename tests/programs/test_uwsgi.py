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
WORKERS = ("--master", "--processes", "2")


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port: int = server.getsockname()[1]
        return port


def _serve(receiver: StepReceiver, *options: str, workers: tuple[str, ...] = WORKERS, others: int = 0) -> Ended:
    """Serve seven requests with these *workers*, wait for their webhooks and *others*, and send SIGTERM."""
    port = _free_port()
    served = ("--http-socket", f"127.0.0.1:{port}", "--module", "served:application", "--need-app")
    usual = ("--enable-threads", "--die-on-term")
    program = Program(UWSGI, *served, *usual, *workers, *options, STEP_COMPLETE_WEBHOOK=receiver.url)
    try:
        assert program.stderr is not None
        log = ""
        loads = 2 if "--lazy-apps" in options else 1
        while f"spawned uWSGI worker {workers[-1]}" not in log or log.count("WSGI app 0") < loads:
            log += program.stderr.readline() or pytest.fail(log)
        for path in range(7):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=LIMIT).close()
        # Before the signal: of a worker that is in a request uWSGI runs no exit handlers.
        receiver.wait_for(7 + others)
        program.send_signal(signal.SIGTERM)
        ended = program.ended()
        return ended._replace(err=log + ended.err)
    finally:
        program.kill_group()


SERVED = [f"request-{number}" for number in range(7)]


def test_an_application_that_is_loaded_in_the_workers(receiver: StepReceiver) -> None:
    """With lazy-apps every step is delivered, also those of load time, and SIGTERM ends the workers."""
    ended = _serve(receiver, "--lazy-apps", others=2)
    assert (ended.code, receiver.steps) == (0, ["loaded", "loaded", *SERVED])
    assert NOT_DELIVERED not in ended.err


def test_an_application_that_is_loaded_before_the_fork(receiver: StepReceiver) -> None:
    """The workers serve and deliver; an ERROR line names the step that ended in the master, before the fork."""
    ended = _serve(receiver)
    assert (ended.code, receiver.steps) == (0, SERVED)
    assert ended.err.count(f"{NOT_DELIVERED}: it is delivered only if this process becomes a worker; load the") == 1


@pytest.mark.slow
def test_a_server_without_a_master(receiver: StepReceiver) -> None:
    """The process that loads the application becomes the worker, and delivers the step of load time with the next."""
    ended = _serve(receiver, workers=("--processes", "1"), others=1)
    assert (ended.code, receiver.steps) == (30, ["loaded", *SERVED])  # 30 is UWSGI_END_CODE, which a master turns to 0
    assert ended.err.count(NOT_DELIVERED) == 1


@pytest.mark.slow
@pytest.mark.parametrize("beside", [("--mule=beside.py",), ("--spooler=.", "--spooler-import=beside.py")])
def test_a_process_beside_the_workers(receiver: StepReceiver, tmp_path: Path, beside: tuple[str, ...]) -> None:
    """Mules and spoolers deliver their steps, although they have the master's worker id."""
    options = [option.replace("--spooler=.", f"--spooler={tmp_path}") for option in beside]
    ended = _serve(receiver, "--lazy-apps", *options, others=3)
    assert (ended.code, receiver.steps) == (0, ["beside", "loaded", "loaded", *SERVED])
    assert NOT_DELIVERED not in ended.err
