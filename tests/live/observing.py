"""What a framework is run under: a provider with a hook, and the webhooks that have come of it."""

import asyncio
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from support import Pipeline

from otel_step_hook.testing import ScriptedReceiver

LIMIT = 20.0  # seconds; what is waited for takes below one


class Told(NamedTuple):
    """What one webhook says: which span, which step, how it ended."""

    name: str
    step_id: str
    outcome: str


@dataclass
class Observed:
    """A pipeline and the receiver that its hook sends to."""

    hooked: Pipeline
    receiver: ScriptedReceiver

    @property
    def provider(self) -> TracerProvider:
        return self.hooked.provider

    def told(self) -> list[Told]:
        """All webhooks so far, sorted: deliveries may overtake each other."""
        assert self.provider.force_flush()
        return sorted(
            Told(str(each.data["name"]), each.step_id, str(each.data["outcome"])) for each in self.receiver.received
        )

    def outcomes(self) -> list[tuple[str, str]]:
        """All webhooks so far, without their step ids: for steps that have no id but the one made for them."""
        return sorted((each.name, each.outcome) for each in self.told())

    def span(self, name: str) -> ReadableSpan:
        """The only span of this name."""
        (span,) = self.hooked.named(name)
        return span


@dataclass
class Gate:
    """A place in a framework's code that tells when it is reached, and is not left before it is told so."""

    reached: threading.Event = field(default_factory=threading.Event)
    may_leave: threading.Event = field(default_factory=threading.Event)

    async def wait(self) -> str:
        """Stay in a coroutine, until cancelled."""
        self.reached.set()
        await asyncio.Event().wait()
        return "never"


async def cancel_inside(run: Coroutine[Any, Any, object], gate: Gate) -> None:
    """Cancel *run* as a caller does, once it has reached *gate*."""
    task = asyncio.create_task(run)
    assert await asyncio.to_thread(gate.reached.wait, LIMIT)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
