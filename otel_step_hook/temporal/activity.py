"""The activity that sends a webhook: owns the receivers of one Temporal worker, and where their spans go."""

import asyncio
import contextlib
import functools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable

from temporalio import activity

from otel_step_hook.delivery.clock import monotonic
from otel_step_hook.delivery.http_client import connector
from otel_step_hook.delivery.loop import uninstrumented
from otel_step_hook.delivery.model import Delivery, Endpoint, Pipeline
from otel_step_hook.delivery.pipelines import RowPipelines
from otel_step_hook.delivery.retry import RetryPolicy
from otel_step_hook.temporal.arguments import ACTIVITY, WebhookArguments, WebhookResult, event_of, resource_of
from otel_step_hook.temporal.attempt import ReceiverAttempts, UnknownEndpoints, refusal

_log = logging.getLogger("otel_step_hook")


class WebhookActivities:
    """Makes the attempts that Temporal asks for: to *endpoints*, on the event loops of Temporal workers.

    *pipeline* returns where the spans of the deliveries go, and the resource of those that a workflow asks for; it is
    called once, for the first of them. Raises `ConfigurationError` for an endpoint that cannot be used.
    """

    def __init__(self, endpoints: Iterable[Endpoint], policy: RetryPolicy, pipeline: Callable[[], Pipeline]) -> None:
        self._pipeline = functools.cache(pipeline)
        self._pipelines = RowPipelines("")
        self._policy = policy
        self._connectors = {endpoint: connector(endpoint) for endpoint in endpoints}
        # By event loop, since a plugin may belong to several workers. Connections are for one loop.
        self._receivers: dict[asyncio.AbstractEventLoop, dict[str, ReceiverAttempts]] = {}
        self._unknown: dict[asyncio.AbstractEventLoop, UnknownEndpoints] = {}
        self._workers: Counter[asyncio.AbstractEventLoop] = Counter()

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Close the connections of the running event loop when the last of its workers has ended."""
        loop = asyncio.get_running_loop()
        self._workers[loop] += 1
        try:
            yield
        finally:
            self._workers[loop] -= 1
            if not self._workers[loop]:
                del self._workers[loop]
                closing = [*self._receivers.pop(loop, {}).values(), self._unknown.pop(loop, None)]
                await asyncio.gather(*(one.aclose() for one in closing if one is not None))

    @activity.defn(name=ACTIVITY)
    async def send_step_complete_webhook(self, webhook: WebhookArguments) -> WebhookResult:
        """Make one attempt. Raises ApplicationError, with the delay until the next one, when it has failed."""
        if not self._connectors and not webhook.body:  # a workflow has asked for it
            _log.debug("STEP_COMPLETE_WEBHOOK is not set: no webhook is sent")
            return WebhookResult("skipped")
        receivers, delivery = self._of_this_loop(), self._delivery(webhook)
        receiver = receivers.get(webhook.endpoint)
        if receiver is None:
            self._unknown[asyncio.get_running_loop()].discard(delivery, webhook.endpoint)
            expected = ", ".join(sorted(receivers)) or "none, since STEP_COMPLETE_WEBHOOK is not set"
            raise refusal(
                f"this worker knows no endpoint {webhook.endpoint!r}; expected one of: {expected}; give worker and "
                "application the same STEP_COMPLETE_WEBHOOK or STEP_COMPLETE_ENDPOINTS",
                "unknown_endpoint",
            )
        attempt = receiver.attempt(delivery, activity.info())
        # In a context in which the instrumentations of httpx make no spans beside ours.
        return await asyncio.get_running_loop().create_task(attempt, context=uninstrumented())

    def _of_this_loop(self) -> dict[str, ReceiverAttempts]:
        loop = asyncio.get_running_loop()
        if loop not in self._receivers:
            self._unknown[loop] = UnknownEndpoints()
            self._receivers[loop] = {
                endpoint.name: ReceiverAttempts(endpoint, self._policy, connect)
                for endpoint, connect in self._connectors.items()
            }
        return self._receivers[loop]

    def _delivery(self, webhook: WebhookArguments) -> Delivery:
        pipeline = self._pipeline()
        if webhook.resource:
            self._pipelines.use(pipeline)
            pipeline = self._pipelines.find(None, *resource_of(webhook))
        return Delivery(webhook.webhook_id, event_of(webhook), pipeline, monotonic(), webhook.body.encode("ascii"))
