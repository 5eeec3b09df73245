"""``STEP_COMPLETE_DRAIN_ON_SIGTERM`` beside the handlers of applications and servers."""

import signal
import urllib.request

import pytest
from processes import Run, Start, StepReceiver

STEPS = sorted(f"step-{number}" for number in range(60))
DRAINING = {"drain_on_sigterm": "true", "shutdown_timeout": 30}  # seconds, less than a test waits for the end
NO_EFFECT = (
    "STEP_COMPLETE_DRAIN_ON_SIGTERM has no effect: {}; what is queued is delivered if the process exits by itself "
    "after the signal, or where the application calls shutdown() of its TracerProvider\n"
)


def test_a_handler_that_stands_already(run: Run) -> None:
    """It is left as it is; one line says so for all hooks."""
    ended = run("""
        import signal
        def own(*_): ...
        signal.signal(signal.SIGTERM, own)
        for _ in range(3):
            StepHookProcessor(drain_on_sigterm=True)
        print(signal.getsignal(signal.SIGTERM) is own)
    """)
    assert (ended.code, ended.out) == (0, ["True"])
    assert ended.err == NO_EFFECT.format("SIGTERM has a handler already")


@pytest.mark.slow
def test_a_hook_that_is_made_on_another_thread(run: Run) -> None:
    """It cannot set a handler; one line says so for all hooks."""
    ended = run("""
        import signal
        for _ in range(3):
            thread = threading.Thread(target=StepHookProcessor, kwargs={"drain_on_sigterm": True})
            thread.start()
            thread.join()
        print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
    """)
    assert (ended.code, ended.out) == (0, ["True"])
    assert ended.err == NO_EFFECT.format("the hook was not made on the main thread")


@pytest.mark.slow
def test_a_handler_that_is_set_later(receiver: StepReceiver, start: Start) -> None:
    """A handler of asyncio replaces that of the hook: the application ends by itself, and its exit drains."""
    receiver.gate.clear()
    program = start(
        """
        import asyncio, signal
        async def main():
            stopped = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
            end_steps("step", 60)
            StepHookProcessor()  # has nothing to say: the handler was set once
            await stopped.wait()
            return 3
        sys.exit(asyncio.run(main()))
        """,
        **DRAINING,
    )
    receiver.wait_for(8)
    program.send_signal(signal.SIGTERM)
    receiver.gate.set()
    ended = program.ended()
    assert (ended.code, ended.err, receiver.steps) == (3, "", STEPS)


# Servers


def test_uvicorn_in_a_script(receiver: StepReceiver, start: Start) -> None:
    """After its graceful stop uvicorn raises the signal again, for the handler of the hook."""
    receiver.gate.clear()
    server = start("asgi", **DRAINING)
    urllib.request.urlopen(server.read_error(r"http://127.0.0.1:\d+")).close()
    receiver.wait_for(8)
    server.send_signal(signal.SIGTERM)
    assert server.read_line() == "stopped"
    receiver.gate.set()
    ended = server.ended()
    assert (ended.code, ended.noise, receiver.steps) == (-signal.SIGTERM, [], STEPS)


def test_gunicorn_with_uvicorn_workers(receiver: StepReceiver, start: Start) -> None:
    """Without preload, each worker makes its hook where SIGTERM has its default handler, and drains."""
    receiver.gate.clear()
    arguments = ("--config", "serving.py", "--worker-class", "uvicorn_worker.UvicornWorker", "asgi:app")
    server = start("gunicorn", *arguments, **DRAINING)
    port, *ready = [server.read_line() for _ in range(3)]
    assert ready == ["ready", "ready"]
    urllib.request.urlopen(f"http://127.0.0.1:{port}").close()
    receiver.wait_for(8)
    server.send_signal(signal.SIGTERM)
    assert [server.read_line() for _ in range(2)] == ["stopped", "stopped"]
    receiver.gate.set()
    ended = server.ended()
    assert (ended.code, receiver.steps) == (0, STEPS)
    # The workers do not close gunicorn's listening socket, which Python reports on stderr.
    assert [line for line in ended.noise if f", {port})" not in line] == []
