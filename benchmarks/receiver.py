"""A receiver for benchmarks with as little cost as possible: it answers every request with 204, on loopback.

It prints its URL, and with a number as its argument a line whenever so many more requests have arrived; with ``times``
the time of each, in nanoseconds of the system's monotonic clock.
"""

import asyncio
import itertools
import sys
import time

_ARGUMENT = sys.argv[1] if len(sys.argv) > 1 else "0"
_EVERY = 0 if _ARGUMENT == "times" else int(_ARGUMENT)
_numbers = itertools.count(1)
_ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"


class _Receiver(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._seen = b""
        self._began = 0

    def data_received(self, data: bytes) -> None:
        if not self._seen:
            self._began = time.monotonic_ns()
        self._seen += data
        head, end, rest = self._seen.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0") if end else 0
        if end and len(rest) >= length:
            self._seen = rest[length:]
            assert isinstance(self._transport, asyncio.Transport)  # noqa: S101 -- for mypy: a TCP connection has one
            self._transport.write(_ANSWER)
            self._report()

    def _report(self) -> None:
        if _ARGUMENT == "times":
            print(self._began, flush=True)
        elif _EVERY and (number := next(_numbers)) % _EVERY == 0:
            print(number, flush=True)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Receiver, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    print(f"http://{host}:{port}/hook", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
