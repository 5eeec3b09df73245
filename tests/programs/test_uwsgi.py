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


def _serve(
    receiver: StepReceiver, *options: str, workers: tuple[str, ...] = WORKERS, arrivals: int = 7, last: str = "6"
) -> Ended:
    """Serve seven requests, the *last* to this path, with these *workers*, wait for the webhooks, and send SIGTERM.

    The lines that are returned as those on stdout are the process ids of the workers that have served them.
    """
    port = _free_port()
    served = ("--http-socket", f"127.0.0.1:{port}", "--module", "served:application", "--need-app")
    usual = ("--enable-threads", "--die-on-term")
    limits = {"SHUTDOWN_TIMEOUT": LIMIT, "GIVE_UP_AFTER": LIMIT, "INITIAL_BACKOFF": 2}  # seconds
    settings = {f"STEP_COMPLETE_{name}": str(value) for name, value in limits.items()}
    program = Program(UWSGI, *served, *usual, *workers, *options, STEP_COMPLETE_WEBHOOK=receiver.url, **settings)
    try:
        assert program.stderr is not None
        log, pids = "", set()
        loads = 2 if "--lazy-apps" in options else 1
        while f"spawned uWSGI worker {workers[-1]}" not in log or log.count("WSGI app 0") < loads:
            log += program.stderr.readline() or pytest.fail(log)
        for path in (*range(6), last):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=LIMIT) as answer:
                pids.add(answer.read().decode())
        # Before the signal: of a worker that is in a request uWSGI runs no exit handlers.
        receiver.wait_for(arrivals)
        program.send_signal(signal.SIGTERM)
        ended = program.ended()
        return ended._replace(err=log + ended.err, out=sorted(pids))
    finally:
        program.kill_group()


SERVED = [f"request-{number}" for number in range(7)]


def test_an_application_that_is_loaded_in_the_workers(receiver: StepReceiver) -> None:
    """With lazy-apps every step is delivered, also those of load time, and SIGTERM ends the workers."""
    ended = _serve(receiver, "--lazy-apps", arrivals=9)
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
    ended = _serve(receiver, workers=("--processes", "1"), arrivals=8)
    assert (ended.code, receiver.steps) == (30, ["loaded", *SERVED])  # 30 is UWSGI_END_CODE, which a master turns to 0
    assert ended.err.count(NOT_DELIVERED) == 1


@pytest.mark.slow
@pytest.mark.parametrize("beside", [("--mule=beside.py",), ("--spooler=.", "--spooler-import=beside.py")])
def test_a_process_beside_the_workers(receiver: StepReceiver, tmp_path: Path, beside: tuple[str, ...]) -> None:
    """Mules and spoolers deliver their steps, although they have the master's worker id."""
    options = [option.replace("--spooler=.", f"--spooler={tmp_path}") for option in beside]
    ended = _serve(receiver, "--lazy-apps", *options, arrivals=10)
    assert (ended.code, receiver.steps) == (0, ["beside", "loaded", "loaded", *SERVED])
    assert NOT_DELIVERED not in ended.err


@pytest.mark.slow
def test_workers_that_end_with_a_queue(receiver: StepReceiver) -> None:
    """SIGTERM of the master ends workers whose steps were refused once: they deliver before that."""
    receiver.refuses_first = True
    assert _serve(receiver).code == 0
    assert receiver.steps == sorted(SERVED * 2)


@pytest.mark.slow
def test_workers_that_are_replaced(receiver: StepReceiver) -> None:
    """With max-requests a worker delivers before it is replaced."""
    receiver.refuses_first = True
    # By default a worker is not replaced in its first minute. All webhooks arrive before the SIGTERM: one that gets it
    # while it delivers at its end stops doing so.
    ended = _serve(receiver, "--max-requests", "2", "--min-worker-lifetime", "0", arrivals=14)
    assert (ended.code, receiver.steps) == (0, sorted(SERVED * 2))
    assert len(ended.out) > 2


def test_a_signal_for_the_thread_that_delivers(receiver: StepReceiver) -> None:
    """The thread does not get it: uWSGI would exit on it, and hang. The worker goes on until the master ends it."""
    ended = _serve(receiver, "--lazy-apps", arrivals=9, last="signal")
    assert (ended.code, receiver.steps) == (0, ["loaded", "loaded", *SERVED[:6], "request-signal"])
