"""A receiver in a process of its own that fails at random: it refuses, closes connections, is slow, or is gone.

It answers with as little cost as possible, and writes a line for every request that arrives.
"""

import asyncio
import logging
import os
import random
import re
import signal
import socket
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

ANSWERS = {"well": b"HTTP/1.1 204 No Content\r\n\r\n", "refusing": b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"}
MOODS = ("well", "well", "well", "slow", "refusing", "closing")  # with equal chances
_LONGEST_MOOD = 0.4  # seconds
_LONGEST_ANSWER = 0.3  # seconds, while it is slow
_HEAD = re.compile(rb"\r\nwebhook-id: (\S+)", re.IGNORECASE)
_STEP_ID = re.compile(rb'"step_id": ?"([^"]+)"')


def fork(run: Callable[[], object]) -> int:
    """Run *run* in a forked child, which then ends without exit functions. Returns its process id."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
        except BaseException:
            logging.exception("a child failed")  # noqa: LOG015 -- the child has no other
            os._exit(1)
        os._exit(0)
    return pid


class FlappingReceiver:
    """Listens on loopback from the start; `start` forks the process that serves.

    *record* gets a line for every request.
    """

    def __init__(self, record: Path, seed: str, *, moods: Sequence[str] = MOODS) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/hook"
        self._record = record
        self._seed = seed
        self._moods = moods
        self.pid = 0

    def start(self) -> None:
        """Fork the process that serves."""
        service = _Service(self._listening, self._record, random.Random(self._seed), self._moods)  # noqa: S311 -- to be repeated
        self.pid = fork(lambda: asyncio.run(service.run()))
        self._listening.close()

    def flap(self) -> None:
        """Fail at random, as at the start."""
        os.kill(self.pid, signal.SIGHUP)

    def be_well(self) -> None:
        """Answer 204 to everything from now on."""
        os.kill(self.pid, signal.SIGUSR1)

    def be_gone(self) -> None:
        """Refuse all connections from now on."""
        os.kill(self.pid, signal.SIGUSR2)

    def stop(self) -> None:
        """End the process."""
        os.kill(self.pid, signal.SIGTERM)
        os.waitpid(self.pid, 0)


class _Service:
    def __init__(self, listening: socket.socket, record: Path, rand: random.Random, moods: Sequence[str]) -> None:
        self._moods = moods
        self._listening = listening
        self._file = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._rand = rand
        self._is_flapping = True
        self._server: asyncio.Server | None = None
        self.mood = "well"
        self.connections: set[asyncio.Transport] = set()

    async def run(self) -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, ended.set)
        loop.add_signal_handler(signal.SIGHUP, self._set_mood, loop, None)
        loop.add_signal_handler(signal.SIGUSR1, self._set_mood, loop, "well")
        loop.add_signal_handler(signal.SIGUSR2, self._set_mood, loop, "gone")
        self._server = await loop.create_server(lambda: _Connection(self), sock=self._listening)
        self._address = self._listening.getsockname()
        self._change_mood(loop)
        await ended.wait()

    def _change_mood(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._is_flapping:
            self.mood = self._rand.choice(self._moods)
        loop.call_later(self._rand.uniform(0.02, _LONGEST_MOOD), self._change_mood, loop)

    def _set_mood(self, loop: asyncio.AbstractEventLoop, mood: str | None) -> None:
        self._is_flapping = mood is None
        self.mood = mood or "well"
        if mood == "gone" and self._server is not None:
            self._server.close()
            self._server = None
            for connection in tuple(self.connections):
                connection.abort()
        elif mood != "gone" and self._server is None:
            loop.create_task(self._listen_again(loop))

    async def _listen_again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._server = await loop.create_server(lambda: _Connection(self), *self._address, backlog=256)

    def answer(self, transport: asyncio.Transport, request: bytes) -> None:
        """Answer *request* in the mood of the moment."""
        head, step = _HEAD.search(request), _STEP_ID.search(request)
        assert head is not None
        assert step is not None
        os.write(self._file, b"%s %s %s\n" % (step.group(1), head.group(1), self.mood.encode()))
        if self.mood in {"closing", "gone"}:
            transport.abort()
        elif self.mood == "slow":
            delay = self._rand.uniform(0, _LONGEST_ANSWER)
            asyncio.get_running_loop().call_later(delay, transport.write, ANSWERS["well"])
        else:
            transport.write(ANSWERS[self.mood])


class _Connection(asyncio.Protocol):
    def __init__(self, service: _Service) -> None:
        self._service = service
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._service.connections.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- asyncio's signature
        self._service.connections.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._seen += data
        head, end, rest = self._seen.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0") if end else 0
        if end and len(rest) >= length:
            request, self._seen = self._seen, b""
            self._service.answer(self._transport, request)


class Arrived:
    """What a `FlappingReceiver` has recorded: by step id, the webhook ids and how often it was accepted."""

    def __init__(self, record: Path) -> None:
        self.webhook_ids: defaultdict[str, set[str]] = defaultdict(set)
        self.accepted: Counter[str] = Counter()
        self.requests = 0
        for line in record.read_text().splitlines():
            step_id, webhook_id, mood = line.split()
            self.requests += 1
            self.webhook_ids[step_id].add(webhook_id)
            self.accepted[step_id] += mood in {"well", "slow"}
