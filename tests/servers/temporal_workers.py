"""Workflows on the real Temporal servers, with workers that send webhooks, and with tracing."""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import temporal_workflow as example
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from servers import thinking
from servers.temporal import OlderTemporalServer, TemporalServer
from temporalio.client import Client, WorkflowHandle
from temporalio.contrib.opentelemetry import OpenTelemetryPlugin, TracingInterceptor
from temporalio.worker import Interceptor, Worker

from otel_step_hook.temporal import StepHookPlugin

LIMIT = timedelta(seconds=40)  # of a workflow; what the tests wait for takes a few seconds

Server = TemporalServer | OlderTemporalServer
Handle = WorkflowHandle[Any, Any]


@dataclass
class Workflows:
    """Runs workflows on a worker with a `StepHookPlugin`."""

    client: Client
    interceptors: Sequence[Interceptor] = ()  # of the worker, beside those of the client
    queue: str = field(default_factory=lambda: f"queue-{uuid.uuid4()}")

    @asynccontextmanager
    async def working(self, plugin: StepHookPlugin, **options: Any) -> AsyncIterator[None]:
        """Run a worker until the block ends."""
        async with Worker(
            self.client,
            task_queue=self.queue,
            build_id="tests",  # without one the SDK hashes all imported modules, which takes seconds
            workflows=[example.Agent, thinking.Thinking, thinking.Impatient],
            activities=[example.create_step],
            interceptors=self.interceptors,
            plugins=[plugin],
            **options,
        ):
            yield

    async def start(self, workflow: Any = example.Agent) -> Handle:
        """Start a workflow."""
        return await self.client.start_workflow(
            workflow.run, "a task", id=f"agent-{uuid.uuid4()}", task_queue=self.queue, execution_timeout=LIMIT
        )


@dataclass
class Tracing:
    """One way to trace workflows, and the spans that have ended."""

    kind: str
    provider: TracerProvider
    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)

    @property
    def interceptors(self) -> list[TracingInterceptor]:
        """The interceptors of a client or of a worker."""
        return [TracingInterceptor()] if self.kind == "interceptor" else []

    async def connect(self, server: Server) -> Workflows:
        """A client with this tracing, which its workers then have, too."""
        plugins = [OpenTelemetryPlugin(add_temporal_spans=True)] if self.kind == "plugin" else []
        return Workflows(await Client.connect(server.address, interceptors=self.interceptors, plugins=plugins))

    def named(self, name: str) -> list[ReadableSpan]:
        """The spans of this name, in the order in which they ended."""
        return [span for span in self.exporter.get_finished_spans() if span.name == name]
