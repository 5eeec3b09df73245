"""The event loop: names are looked up on threads of their own, equal look-ups at the same time once."""

import _thread
import asyncio
import contextlib
import gc
import importlib
import selectors
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from delivering import WAIT, no_more_threads

from otel_step_hook.delivery.loop import EventLoop, WakeUp

Addresses = list[tuple[object, ...]]


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    """An event loop that is closed at the end."""
    made = EventLoop()
    with contextlib.closing(made):
        yield made


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Addresses]], None]:
    """Replaces the system's resolver by a function, which may hang or count its calls."""
    return lambda resolve: monkeypatch.setattr(socket, "getaddrinfo", resolve)


def test_turns_with_something_to_do_poll_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred turns in a row poll eleven times: each poll gives the interpreter's lock away."""
    polls = []

    class Selector(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            polls.append(timeout)
            return super().select(timeout)

    async def take_turns() -> None:
        for _ in range(100):
            await asyncio.sleep(0)

    monkeypatch.setattr(selectors, "DefaultSelector", Selector)
    with contextlib.closing(EventLoop()) as loop:
        loop.run_until_complete(take_turns())
    assert polls == [0] * 11


def test_a_loop_that_always_has_something_to_do_reads_its_sockets(loop: EventLoop) -> None:
    """Bytes that arrive are read, and timers end, though callbacks are ready in each turn."""
    near, far = socket.socketpair()

    async def take_turns() -> bytes:
        read, waited = asyncio.Event(), asyncio.Event()
        loop.add_reader(near, read.set)
        loop.call_later(0.001, waited.set)
        far.send(b"bytes")
        while not (read.is_set() and waited.is_set()):  # noqa: ASYNC110 -- so that callbacks are ready
            await asyncio.sleep(0)
        loop.remove_reader(near)
        return near.recv(5)

    with near, far:
        assert loop.run_until_complete(asyncio.wait_for(take_turns(), WAIT)) == b"bytes"


def test_a_name_is_looked_up_as_by_the_system(loop: EventLoop) -> None:
    """The addresses are the same as those that `socket.getaddrinfo` returns for these arguments."""
    found = loop.run_until_complete(loop.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM, family=socket.AF_INET))
    assert found == socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM, family=socket.AF_INET)


@pytest.mark.parametrize("environment", [contextlib.nullcontext, no_more_threads])
def test_an_error_of_the_resolver_is_raised(
    loop: EventLoop, environment: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    """A name that does not exist raises gaierror, whether a thread can be started for it or not."""
    with environment(), pytest.raises(socket.gaierror):
        loop.run_until_complete(loop.getaddrinfo("does-not-exist.invalid", 80))


def test_without_a_thread_the_loop_looks_a_name_up_itself(loop: EventLoop) -> None:
    """If no thread can be started, as at exit, the loop's own thread waits for the resolver."""
    with no_more_threads():
        found = loop.run_until_complete(loop.getaddrinfo("127.0.0.1", 80))
    assert found == socket.getaddrinfo("127.0.0.1", 80)


def test_equal_look_ups_at_the_same_time_are_made_once(
    loop: EventLoop, resolver: Callable[[Callable[..., Addresses]], None]
) -> None:
    """A look-up that is under way is shared; another one, or a later one, is made anew."""
    answer = threading.Event()
    asked: list[str] = []

    def resolve(*question: object) -> Addresses:
        asked.append(str(question[0]))
        answer.wait(WAIT)
        return [question]

    async def ask() -> list[Addresses]:
        cancelled = asyncio.create_task(loop.getaddrinfo("slow.test", 80))
        questions = [
            asyncio.create_task(loop.getaddrinfo(name, 80)) for name in ("slow.test", "slow.test", "other.test")
        ]
        await asyncio.sleep(0)
        cancelled.cancel()  # the others still get their answer
        await asyncio.wait([cancelled])
        loop.call_later(0.01, answer.set)
        return await asyncio.gather(*questions, loop.getaddrinfo("slow.test", 80))

    resolver(resolve)
    first, second, other, third = loop.run_until_complete(ask())
    assert first == second == third != other
    assert sorted(asked) == ["other.test", "slow.test"]
    loop.run_until_complete(loop.getaddrinfo("slow.test", 80))
    assert len(asked) == 3


def test_an_error_after_the_caller_was_cancelled_is_not_logged(
    loop: EventLoop, resolver: Callable[[Callable[..., Addresses]], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The event loop does not log that the error of an abandoned look-up was never retrieved."""
    others = _thread._count()

    def resolve(*_: object) -> Addresses:
        raise OSError("no such name")

    async def ask() -> None:
        asking = asyncio.create_task(loop.getaddrinfo("bad.test", 80))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
        while _thread._count() > others:  # noqa: ASYNC110 -- the resolver's thread sets no event
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)  # the callback that this thread has left for the loop

    resolver(resolve)
    loop.run_until_complete(ask())
    gc.collect()
    assert caplog.records == []


@pytest.mark.parametrize("threads", [contextlib.nullcontext, no_more_threads])
@pytest.mark.parametrize("error", [SystemExit, importlib.import_module("gevent").Timeout])
def test_an_exit_in_the_resolver_fails_the_look_up(
    loop: EventLoop,
    resolver: Callable[[Callable[..., Addresses]], None],
    error: type[BaseException],
    threads: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    """The attempt fails with an OSError that names the exception, on any thread, and the next look-up asks again."""
    answers: list[BaseException | Addresses] = [error(), [("found",)]]

    def resolve(*_: object) -> Addresses:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    resolver(resolve)
    with threads(), pytest.raises(OSError, match=f"the look-up raised {error.__name__}"):
        loop.run_until_complete(asyncio.wait_for(loop.getaddrinfo("name.test", 80), WAIT))
    assert loop.run_until_complete(loop.getaddrinfo("name.test", 80)) == [("found",)]


def test_ctrl_c_in_the_resolver_reaches_the_application(
    loop: EventLoop, resolver: Callable[[Callable[..., Addresses]], None]
) -> None:
    """Where no thread can be started, the main thread looks up the name: Ctrl-C is raised there."""

    def resolve(*_: object) -> Addresses:
        raise KeyboardInterrupt

    resolver(resolve)
    with no_more_threads(), pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(loop.getaddrinfo("name.test", 80))
    loop.run_until_complete(asyncio.sleep(0.001))  # the loop forgets the look-up that failed
    resolver(lambda *_: [("found",)])
    assert loop.run_until_complete(loop.getaddrinfo("name.test", 80)) == [("found",)]


def test_an_answer_after_the_loop_was_closed_is_ignored(resolver: Callable[[Callable[..., Addresses]], None]) -> None:
    """A look-up that hangs until its loop is closed raises nothing when it ends."""
    answer, answered = threading.Event(), threading.Event()

    def resolve(*question: object) -> Addresses:
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


def test_a_wake_up_without_a_free_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of the operating system is raised, and nothing else when the object is deleted."""

    def refuse() -> tuple[int, int]:
        raise OSError(24, "too many open files")

    monkeypatch.setattr("os.pipe", refuse)
    with pytest.raises(OSError, match="too many open files"):
        WakeUp()
    gc.collect()
