"""The demo: an agent whose steps succeed, fail and are cancelled, its webhooks as they arrive, and its trace."""

import asyncio
import contextlib
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Tracer, format_trace_id
from rich.console import Console
from rich.text import Text

from otel_step_hook.cli.display import ARRIVAL_HEADING, MAX_WIDTH, arrival_line, trace_picture, write_svg
from otel_step_hook.cli.listener import Arrival, Listener, Plan
from otel_step_hook.delivery.signing import new_secret
from otel_step_hook.delivery.telemetry import shown_url
from otel_step_hook.processor import StepHookProcessor
from otel_step_hook.settings import StepHookSettings
from otel_step_hook.steps.event import Outcome

_REFUSED, _REFUSALS = "step-2-search_flights", 2  # the step whose webhook is refused, and how often
_FLUSH_TIME = 10.0  # seconds the deliveries may take; they need about two
_EXPORT_TIME = 2.0  # seconds a collector may take to answer


class FullyBooked(Exception):  # noqa: N818 -- a name as an application would choose it
    """The hotel has no room left."""


@dataclass(frozen=True, slots=True)
class AgentRun:
    """One run of `agent`: its trace id in hexadecimal, and the outcome of each step by step id."""

    trace_id: str
    outcomes: Mapping[str, Outcome]


async def agent(tracer: Tracer) -> AgentRun:
    """Plan a weekend in six steps, of which one fails and one is cancelled; takes about a second.

    It uses OpenTelemetry and knows nothing of webhooks. The span of a step has the attribute ``step_id``.
    """

    async def step(number: int, name: str, seconds: float, error: Exception | None = None) -> None:
        with tracer.start_as_current_span(name, attributes={"step_id": f"step-{number}-{name}"}):
            await asyncio.sleep(seconds)  # a real agent would ask a model or call a tool here
            if error is not None:
                raise error

    with tracer.start_as_current_span("weekend in Lisbon") as workflow:
        await step(1, "plan", 0.15)
        flights = asyncio.create_task(step(2, "search_flights", 0.25))
        trains = asyncio.create_task(step(3, "search_trains", 60.0))
        await asyncio.wait([flights, trains], return_when=asyncio.FIRST_COMPLETED)
        trains.cancel()  # the flights were found first
        await asyncio.wait([trains])
        try:
            await step(4, "book_hotel", 0.2, FullyBooked("no room left"))
        except FullyBooked:
            await step(5, "book_guesthouse", 0.15)
        await step(6, "write_itinerary", 0.25)
    return AgentRun(
        format_trace_id(workflow.get_span_context().trace_id),
        {
            "step-1-plan": Outcome.SUCCESS,
            "step-2-search_flights": Outcome.SUCCESS,
            "step-3-search_trains": Outcome.CANCELLED,
            "step-4-book_hotel": Outcome.FAILED,
            "step-5-book_guesthouse": Outcome.SUCCESS,
            "step-6-write_itinerary": Outcome.SUCCESS,
        },
    )


def run(console: Console, *, svg: Path | None = None, otlp: str | None = None) -> int:
    """Run the agent with a receiver in this process; print the webhooks as they arrive, then the trace.

    Writes the trace as a picture to *svg*, and sends it by OTLP over HTTP to the collector with the base URL *otlp*.
    Returns the exit status: 0 when each step was delivered with its outcome after the expected attempts. A failed
    export does not change it. When no span was recorded, nothing is written and nothing exported. Raises OSError
    when *svg* cannot be written. Leaves the global tracer provider and the loggers as they were.
    """
    _say(console, "An agent plans a weekend, and a webhook reports each step that has ended.")
    _say(console, f"The receiver refuses {_REFUSED} twice before it accepts.\n")
    console.print(ARRIVAL_HEADING)
    with _quiet_logs():
        agent_run, spans = _deliver(console)
        console.print()
        if not spans:
            _say(console, "No span was recorded: OTEL_SDK_DISABLED may have switched OpenTelemetry's SDK off.")
            return 1
        console.print(trace_picture(spans, min(console.width, MAX_WIDTH)))
        console.print()
        exit_status = _print_result(console, agent_run, spans)
        if svg is not None:
            write_svg(svg, spans)
            _say(console, f"The picture of the trace is in {svg}")
        if otlp:
            _say(console, _export(otlp, spans, agent_run.trace_id))
    return exit_status


def _say(console: Console, sentence: str) -> None:
    console.print(Text(sentence), soft_wrap=True)


def _deliver(console: Console) -> tuple[AgentRun, Sequence[ReadableSpan]]:
    """Run the agent, print the webhooks as they arrive, and return the spans once the deliveries have ended."""
    key, secret, exporter = secrets.token_hex(16), new_secret(), InMemorySpanExporter()
    plan = Plan(refusals=_REFUSALS, step_id=_REFUSED)
    began = time.time()

    def show(arrival: Arrival) -> None:
        console.print(arrival_line(arrival, f"{arrival.at - began:.2f} s"))

    with Listener(plan, key=key, signing_secret=secret, on_arrival=show) as listener:
        hook = StepHookProcessor(_settings(webhook=listener.url, key=key, signing_secret=secret))
        # A delivery span outlasts its parent. Jaeger takes that for clock skew and moves the span, unless both
        # spans name the same host (jaegertracing/jaeger#1459).
        resource = Resource.create({"service.name": "travel-agent", "host.name": socket.gethostname()})
        provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(hook)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        try:
            agent_run = asyncio.run(agent(provider.get_tracer("travel-agent")))
            hook.force_flush(int(2000 * _FLUSH_TIME))  # milliseconds; it uses half of them
        finally:
            provider.shutdown()
    return agent_run, exporter.get_finished_spans()


