"""The event loop: names are resolved beside it, once at a time."""

import _thread
import asyncio
import contextlib
import gc
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from delivering import WAIT, no_more_threads

from otel_step_hook.delivery.loop import EventLoop

Found = list[tuple[object, ...]]


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    """A loop that is closed in the end."""
    made = EventLoop()
    with contextlib.closing(made):
        yield made


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Found]], None]:
    """Puts a resolver in the place of the system's: there is none on loopback that hangs, or counts."""
    return lambda resolve: monkeypatch.setattr(socket, "getaddrinfo", resolve)


def test_a_name(loop: EventLoop) -> None:
    """It is resolved as the system does it, with all that is asked for."""
    found = loop.run_until_complete(loop.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM, family=socket.AF_INET))
    assert found == socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM, family=socket.AF_INET)


@pytest.mark.parametrize("where", [contextlib.nullcontext, no_more_threads])
def test_a_name_that_does_not_exist(
    loop: EventLoop, where: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    """The system's error reaches whoever has asked."""
    with where(), pytest.raises(socket.gaierror):
        loop.run_until_complete(loop.getaddrinfo("does-not-exist.invalid", 80))


def test_where_no_thread_can_be_started(loop: EventLoop) -> None:
    """The loop's own thread asks, and waits: there is nothing else left to do at exit."""
    with no_more_threads():
        found = loop.run_until_complete(loop.getaddrinfo("127.0.0.1", 80))
    assert found == socket.getaddrinfo("127.0.0.1", 80)


def test_one_question_at_a_time(loop: EventLoop, resolver: Callable[[Callable[..., Found]], None]) -> None:
    """Who asks what is being asked waits for the same answer; what differs, or comes later, is asked anew."""
    answer = threading.Event()
    asked: list[str] = []

    def resolve(*question: object) -> Found:
        asked.append(str(question[0]))
        answer.wait(WAIT)
        return [question]

    async def ask() -> list[Found]:
        hasty = asyncio.create_task(loop.getaddrinfo("slow.test", 80))
        questions = [
            asyncio.create_task(loop.getaddrinfo(name, 80)) for name in ("slow.test", "slow.test", "other.test")
        ]
        await asyncio.sleep(0)
        hasty.cancel()  # whoever leaves takes nothing from the others
        await asyncio.wait([hasty])
        loop.call_later(0.01, answer.set)
        return await asyncio.gather(*questions, loop.getaddrinfo("slow.test", 80))

    resolver(resolve)
    first, second, other, third = loop.run_until_complete(ask())
    assert first == second == third != other
    assert sorted(asked) == ["other.test", "slow.test"]
    loop.run_until_complete(loop.getaddrinfo("slow.test", 80))
    assert len(asked) == 3


def test_an_error_that_nobody_waits_for(
    loop: EventLoop, resolver: Callable[[Callable[..., Found]], None], caplog: pytest.LogCaptureFixture
) -> None:
    """It is not complained of."""
    others = _thread._count()

    def resolve(*_: object) -> Found:
        raise OSError("no such name")

    async def ask() -> None:
        asking = asyncio.create_task(loop.getaddrinfo("bad.test", 80))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
        while _thread._count() > others:  # noqa: ASYNC110 -- the resolver's thread sets no event
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)  # what that thread has left for the loop

    resolver(resolve)
    loop.run_until_complete(ask())
    gc.collect()
    assert caplog.records == []


def test_an_answer_that_comes_too_late(resolver: Callable[[Callable[..., Found]], None]) -> None:
    """A loop that is closed while the resolver hangs has no quarrel with its answer."""
    answer, answered = threading.Event(), threading.Event()

    def resolve(*question: object) -> Found:
        answer.wait(WAIT)
        answered.set()
        return [question]

    async def ask(loop: EventLoop) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await loop.getaddrinfo("slow.test", 80)

    resolver(resolve)
    loop = EventLoop()
    loop.run_until_complete(ask(loop))
    loop.close()
    answer.set()
    assert answered.wait(WAIT)
