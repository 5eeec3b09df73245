"""What the tests on cancellation share: steps in each form that people write, and what a receiver is told of them."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import NoReturn

from opentelemetry.trace import Span
from support import Pipeline, pipeline

from otel_step_hook.testing import ScriptedReceiver

LIMIT = 30.0  # seconds; only a fault takes so long
Work = Callable[[], Coroutine[None, None, None]]


@dataclass
class Steps:
    """Makes steps, on a real provider with a hook; the name of each is its step id."""

    hooked: Pipeline
    receiver: ScriptedReceiver

    def current(self, name: str = "step") -> contextlib.AbstractContextManager[Span]:
        """``with tracer.start_as_current_span(…)``, which is a decorator as well."""
        return self.hooked.tracer.start_as_current_span(name, attributes={"step_id": name})

    def begin(self, name: str = "step") -> Span:
        """``tracer.start_span(…)``, for spans that are ended by hand or by ``with``."""
        return self.hooked.tracer.start_span(name, attributes={"step_id": name})

    @property
    def told(self) -> dict[str, object]:
        """What the receiver has been told: the outcome of each step."""
        assert self.hooked.provider.force_flush()
        received = self.receiver.received
        outcomes = {webhook.step_id: webhook.data["outcome"] for webhook in received}
        assert len(outcomes) == len(received), "a step was told twice"
        return outcomes


@contextlib.contextmanager
def stepping(receiver: ScriptedReceiver) -> Iterator[Steps]:
    """Steps that are told to *receiver*."""
    with pipeline(receiver.url, payload="full") as hooked:
        yield Steps(hooked, receiver)


def fail(error: BaseException | type[BaseException]) -> NoReturn:
    """Raise *error*, as work does."""
    raise error


def run(main: Coroutine[None, None, None]) -> None:
    """Run *main* on asyncio, for a limited time."""

    async def limited() -> None:
        async with asyncio.timeout(LIMIT):
            await main

    asyncio.run(limited())


def cancel(work: Callable[[Work], Coroutine[None, None, None]], *, times: int = 1) -> None:
    """Run *work* as a task of asyncio, and cancel it each time it awaits what it is given, which hangs."""

    async def main() -> None:
        waiting = asyncio.Event()

        async def hang() -> None:
            waiting.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(work(hang))
        for _ in range(times):
            await waiting.wait()
            waiting.clear()
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    run(main())


# The forms in which a step is written around *work*. None depends on the library that runs it.


async def as_current(steps: Steps, work: Work) -> None:
    """The usual form."""
    with steps.current():
        await work()


async def decorated(steps: Steps, work: Work) -> None:
    """The decorator on an async function."""

    @steps.current()  # type: ignore[operator]  # -- the SDK's context managers are decorators too
    async def step() -> None:
        await work()

    await step()


async def with_span(steps: Steps, work: Work) -> None:
    """A span as its own context manager, which records every exception there is."""
    with steps.begin():
        await work()


async def ended_in_finally(steps: Steps, work: Work) -> None:
    """A span ended by hand, with nothing said of how it went."""
    span = steps.begin()
    try:
        await work()
    finally:
        span.end()


async def ended_in_except(steps: Steps, work: Work) -> None:
    """A span ended by hand where the exception is caught, which is raised again."""
    span = steps.begin()
    try:
        await work()
    except BaseException:
        span.end()
        raise
    span.end()


async def ended_by_exit_stack(steps: Steps, work: Work) -> None:
    """A span that an exit stack ends."""
    async with contextlib.AsyncExitStack() as stack:
        span = steps.begin()
        stack.callback(span.end)
        await work()


FORMS = (as_current, decorated, with_span, ended_in_finally, ended_in_except, ended_by_exit_stack)
Form = Callable[[Steps, Work], Coroutine[None, None, None]]
