"""The environment of a framework under test: a provider with a hook, and the webhooks that were received."""

import asyncio
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from support import Pipeline

from otel_step_hook.testing import ScriptedReceiver

LIMIT = 20.0  # seconds; what the tests wait for takes less than one


class Reported(NamedTuple):
    """The span name, the step id and the outcome of one webhook."""

    name: str
    step_id: str
    outcome: str


@dataclass
class Observed:
    """A pipeline, and the receiver to which its hook sends."""

    hooked: Pipeline
    receiver: ScriptedReceiver

    @property
    def provider(self) -> TracerProvider:
        return self.hooked.provider

    def reported(self) -> list[Reported]:
        """Return all webhooks so far, sorted, because deliveries may overtake each other."""
        assert self.provider.force_flush()
        return sorted(
            Reported(str(each.data["name"]), each.step_id, str(each.data["outcome"])) for each in self.receiver.received
        )

    def outcomes(self) -> list[tuple[str, str]]:
        """Return names and outcomes of all webhooks so far, for steps whose ids are generated."""
        return sorted((each.name, each.outcome) for each in self.reported())

    def span(self, name: str) -> ReadableSpan:
        """Return the only span of this name."""
        (span,) = self.hooked.named(name)
        return span


@dataclass
class Gate:
    """A point in a framework's code: it sets *reached*, and waits there until it is cancelled."""

    reached: threading.Event = field(default_factory=threading.Event)

    async def wait(self) -> str:
        """Wait in a coroutine until it is cancelled."""
        self.reached.set()
        await asyncio.Event().wait()
        return "never"


async def cancel_inside(run: Coroutine[Any, Any, object], gate: Gate) -> None:
    """Run *run* as a task, and cancel it when it has reached *gate*."""
    task = asyncio.create_task(run)
    assert await asyncio.to_thread(gate.reached.wait, LIMIT)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