def _settings(**own: object) -> StepHookSettings:
    """Settings with short waits, *own* values, and none from the environment."""
    defaults = {name: field.default for name, field in StepHookSettings.model_fields.items()}
    short = {"initial_backoff": 0.5, "timeout": 2.0, "give_up_after": _FLUSH_TIME / 2, "shutdown_timeout": 2.0}
    return StepHookSettings(**(defaults | short | own))


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    """Keep warnings about refused webhooks off stderr, where `logging` prints them unless it is configured."""
    loggers = [logging.getLogger(name) for name in ("otel_step_hook", "opentelemetry")]
    silent = logging.NullHandler()
    for logger in loggers:
        logger.addHandler(silent)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(silent)


def _print_result(console: Console, agent_run: AgentRun, spans: Sequence[ReadableSpan]) -> int:
    """Compare the deliveries with what the agent did, print the result, and return the exit status."""
    all_attributes = [span.attributes or {} for span in spans]
    delivered = {
        str(attributes["step_hook.step_id"]): attributes
        for attributes in all_attributes
        if attributes.get("step_hook.result") == "delivered"
    }
    reported = {step_id: str(attributes["step_hook.outcome"]) for step_id, attributes in delivered.items()}
    attempts = {step_id: int(str(attributes["step_hook.attempts"])) for step_id, attributes in delivered.items()}
    if differences := [*_wrong_outcomes(agent_run.outcomes, reported), *_missing_refusals(attempts)]:
        _say(console, "\n  ".join(["Not as it should be:", *differences]))
        return 1
    counts = ", ".join(f"{list(reported.values()).count(outcome)} {outcome}" for outcome in Outcome)
    _say(console, f"{len(reported)} steps: {counts}. All were delivered, in {sum(attempts.values())} attempts.")
    return 0


def _wrong_outcomes(expected: Mapping[str, str], reported: Mapping[str, str]) -> Iterator[str]:
    for step_id in dict.fromkeys([*expected, *reported]):
        should, was = expected.get(step_id, "nothing"), reported.get(step_id, "nothing")
        if should != was:
            yield f"{step_id}: expected {should}, and {was} was delivered"


def _missing_refusals(attempts: Mapping[str, int]) -> Iterator[str]:
    if attempts.get(_REFUSED, _REFUSALS + 1) <= _REFUSALS:
        yield f"{_REFUSED}: accepted at attempt {attempts[_REFUSED]}, although {_REFUSALS} were to be refused"


def _export(endpoint: str, spans: Sequence[ReadableSpan], trace_id: str) -> str:
    """Send *spans* to the collector at *endpoint*; returns the result as a sentence, within a few seconds."""
    host = _host(endpoint)
    if not host:
        return (
            "The trace was not exported: OTEL_EXPORTER_OTLP_ENDPOINT or --otlp is not a URL; "
            "expected one such as http://127.0.0.1:4318"
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 -- an extra
    except ModuleNotFoundError:
        return "The trace was not exported: that needs an extra: pip install 'otel-step-hook[otlp]'"
    url = f"{endpoint.rstrip('/')}/v1/traces"
    if not _is_accepted(lambda: OTLPSpanExporter(endpoint=url, timeout=_EXPORT_TIME), spans):
        return (
            f"The trace was not exported: nothing at {shown_url(endpoint)} has accepted it by OTLP over HTTP. "
            "Is the collector running, and is this its HTTP port, usually 4318?"
        )
    return f"Exported trace {trace_id}; with Jaeger, look at http://{host}:16686/trace/{trace_id}"


def _is_accepted(new_exporter: Callable[[], SpanExporter], spans: Sequence[ReadableSpan]) -> bool:
    results: list[SpanExportResult] = []

    def export() -> None:
        # Older exporters let exceptions of their HTTP library through (open-telemetry/opentelemetry-python#4712).
        with contextlib.suppress(Exception):
            exporter = new_exporter()
            results.append(exporter.export(spans))
            exporter.shutdown()

    # Some exporters retry for a minute and ignore their timeout (open-telemetry/opentelemetry-python#2663):
    # on a thread of its own, the export can be abandoned.
    thread = threading.Thread(target=export, daemon=True)
    thread.start()
    thread.join(_EXPORT_TIME + 1)
    return results == [SpanExportResult.SUCCESS]


def _host(endpoint: str) -> str:
    """The host of *endpoint*, with brackets if it is an IPv6 address; empty if *endpoint* is not an http(s) URL."""
    try:
        parts = urlsplit(endpoint)
        _ = parts.port  # raises ValueError unless it is a port number
    except ValueError:
        return ""
    host = parts.hostname or ""
    if parts.scheme not in {"http", "https"}:
        return ""
    return f"[{host}]" if ":" in host else host
