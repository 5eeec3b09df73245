"""Steps for the tests of cancellation, in each form that applications write, and the outcomes that arrive."""

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
    """Makes steps on a real provider with a hook; the name of a step is its step id."""

    hooked: Pipeline
    receiver: ScriptedReceiver

    def current(self, name: str = "step") -> contextlib.AbstractContextManager[Span]:
        """Call ``tracer.start_as_current_span(…)``, for ``with`` or as a decorator."""
        return self.hooked.tracer.start_as_current_span(name, attributes={"step_id": name})

    def begin(self, name: str = "step") -> Span:
        """Call ``tracer.start_span(…)``, for spans that are ended by a call or by ``with``."""
        return self.hooked.tracer.start_span(name, attributes={"step_id": name})

    @property
    def outcomes(self) -> dict[str, object]:
        """The outcome of each step that the receiver has got, by step id."""
        assert self.hooked.provider.force_flush()
        received = self.receiver.received
        outcomes = {webhook.step_id: webhook.data["outcome"] for webhook in received}
        assert len(outcomes) == len(received), "a step was reported twice"
        return outcomes


def fail(error: BaseException | type[BaseException]) -> NoReturn:
    """Raise *error*, as an expression."""
    raise error


def cancel(work: Callable[[Work], Coroutine[None, None, None]], *, times: int = 1) -> None:
    """Run *work* as an asyncio task, and cancel it *times* times, each time it awaits its argument, which hangs."""

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


# The forms in which applications write a step.


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
    "as current": Steps.current,  # the usual form
    "with span": Steps.begin,  # records every exception, BaseException too
    "in finally": _ended_in_finally,  # neither this nor the next form sets a status or records an exception
    "in except": _ended_in_except,
}
FORMS = (*BLOCKS, "decorated", "by exit stack")


async def do(form: str, steps: Steps, work: Work) -> None:
    """Await *work* inside a step of this form; the form is also its name. Works under asyncio, trio and anyio."""
    if form in BLOCKS:
        with BLOCKS[form](steps, form):
            await work()
    elif form == "decorated":
        await steps.current(form)(work)()  # type: ignore[operator]  # -- the SDK's context managers are decorators too
    else:
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(steps.begin(form).end)
            await work()
