"""Deliveries as the real Jaeger shows them, behind the real Collector, read from Jaeger's API."""

import asyncio
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from servers.build import binary
from servers.running import LIMIT, until
from servers.traces import ERROR, Servers, below, nodes_of

from otel_step_hook import StepHookProcessor, StepHookSettings
from otel_step_hook.cli.demo import AgentRun, agent
from otel_step_hook.testing import ScriptedReceiver

pytest_plugins = ["servers.trace_fixtures"]
pytestmark = pytest.mark.servers

_ROOT = Path(__file__).resolve().parents[2]


def _run_agent(servers: Servers, url: str) -> AgentRun:
    """Run the demo's agent with a hook and an exporter on one provider, as an application would."""
    # A delivery span outlasts its parent. Jaeger takes that for clock skew and moves the span, unless both
    # spans name the same host (jaegertracing/jaeger#1459).
    provider = TracerProvider(resource=Resource.create({"service.name": "agent", "host.name": socket.gethostname()}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{servers.otlp}/v1/traces")))
    provider.add_span_processor(StepHookProcessor(StepHookSettings(webhook=url, initial_backoff=0.05)))
    done = asyncio.run(agent(provider.get_tracer("agent")))
    assert provider.force_flush()
    provider.shutdown()
    return done


def test_the_trace_in_jaeger_shows_every_delivery(servers: Servers, step_receiver: ScriptedReceiver) -> None:
    """In Jaeger each step has its delivery and attempts below it, and failed attempts have status error."""
    step_receiver.answers(503, 503)
    done = _run_agent(servers, step_receiver.url)
    expected = 1 + 2 * len(done.outcomes) + len(step_receiver.received)
    until("the whole trace", lambda: len(nodes_of(servers, done.trace_id)) == expected)
    nodes = nodes_of(servers, done.trace_id)
    steps = {node.attributes["step_id"]: node for node in nodes if "step_id" in node.attributes}
    assert steps.keys() == done.outcomes.keys()
    statuses: list[list[str]] = []
    for step_id, outcome in done.outcomes.items():
        (delivery,) = below(nodes, steps[step_id], "step_hook.deliver")
        assert delivery.attributes["step_hook.outcome"] == outcome
        assert delivery.attributes["step_hook.result"] == "delivered"
        assert delivery.status != ERROR
        attempts = below(nodes, delivery, "POST")
        statuses.append([attempt.attributes["http.response.status_code"] for attempt in attempts])
        assert all((attempt.status == ERROR) == ("error.type" in attempt.attributes) for attempt in attempts)
    flat = [status for row in statuses for status in row]
    assert sorted(flat) == ["204"] * len(done.outcomes) + ["503"] * 2
    assert all(row[-1] == "204" for row in statuses)


def test_jaeger_does_not_adjust_clock_skew(servers: Servers, step_receiver: ScriptedReceiver) -> None:
    """With host.name, Jaeger does not take deliveries, which begin after their step has ended, for clock skew."""
    done = _run_agent(servers, step_receiver.url)
    until("the whole trace", lambda: len(nodes_of(servers, done.trace_id)) == 1 + 3 * len(done.outcomes))
    assert not [node.raw for node in nodes_of(servers, done.trace_id) if "skew" in node.raw or "warning" in node.raw]


def test_jaeger_finds_a_discarded_delivery(servers: Servers, step_receiver: ScriptedReceiver) -> None:
    """A discarded delivery has status error, and a search for its result finds it."""
    step_receiver.answers(*[410] * 6)
    done = _run_agent(servers, step_receiver.url)
    until("the whole trace", lambda: len(nodes_of(servers, done.trace_id)) == 1 + 3 * len(done.outcomes))
    deliveries = [node for node in nodes_of(servers, done.trace_id) if node.name == "step_hook.deliver"]
    assert [(node.status, node.attributes["step_hook.result"]) for node in deliveries] == [(ERROR, "discarded")] * 6
    tags = urllib.parse.quote('{"step_hook.result":"discarded"}')
    found = servers.ask(f"/api/traces?service=agent&operation=step_hook.deliver&tags={tags}")
    assert done.trace_id in {trace["traceID"] for trace in found["data"]}


def test_the_collector_accepts_its_configuration_without_warnings(servers: Servers) -> None:
    """`collector-config.yaml` is valid, and neither its validation nor a run with it logs a warning."""
    command = [str(binary("collector")), "validate", "--config", str(_ROOT / "collector-config.yaml")]
    validated = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert (validated.returncode, validated.stdout + validated.stderr) == (0, "")
    log = servers.collector_log.read_text()
    assert "Everything is ready" in log
    assert "\twarn\t" not in log
    assert "\terror\t" not in log


def test_temporal_starts() -> None:
    """The Temporal server has been built and prints its version."""
    version = subprocess.run([str(binary("temporal-cli")), "--version"], capture_output=True, text=True, check=True)
    assert "temporal version" in version.stdout
