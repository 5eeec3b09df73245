"""What the tests on cancellation share: steps in each form that people write, and what a receiver hears of them."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import NoReturn

from opentelemetry.trace import Span
from support import Pipeline

from otel_step_hook.testing import ScriptedReceiver

Work = Callable[[], Coroutine[None, None, None]]


@dataclass
class Steps:
    """Makes steps, on a real provider with a hook; the name of each is its step id."""

    hooked: Pipeline
    receiver: ScriptedReceiver

    def current(self, name: str = "step") -> contextlib.AbstractContextManager[Span]:
        """``with tracer.start_as_current_span(…)``, which is a decorator, too."""
        return self.hooked.tracer.start_as_current_span(name, attributes={"step_id": name})

    def begin(self, name: str = "step") -> Span:
        """``tracer.start_span(…)``, for spans that are ended by hand or by ``with``."""
        return self.hooked.tracer.start_span(name, attributes={"step_id": name})

    @property
    def outcomes(self) -> dict[str, object]:
        """The outcome of each step, as the receiver has it."""
        assert self.hooked.provider.force_flush()
        received = self.receiver.received
        outcomes = {webhook.step_id: webhook.data["outcome"] for webhook in received}
        assert len(outcomes) == len(received), "a step was reported twice"
        return outcomes


def fail(error: BaseException | type[BaseException]) -> NoReturn:
    """Raise *error*, as work does."""
    raise error


def cancel(work: Callable[[Work], Coroutine[None, None, None]], *, times: int = 1) -> None:
    """Run *work* as a task of asyncio, and cancel it each time it awaits what it is given, which hangs."""

    async def main() -> None:
        hanging = asyncio.Semaphore(0)

        async def hang() -> None:
            hanging.release()
            await asyncio.Event().wait()

        task = asyncio.create_task(work(hang))
        for _ in range(times):
            await hanging.acquire()
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())


# The forms in which a step is written.


@contextlib.contextmanager
def _ended_in_finally(steps: Steps, name: str) -> Iterator[None]:
    span = steps.begin(name)
    try:
        yield
    finally:
        span.end()


@contextlib.contextmanager
def _ended_in_except(steps: Steps, name: str) -> Iterator[None]:
    span = steps.begin(name)
    try:
        yield
    except BaseException:
        span.end()
        raise
    span.end()


BLOCKS: dict[str, Callable[[Steps, str], contextlib.AbstractContextManager[object]]] = {
    "as current": Steps.current,  # the usual one
    "with span": Steps.begin,  # records every exception there is
    "in finally": _ended_in_finally,  # says nothing of how it went, as the next
    "in except": _ended_in_except,
}
FORMS = (*BLOCKS, "decorated", "by exit stack")


async def do(form: str, steps: Steps, work: Work) -> None:
    """Await *work* inside a step of this form, which is its name; no form depends on the library that runs it."""
    if form in BLOCKS:
        with BLOCKS[form](steps, form):
            await work()
    elif form == "decorated":
        await steps.current(form)(work)()  # type: ignore[operator]  # -- the SDK's context managers are decorators too
    else:
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(steps.begin(form).end)
            await work()
