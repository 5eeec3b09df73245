"""The event loop: owns how names are resolved, and what becomes of its sockets in a forked child."""

import _thread
import asyncio
import concurrent.futures.thread  # noqa: F401 -- asyncio imports it late, and that fails while the interpreter exits
import contextlib
import functools
import os
import selectors
import socket
import weakref
from typing import Any, NamedTuple


class _LookUp(NamedTuple):
    """What is asked of the resolver."""

    host: Any
    port: Any
    family: int
    type: int
    proto: int
    flags: int


class EventLoop(asyncio.SelectorEventLoop):
    """An event loop that resolves names on daemon threads of its own, and can be given up in a forked child.

    The default executor's threads are joined at exit, so that a look-up that hangs keeps the
    process; and none can be started while the interpreter exits.
    """

    _is_made = False

    def __init__(self) -> None:
        self._polled = selectors.DefaultSelector()
        self._connections: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._look_ups: dict[_LookUp, asyncio.Future[list[Any]]] = {}
        super().__init__(self._polled)
        self._is_made = True

    def __del__(self) -> None:
        if self._is_made:  # it is not if there was no descriptor left, and asyncio stumbles over that
            super().__del__()

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """As asyncio has it."""
        self._connections.add(sock)  # before there is a connection: none is missed, whenever a fork comes
        await super().sock_connect(sock, address)

    def let_go(self) -> None:
        """In a forked child: give up what is the parent's without a word on it.

        The numbers of the descriptors stay taken, by nothing, because the objects that hold them
        still exist: whatever becomes of those does not reach the parent. OSError when no
        descriptor is left.
        """
        connected = [connection.fileno() for connection in tuple(self._connections)]
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in {*connected, *(self._polled.get_map() or ())}:  # no map once it is closed
            if number >= 0:
                os.dup2(nothing, number, inheritable=False)
        os.close(nothing)

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
        found.exception()  # whoever waited has it; nobody may have

    def _start_look_up(self, wanted: _LookUp, found: "asyncio.Future[list[Any]]") -> None:
        try:
            _thread.start_new_thread(self._look_up, (wanted, found))
        except RuntimeError:  # the interpreter exits and starts no threads; nothing else is left to wait for
            self._look_up(wanted, found)

    def _look_up(self, wanted: _LookUp, found: "asyncio.Future[list[Any]]") -> None:
        try:
            settle = functools.partial(found.set_result, socket.getaddrinfo(*wanted))
        except Exception as error:  # noqa: BLE001 -- handed to whoever waits
            settle = functools.partial(found.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits
            self.call_soon_threadsafe(settle)
