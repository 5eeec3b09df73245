"""Forks in the way that its argument names. Prints the child's exit code, and ends as an application does."""

import asyncio
import gc
import os
import ssl
import subprocess
import sys
import threading
import time
from types import FrameType

from application import end_step, end_steps, provider, wait_to_be_told
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import set_span_in_context

from otel_step_hook import StepHookProcessor
from otel_step_hook.delivery.loop import EventLoop


def _forked(code: int) -> int:
    """What `os.fork` returns; the child ends with *code*, by itself."""
    pid = os.fork()
    if pid == 0:
        end_steps("child", 2)
        sys.exit(code)
    return pid


def _print_exit_code(pid: int) -> None:
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def idle() -> None:
    """No step has ended before."""
    _print_exit_code(_forked(3))


def at_any_moment() -> None:
    """The first step of a hook has just ended, and its delivery is somewhere else each time."""
    for number in range(16):
        hook = StepHookProcessor()
        provider = TracerProvider()
        provider.add_span_processor(hook)
        tracer = provider.get_tracer("tests")
        tracer.start_span("step", attributes={"step_id": f"parent-{number}"}).end()
        until = time.monotonic() + number * 0.0006  # seconds; the whole takes about 10 ms
        while time.monotonic() < until:
            pass
        pid = os.fork()
        if pid == 0:
            tracer.start_span("step", attributes={"step_id": f"child-{number}"}).end()
            sys.exit(0 if provider.force_flush() else 1)
        assert os.waitpid(pid, 0)[1] == 0
        provider.shutdown()


def nothing_late() -> None:
    """Print what is imported, and which TLS contexts are made, after a hook has been."""
    known, made = set(sys.modules), []

    def note(frame: FrameType, _event: str, _: object) -> None:
        if frame.f_code is ssl.SSLContext.__new__.__code__:
            made.append("a TLS context")

    threading.setprofile(note)
    end_step("parent-0")
    provider.shutdown()
    print(sorted({*sys.modules} - known) + made)


def delivered() -> None:
    """A step has been delivered, and its connection is kept."""
    end_step("parent-0")
    provider.force_flush()
    pid = _forked(3)
    _print_exit_code(pid)
    end_step("parent-1")


def flying() -> None:
    """Deliveries are in flight and others wait."""
    end_steps("parent", 12)
    wait_to_be_told()
    _print_exit_code(_forked(3))


def collected() -> None:
    """The child drops an event loop of the parent's, which goes on to use it."""
    loop = EventLoop()
    loop.run_until_complete(asyncio.sleep(0))
    pid = os.fork()
    if pid == 0:
        del loop
        gc.collect()
        sys.exit(3)
    _print_exit_code(pid)
    # The answer comes from a thread, which has to wake the loop.
    print(loop.run_until_complete(asyncio.wait_for(loop.getaddrinfo("127.0.0.1", 80), 20))[0][4][0])
    loop.close()


def generations() -> None:
    """A child forks as well, and each of the three goes on."""
    end_step("parent-0")
    provider.force_flush()
    pid = os.fork()
    if pid == 0:
        end_step("child-0")
        provider.force_flush()
        grandchild = os.fork()
        if grandchild == 0:
            end_step("grandchild-0")
            sys.exit(4)
        end_step("child-1")
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
    end_step("parent-1")
    _print_exit_code(pid)


def from_thread() -> None:
    """A thread forks: the child goes on in that thread alone."""
    end_step("parent-0")
    provider.force_flush()

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            end_step("child-0")
            provider.force_flush()
            os._exit(3)
        _print_exit_code(pid)

    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    end_step("parent-1")


def cut_off() -> None:
    """The child ends by `os._exit`, with deliveries in flight."""
    end_step("parent-0")
    provider.force_flush()
    pid = os.fork()
    if pid == 0:
        end_step("child-delivered")
        provider.force_flush()
        print("delivered", flush=True)
        wait_to_be_told()
        end_steps("child-lost", 12)
        wait_to_be_told()
        os._exit(5)
    _print_exit_code(pid)
    end_step("parent-1")


def held() -> None:
    """A step waits, as a part of another one may, for the end of that one when the process forks."""
    node = {"metadata": '{"langgraph_node": "plan", "langgraph_checkpoint_ns": "parent-plan"}'}
    tracer = provider.get_tracer("openinference.instrumentation.langchain")
    outer = tracer.start_span("plan", attributes=node)
    tracer.start_span("plan", set_span_in_context(outer), attributes=node).end()
    _print_exit_code(_forked(3))
    outer.end()


def in_subprocess() -> None:
    """Another program is started, with a function that runs between fork and exec."""
    end_step("parent-0")
    provider.force_flush()
    subprocess.run([sys.executable, "-c", "pass"], check=True, preexec_fn=lambda: end_step("child-0"))
    end_step("parent-1")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
