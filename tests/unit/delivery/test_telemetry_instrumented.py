"""Deliveries in a process whose HTTP clients are instrumented: no second spans, and no endless webhooks."""

import asyncio
import threading
from collections.abc import Iterator

import aiohttp
import httpx
import pytest
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from support import Pipeline, pipeline

from otel_step_hook.testing import ScriptedReceiver


@pytest.fixture(params=["httpx", "aiohttp"])
def everything_is_a_step(step_receiver: ScriptedReceiver, request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    """A hook for which every span is a step, and instrumentations whose spans go to the same provider.

    The webhooks are sent by either HTTP library in turn.
    """
    with pipeline(step_receiver.url, is_step=lambda _: True, http_client=request.param) as hooked:
        instrumentors = (HTTPXClientInstrumentor(), AioHttpClientInstrumentor())
        for instrumentor in instrumentors:
            instrumentor.instrument(tracer_provider=hooked.provider)
        try:
            yield hooked
        finally:
            for instrumentor in instrumentors:
                instrumentor.uninstrument()


def scopes(spans: list[ReadableSpan]) -> list[str]:
    """The instrumentation scopes of *spans*."""
    return [span.instrumentation_scope.name if span.instrumentation_scope else "" for span in spans]


def test_a_delivery_has_no_second_span_and_triggers_no_hook(
    everything_is_a_step: Pipeline, step_receiver: ScriptedReceiver
) -> None:
    """One step is one webhook and three spans: step, delivery and attempt, whose traceparent arrives."""
    hooked = everything_is_a_step
    hooked.end_step()
    (webhook,) = step_receiver.received
    (attempt,) = hooked.named("POST")
    assert sorted(scopes(hooked.spans)) == ["otel_step_hook", "otel_step_hook", "tests"]
    assert webhook.headers["traceparent"].split("-")[2] == f"{attempt.context.span_id:016x}"


def test_the_application_s_own_requests_are_instrumented_as_before(
    everything_is_a_step: Pipeline, step_receiver: ScriptedReceiver
) -> None:
    """The application's own HTTP clients have their spans, in any thread, while we deliver."""

    async def by_aiohttp() -> None:
        async with aiohttp.ClientSession() as session, session.post(step_receiver.url, json={"step_id": "app"}):
            pass

    hooked = everything_is_a_step
    hooked.end_step()
    httpx.post(step_receiver.url, json={"step_id": "app"})
    thread = threading.Thread(target=lambda: asyncio.run(by_aiohttp()))
    thread.start()
    thread.join()
    assert hooked.provider.force_flush()
    theirs = [name for name in scopes(hooked.spans) if name.startswith("opentelemetry.instrumentation")]
    assert sorted(theirs) == ["opentelemetry.instrumentation.aiohttp_client", "opentelemetry.instrumentation.httpx"]


def test_a_receiver_in_the_same_process_makes_no_loop(step_receiver: ScriptedReceiver) -> None:
    """A receiver that records a span for each webhook, in a provider with a hook, causes no further webhook."""
    with pipeline(step_receiver.url) as hooked:
        hooked.end_step()
        for webhook in step_receiver.received:
            hooked.tracer.start_span("received", attributes={"webhook": webhook.headers["webhook-id"]}).end()
        assert hooked.provider.force_flush()
    assert len(step_receiver.received) == 1


def test_a_delivery_span_is_no_step_for_another_hook(step_receiver: ScriptedReceiver) -> None:
    """Delivery spans that reach the hook of another provider cause no webhook."""
    with pipeline(step_receiver.url, is_step=lambda _: True) as first, pipeline(step_receiver.url) as second:
        first.end_step()
        for span in first.spans:
            if span.name != "step":
                second.hook.on_end(span)
        assert isinstance(second.provider, TracerProvider)
        assert second.provider.force_flush()
    assert len(step_receiver.received) == 1
