"""Steps of real frameworks, whose own instrumentation makes the spans."""

import asyncio

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from pydantic_ai import Agent
from pydantic_ai.models.instrumented import InstrumentationSettings
from pydantic_ai.models.test import TestModel
from support import Pipeline, pipeline

from otel_step_hook.testing import ScriptedReceiver


def is_tool(span: ReadableSpan) -> bool:
    """Whether *span* is a tool call of pydantic-ai: a rule that a user may pass to the hook."""
    return (span.attributes or {}).get("gen_ai.operation.name") == "execute_tool"


def traced_agent(hooked: Pipeline) -> Agent[object, str]:
    """Return an agent with a model that needs no network, whose spans go to *hooked*."""
    agent = Agent(TestModel())
    agent.instrument = InstrumentationSettings(tracer_provider=hooked.provider)
    return agent


@pytest.mark.anyio
async def test_a_tool_call_of_pydantic_ai_is_reported(step_receiver: ScriptedReceiver) -> None:
    """With a user's rule, a tool call of a pydantic-ai agent gives one webhook, and a delivery span below its span."""
    with pipeline(step_receiver.url, is_step=is_tool, payload="full") as hooked:
        agent = traced_agent(hooked)

        @agent.tool_plain
        def weather(city: str) -> str:
            return f"sunny in {city}"

        result = await agent.run("what is the weather?")
        assert hooked.provider.force_flush()
        assert "sunny" in result.output
        (webhook,) = step_receiver.received
        (tool,) = hooked.named("execute_tool weather")
        (delivery,) = hooked.named("step_hook.deliver")
    assert webhook.data["outcome"] == "success"
    assert webhook.data["name"] == "execute_tool weather"
    assert delivery.parent == tool.context
    assert webhook.step_id == "pyd_ai_tool_call_id__weather"  # the framework's id, although the user's rule decided


@pytest.mark.anyio
async def test_a_cancelled_tool_call_of_pydantic_ai_is_reported_as_cancelled(step_receiver: ScriptedReceiver) -> None:
    """When a pydantic-ai run is cancelled inside its tool, that tool call is reported as cancelled."""
    with pipeline(step_receiver.url, is_step=is_tool, payload="full") as hooked:
        started = asyncio.Event()
        agent = traced_agent(hooked)

        @agent.tool_plain
        async def slow() -> str:
            started.set()
            await asyncio.Event().wait()
            return "never"

        run = asyncio.create_task(agent.run("take your time"))
        await asyncio.wait_for(started.wait(), 10)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert hooked.provider.force_flush()
        (webhook,) = step_receiver.received
    assert webhook.data["outcome"] == "cancelled"
