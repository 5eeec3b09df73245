"""The event loop of the worker thread: owns its clock, its name look-ups, and its end."""

import asyncio
import concurrent.futures.thread  # noqa: F401 -- asyncio imports it late; at exit that fails (python/cpython#86813)
import contextlib
import contextvars
import functools
import math
import os
import selectors
import socket
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from opentelemetry import context as otel_context

from otel_step_hook import _sdk
from otel_step_hook.delivery import native
from otel_step_hook.delivery.clock import monotonic

_WAKE_AGAIN = 0.02  # seconds after which a wake-up that the loop has not answered is repeated
_MAX_WAKE_UPS = 4096  # read at once
_CLEAR_TIME = 0.5  # seconds that cancelled tasks get to end
_MAX_UNPOLLED = 8  # turns of the loop in a row that look at no socket; a delivery takes up to ten turns


class _LookUp(NamedTuple):
    """The arguments of one call of `socket.getaddrinfo`."""

    host: Any
    port: Any
    family: int
    type: int
    proto: int
    flags: int


class WakeUp:
    """Wakes the event loops of one runner, one after the other, without giving the interpreter's lock away.

    `call_soon_threadsafe` writes to a socket, and waits for that lock afterwards: 5 ms and more for each step where
    other threads compute. Raises OSError when no descriptor is free.
    """

    _reader = _writer = -1

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._sent_at = -math.inf  # monotonic time of a wake-up that the loop has not answered yet

    def __del__(self) -> None:
        # Not earlier: a thread that wakes a loop which has just ended must not write to another file.
        if self._writer >= 0:
            os.close(self._reader)
            os.close(self._writer)

    def send(self) -> None:
        """Wake the loop, once for several calls. From any thread, signal handler or finaliser."""
        now = monotonic()
        # KeyboardInterrupt may come between the next two statements, so a wake-up is trusted for a short time only.
        if now - self._sent_at > _WAKE_AGAIN:
            self._sent_at = now
            native.write_byte(self._writer)

    def call(self, callback: Callable[[], None]) -> None:
        """Let the running event loop call *callback* at each wake-up."""
        asyncio.get_running_loop().add_reader(self._reader, self._on_wake, callback)

    def _on_wake(self, callback: Callable[[], None]) -> None:
        # First: a wake-up that came between the next two lines would be read, and the flag say that it is to come.
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, _MAX_WAKE_UPS)
        # An event that is submitted after this line wakes the loop again; `callback` finds those from before it.
        self._sent_at = -math.inf
        callback()


class _FewerPolls:
    """Makes a selector skip polls while callbacks are ready, which asyncio asks for by a timeout of 0.

    Each poll gives the interpreter's lock away, and waits for it again: for 5 ms where other threads compute.
    """

    _unpolled = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout == 0 and self._unpolled < _MAX_UNPOLLED:
            self._unpolled += 1
            return []
        self._unpolled = 0
        ready: list[Any] = super().select(timeout)  # type: ignore[misc]  # -- the selector's, see below
        return ready


@functools.lru_cache(maxsize=2)
def _with_fewer_polls(base: type) -> Callable[[], Any]:
    return type(base.__name__, (_FewerPolls, base), {})


class EventLoop(asyncio.SelectorEventLoop):
    """An event loop that resolves names on its own daemon threads, and that a forked child does not close.

    asyncio resolves names on the threads of its default executor. They are joined at exit, so a look-up that hangs
    keeps the process alive (python/cpython#80961); and the executor takes no work while the interpreter exits.
    """

    _pid = 0  # of the process that made the loop; 0 while `__init__` runs, which fails if no descriptor is free

    def __init__(self) -> None:
        # Where a tool such as pytest-socket forbids sockets, this raises and leaves nothing open. `socketpair`, which
        # asyncio calls below, would leave a descriptor open each time. OSError (no descriptor is free) is raised there.
        with contextlib.suppress(OSError):
            socket.socket().close()
        # The look-ups under way, each on its own thread. There is one name to look up: the endpoint's or its proxy's.
        self._look_ups: dict[_LookUp, asyncio.Future[list[Any]]] = {}
        super().__init__(_with_fewer_polls(selectors.DefaultSelector)())  # as it is now: monkey patching replaces it
        self._pid = os.getpid()

    def __del__(self) -> None:
        # A forked child shares the kernel's epoll object with its parent. Closing the loop there would remove the
        # parent's sockets from it. asyncio does not support forking beside a loop (python/asyncio#347).
        if self._pid == os.getpid():
            super().__del__()

    def time(self) -> float:
        """Return monotonic seconds, by a clock that no test tool stops."""
        return monotonic()

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
        """Like asyncio's method, but share a look-up that is under way: where one hangs, a second would hang too."""
        wanted = _LookUp(host, port, family, type, proto, flags)
        found = self._look_ups.get(wanted)
        if found is None:
            found = self._look_ups[wanted] = self.create_future()
            found.add_done_callback(functools.partial(self._looked_up, wanted))
            self._start_look_up(wanted, found)
        return await asyncio.shield(found)

    def _looked_up(self, wanted: _LookUp, found: "asyncio.Future[list[Any]]") -> None:
        del self._look_ups[wanted]
        found.exception()  # the callers have it; asyncio would log it if there are none

    def _start_look_up(self, wanted: _LookUp, found: "asyncio.Future[list[Any]]") -> None:
        try:
            native.start_thread(self._look_up, wanted, found)
        except RuntimeError:  # the interpreter exits and starts no threads (python/cpython#113964): block the loop
            self._look_up(wanted, found)

    def _look_up(self, wanted: _LookUp, found: "asyncio.Future[list[Any]]") -> None:
        try:
            settle = functools.partial(found.set_result, native.getaddrinfo(*wanted))
        except Exception as error:  # noqa: BLE001 -- raised in the callers
            settle = functools.partial(found.set_exception, error)
        except BaseException as error:  # SystemExit, or gevent's Timeout, which would end the loop in the callers
            settle = functools.partial(found.set_exception, OSError(f"the look-up raised {type(error).__name__}"))
            if isinstance(error, KeyboardInterrupt):  # on the main thread, which runs the loop at the end of a shutdown
                raise
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has been closed: no caller is left
                self.call_soon_threadsafe(settle)


def uninstrumented() -> contextvars.Context:
    """Return an empty context in which HTTP instrumentations make no spans."""
    context = contextvars.Context()
    context.run(_suppress_instrumentation)
    return context


def _suppress_instrumentation() -> None:
    for key in _sdk.suppress_keys():
        otel_context.attach(otel_context.set_value(key, value=True))


def run_in(
    loop: EventLoop,
    context: contextvars.Context,
    main: Callable[[], Coroutine[Any, Any, None]],
    on_fault: Callable[[dict[str, Any]], object],
) -> None:
    """Run *main* in *loop* and *context*, then end the tasks that are left and close the loop.

    *on_fault* gets the context of asyncio's exception handler, in place of the log. Exceptions of *main* are raised.
    """
    loop.set_exception_handler(lambda _, circumstances: on_fault(circumstances))
    with contextlib.ExitStack() as ending:  # all three are called, even if one raises
        ending.callback(loop.close)
        ending.callback(lambda: loop.run_until_complete(_end_tasks()))
        loop.run_until_complete(loop.create_task(main(), context=context))


async def _end_tasks() -> None:
    """Cancel the tasks that are left, after a fault or in a look-up that hangs, and wait for their end."""
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_CLEAR_TIME)
