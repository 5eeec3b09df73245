"""The event loop: owns how names are resolved, that no clock stops it, and that a forked child does not close it."""

import _thread
import asyncio
import concurrent.futures.thread  # noqa: F401 -- asyncio imports it late, and that fails while the interpreter exits
import contextlib
import contextvars
import functools
import math
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from opentelemetry import context as otel_context

from otel_step_hook.delivery.clock import monotonic

# Keep the process's HTTP instrumentations from adding spans of their own and replacing our
# `traceparent`. Private in OpenTelemetry's API, and the only way.
_NAMES = ("_SUPPRESS_HTTP_INSTRUMENTATION_KEY", "_SUPPRESS_INSTRUMENTATION_KEY")
_SUPPRESS = tuple(filter(None, (getattr(otel_context, name, None) for name in _NAMES)))
_WAKE_AGAIN = 0.02  # seconds after which a wake-up that has not been heard is repeated
_CLEAR_TIME = 0.5  # seconds that tasks which are no longer wanted get to end


class _LookUp(NamedTuple):
    """What is asked of the resolver."""

    host: Any
    port: Any
    family: int
    type: int
    proto: int
    flags: int


class EventLoop(asyncio.SelectorEventLoop):
    """An event loop that resolves names on daemon threads of its own, and is closed by the process that made it alone.

    The default executor's threads are joined at exit, so that a look-up that hangs keeps the
    process; and none can be started while the interpreter exits.
    """

    _pid = 0  # of the process that made it; 0 until it is made: there may be no descriptor left for it

    def __init__(self) -> None:
        # Where sockets are forbidden, as pytest-socket does it, this raises, and leaves nothing behind; socketpair(),
        # which comes next, leaves an open descriptor each time. Where there is none left, that is said there.
        with contextlib.suppress(OSError):
            socket.socket().close()
        self._woken_at = -math.inf  # monotonic time of a wake-up that has not been heard yet
        # With a thread each: as many as there are names to ask for, which is one, of the endpoint or of its proxy.
        self._look_ups: dict[_LookUp, asyncio.Future[list[Any]]] = {}
        super().__init__()
        self._pid = os.getpid()

    def __del__(self) -> None:
        # Closing takes the sockets out of the epoll, which is one object of the kernel for a parent and its
        # forked children: the parent would hear nothing any more.
        if self._pid == os.getpid():
            super().__del__()

    def time(self) -> float:
        """Monotonic seconds, by a clock that no test tool stops."""
        return monotonic()

    def wake(self, callback: Callable[[], None], context: contextvars.Context) -> None:
        """Have *callback* called soon, once after any number of calls. From any thread, signal handler or finaliser."""
        now = self.time()
        # Ctrl-C may come between the next two lines, once: so after a while it is repeated.
        if now - self._woken_at > _WAKE_AGAIN:
            self._woken_at = now
            with contextlib.suppress(RuntimeError):  # closed
                self.call_soon_threadsafe(self._on_wake, callback, context=context)

    def _on_wake(self, callback: Callable[[], None]) -> None:
        # In this order: who has something new after the first line wakes again.
        self._woken_at = -math.inf
        callback()

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        *,
        family: int = 0,
        type: int = 0,  # noqa: A002 -- asyncio's own name
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """As asyncio has it. A look-up that is under way is shared: where one hangs, another would hang beside it."""
        wanted = _LookUp(host, port, family, type, proto, flags)
        found = self._look_ups.get(wanted)
        if found is None:
            found = self._look_ups[wanted] = self.create_future()
            found.add_done_callback(functools.partial(self._looked_up, wanted))
            self._start_look_up(wanted, found)
        return await asyncio.shield(found)

    def _looked_up(self, wanted: _LookUp, found: "asyncio.Future[list[Any]]") -> None:
        del self._look_ups[wanted]
        found.exception()  # those who waited have it; there may be none

    def _start_look_up(self, wanted: _LookUp, found: "asyncio.Future[list[Any]]") -> None:
        try:
            _thread.start_new_thread(self._look_up, (wanted, found))
        except RuntimeError:  # the interpreter exits and starts no threads; nothing else is left to wait for
            self._look_up(wanted, found)

    def _look_up(self, wanted: _LookUp, found: "asyncio.Future[list[Any]]") -> None:
        try:
            settle = functools.partial(found.set_result, socket.getaddrinfo(*wanted))
        except Exception as error:  # noqa: BLE001 -- handed to those who wait
            settle = functools.partial(found.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits
            self.call_soon_threadsafe(settle)


def uninstrumented() -> contextvars.Context:
    """An empty context in which the process's HTTP instrumentations make no spans."""
    context = contextvars.Context()
    context.run(_suppress_instrumentation)
    return context


def _suppress_instrumentation() -> None:
    for key in _SUPPRESS:
        otel_context.attach(otel_context.set_value(key, value=True))


def run_in(
    loop: EventLoop,
    context: contextvars.Context,
    main: Callable[[], Coroutine[Any, Any, None]],
    on_fault: Callable[[dict[str, Any]], object],
) -> None:
    """Run *main* in *loop* and *context*, then end the tasks that are left and close the loop.

    *on_fault* gets what asyncio would log, as its exception handlers do. Raises what *main* raises.
    """
    loop.set_exception_handler(lambda _, circumstances: on_fault(circumstances))
    with contextlib.ExitStack() as ending:  # every part of it is done, whatever the others raise
        ending.callback(loop.close)
        ending.callback(lambda: loop.run_until_complete(_end_tasks()))
        loop.run_until_complete(loop.create_task(main(), context=context))


async def _end_tasks() -> None:
    """End the tasks that are left: those that a fault has left, and a look-up that hangs."""
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_CLEAR_TIME)
