"""The timeout of one attempt."""

import asyncio
from types import TracebackType

# Turns of the loop before an attempt times out. A process that was stopped reads its answer by two polls, and our own
# loop polls in every ninth turn at least.
LAST_TURNS = 60


class Deadline:
    """Raises TimeoutError after *timeout* seconds, but first lets the attempt read an answer that has arrived.

    While a process is stopped (SIGSTOP, a frozen container) or starved, the timeout may expire and the answer arrive
    in the socket. asyncio then runs the timer before the attempt sees the answer: `asyncio.timeout` alone would
    report a webhook that the receiver accepted as failed.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._turns_left = LAST_TURNS
        self._scope = asyncio.timeout(None)
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> None:
        await self._scope.__aenter__()
        self._next: asyncio.Handle = self._loop.call_later(self._timeout, self._expire)

    def _expire(self) -> None:
        if self._turns_left:
            self._turns_left -= 1
            self._next = self._loop.call_soon(self._expire)
        else:
            self._scope.reschedule(self._loop.time())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._next.cancel()
        await self._scope.__aexit__(kind, error, trace)
