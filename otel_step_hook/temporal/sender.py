"""The handover of deliveries to Temporal: owns the client, and the choice between activity and workflow."""

import asyncio
import logging
from datetime import timedelta
from typing import Any

from temporalio.client import Client
from temporalio.common import ActivityIDConflictPolicy, ActivityIDReusePolicy, WorkflowIDConflictPolicy
from temporalio.common import WorkflowIDReusePolicy as WorkflowReuse
from temporalio.exceptions import ActivityAlreadyStartedError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from otel_step_hook.delivery.log import log_safely
from otel_step_hook.delivery.model import Delivery, Endpoint
from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.delivery.telemetry import Telemetry
from otel_step_hook.temporal.arguments import ACTIVITY, WORKFLOW, WebhookArguments, activity_id, arguments_of, summary
from otel_step_hook.temporal.client import ForkedError, connect
from otel_step_hook.temporal.options import retry_policy

_CLOSE_TIME = 0.05  # seconds after the last call, in which the threads of Temporal's SDK release Python's objects
_TASK_TIME = 10.0  # seconds that a workflow has beyond its activity, to record how that has ended
_TIMEOUTS = frozenset({RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED})  # what a client's deadline becomes
_FORKED = (
    "this process was forked from one that had used Temporal, whose SDK does not work across forks: its steps for "
    "endpoint %s are discarded, or left in the outbox to another process; start it with the method spawn or "
    "forkserver, or before the first step ends"
)


class TemporalSender:
    """A `Sender` for which a delivery has succeeded when Temporal has accepted it.

    Each is a standalone activity. A server that does not know those gets a workflow of one activity, under the same id.
    A step that is submitted again, by this process or another one, starts none while the first runs or has succeeded.
    """

    to = "Temporal"

    def __init__(
        self,
        endpoint: Endpoint,
        telemetry: Telemetry,
        config: dict[str, Any],
        *,
        task_queue: str,
        schedule_to_close: float,
    ) -> None:
        self._endpoint = endpoint
        self._telemetry = telemetry
        self._config = config  # the arguments of `Client.connect`
        self._task_queue = task_queue
        self._schedule_to_close = schedule_to_close
        self._client: Client | None = None
        self._knows_activities = True
        self._is_warned = False

    async def send(self, delivery: Delivery, *, timeout: float) -> AttemptResult:
        """Hand *delivery* over within *timeout* seconds. Its spans are those of the worker that sends the webhook."""
        result = await self._hand_over(delivery, timeout)
        self._telemetry.count_attempt(result.error_type)
        return result

    async def _hand_over(self, delivery: Delivery, timeout: float) -> AttemptResult:
        arguments = arguments_of(
            delivery,
            self._endpoint.name,
            start_to_close=self._endpoint.timeout,
            schedule_to_close=self._schedule_to_close,
        )
        try:
            async with asyncio.timeout(timeout):  # that of a call does not limit the connection that it waits for
                await self._start(activity_id(delivery, self._endpoint.name), arguments, timedelta(seconds=timeout))
        except (ActivityAlreadyStartedError, WorkflowAlreadyStartedError):
            pass  # it has ended, and not failed: the webhook has been delivered
        except RPCError as error:
            if error.status is RPCStatusCode.INVALID_ARGUMENT:  # it would be refused again: it is too large, perhaps
                return AttemptResult(error_type=error.status.name, directive="abort-message")
            return AttemptResult(error_type="timeout" if error.status in _TIMEOUTS else error.status.name)
        except TimeoutError:
            return AttemptResult(error_type="timeout")
        except ForkedError:
            if not self._is_warned:
                self._is_warned = True
                log_safely(logging.ERROR, _FORKED, self._endpoint.name)
            return AttemptResult(error_type=ForkedError.__name__, is_hopeless=True)
        except RuntimeError:  # no connection
            return AttemptResult(error_type=RPCStatusCode.UNAVAILABLE.name)
        return AttemptResult()

    async def _start(self, name: str, arguments: WebhookArguments, timeout: timedelta) -> None:
        client = self._client = self._client or await connect(self._config, lazy=True)
        if not (self._knows_activities and await self._start_activity(client, name, arguments, timeout)):
            await self._start_workflow(client, name, arguments, timeout)
            # Not sooner: a proxy whose server is away answers as if it did not know the call.
            level = logging.INFO if self._knows_activities else logging.DEBUG
            self._knows_activities = False
            text = "the Temporal server has no standalone activities: each webhook for endpoint %s is a workflow"
            log_safely(level, text, self._endpoint.name)

    async def _start_activity(self, client: Client, name: str, arguments: WebhookArguments, timeout: timedelta) -> bool:
        """Return whether the server knows standalone activities: then it has accepted this one."""
        try:
            await client.start_activity(
                ACTIVITY,
                arguments,
                id=name,
                task_queue=self._task_queue,
                start_to_close_timeout=timedelta(seconds=arguments.start_to_close),
                schedule_to_close_timeout=timedelta(seconds=arguments.schedule_to_close),
                id_reuse_policy=ActivityIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
                id_conflict_policy=ActivityIDConflictPolicy.USE_EXISTING,
                retry_policy=retry_policy(),
                summary=summary(arguments.event),
                rpc_timeout=timeout,
            )
        except RPCError as error:
            if error.status is not RPCStatusCode.UNIMPLEMENTED:
                raise
            return False
        return True

    async def _start_workflow(self, client: Client, name: str, arguments: WebhookArguments, timeout: timedelta) -> None:
        await client.start_workflow(
            WORKFLOW,
            arguments,
            id=name,
            task_queue=self._task_queue,
            # Else it would wait for ever while no worker runs.
            execution_timeout=timedelta(seconds=arguments.schedule_to_close + _TASK_TIME),
            id_reuse_policy=WorkflowReuse.ALLOW_DUPLICATE_FAILED_ONLY,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            static_summary=summary(arguments.event),
            rpc_timeout=timeout,
        )

    async def aclose(self) -> None:
        """Drop the client.

        A process that ends at once after a call is killed by SIGSEGV or SIGABRT now and then, when a thread of the SDK
        releases an object of an interpreter that is gone.
        """
        if self._client is not None:
            self._client = None
            await asyncio.sleep(_CLOSE_TIME)  # there is no event to wait for
