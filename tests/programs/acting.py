"""A Dramatiq application that ends a step in each message. Its broker is in memory: each process sends itself four."""

from typing import Any

import dramatiq
from application import end_step
from dramatiq.brokers.stub import StubBroker


class _Sending(dramatiq.Middleware):
    def after_worker_boot(self, *_: Any) -> None:
        for number in range(4):
            work.send(f"step-{number}")


dramatiq.set_broker(StubBroker(middleware=[_Sending()]))


@dramatiq.actor
def work(step_id: str) -> None:
    """End a step."""
    end_step(step_id)
