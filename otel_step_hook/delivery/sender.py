"""One attempt: owns its headers, its signature, its span, and the choice of its connection."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.model import Delivery, Endpoint, Headers
from otel_step_hook.delivery.request import attempt_headers
from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.delivery.telemetry import Telemetry


class Sender(Protocol):
    """Makes attempts, several at a time. For one event loop and its thread."""

    @property
    def to(self) -> str:
        """What log lines call the system that accepts the deliveries; empty if it is the receiver."""

    async def send(self, delivery: Delivery, *, timeout: float) -> AttemptResult:
        """Make one attempt within *timeout* seconds, record it, and return its result.

        A failure of the network or of the receiver is a result, not an exception.
        """

    async def aclose(self) -> None:
        """Close all connections. `send` is not called after this."""


class Transport(Protocol):
    """Sends one request at a time over one connection, which it keeps open if it can. For one event loop."""

    async def post(self, content: bytes, headers: Headers, *, timeout: float) -> AttemptResult:
        """Send one request within *timeout* seconds, name look-up included, and return its result.

        A failure of the network or of the receiver is a result, not an exception.
        """

    async def aclose(self) -> None:
        """Close the connection."""


class HttpSender:
    """Sends webhooks, each attempt in flight over its own connection; *connect* makes a transport."""

    to = ""

    def __init__(self, endpoint: Endpoint, telemetry: Telemetry, connect: Callable[[], Transport]) -> None:
        self._endpoint = endpoint
        self._telemetry = telemetry
        self._connect = connect
        self._transports: list[Transport] = []
        # The transport that was used last is used next: infrequent steps share one warm connection.
        self._idle: list[Transport] = []

    async def send(self, delivery: Delivery, *, timeout: float) -> AttemptResult:
        """Make one attempt, and a second at once if the receiver had closed the kept connection before it read a byte.

        That is no failure of the receiver. The same transport connects again, and the second attempt counts, too.
        """
        until = monotonic() + timeout
        transport = self._idle.pop() if self._idle else self._new()
        try:
            result = await self._attempt(transport, delivery, timeout)
            if result.is_stale:
                delivery.attempts += 1
                result = await self._attempt(transport, delivery, max(0.0, until - monotonic()))
        finally:
            self._idle.append(transport)
        return result

    def _new(self) -> Transport:
        transport = self._connect()
        self._transports.append(transport)
        return transport

    async def _attempt(self, transport: Transport, delivery: Delivery, timeout: float) -> AttemptResult:
        span = self._telemetry.start_attempt(delivery)
        result = None
        try:
            headers = attempt_headers(
                self._endpoint,
                delivery.id,
                delivery.body,
                timestamp=int(time.time()),
                trace=self._telemetry.trace_headers(span),
            )
            result = await transport.post(delivery.body, headers, timeout=timeout)
        except Exception as error:
            result = AttemptResult(error_type=type(error).__name__)
            raise
        finally:
            self._telemetry.end_attempt(span, result)
        return result

    async def aclose(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(transport.aclose() for transport in self._transports), return_exceptions=True)
