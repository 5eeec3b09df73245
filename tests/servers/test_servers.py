"""Deliveries as the real Jaeger shows them, behind the real Collector, read from Jaeger's API."""

import asyncio
import json
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from servers.build import binary
from servers.running import LIMIT, accepts, free_ports, running, until

from otel_step_hook import StepHookProcessor, StepHookSettings
from otel_step_hook.cli.demo import AgentRun, agent
from otel_step_hook.testing import ScriptedReceiver

pytestmark = pytest.mark.servers

_ROOT = Path(__file__).resolve().parents[2]
_ERROR = 2  # OTLP: STATUS_CODE_ERROR
_ENDPOINTS = (
    "JAEGER_QUERY_HTTP_ENDPOINT",
    "JAEGER_QUERY_GRPC_ENDPOINT",
    "JAEGER_OTLP_GRPC_ENDPOINT",
    "JAEGER_OTLP_HTTP_ENDPOINT",
    "COLLECTOR_OTLP_GRPC_ENDPOINT",
    "COLLECTOR_OTLP_HTTP_ENDPOINT",
)


@dataclass(frozen=True, slots=True)
class Servers:
    """A Collector that exports to a Jaeger, both on loopback. *otlp* and *jaeger* are base URLs."""

    otlp: str
    jaeger: str
    collector_log: Path

    def ask(self, path: str) -> Any:
        """Jaeger's answer to a GET of *path*, from JSON; None for 404, because the trace has not arrived yet."""
        try:
            with urllib.request.urlopen(f"{self.jaeger}{path}", timeout=LIMIT) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.NOT_FOUND:
                return None
            raise


@dataclass(frozen=True, slots=True)
class Node:
    """One span in Jaeger's answer."""

    name: str
    id: str
    parent: str
    status: int
    attributes: dict[str, str]
    raw: str


def _free_endpoints() -> dict[str, str]:
    ports = free_ports(len(_ENDPOINTS))
    return {name: f"127.0.0.1:{port}" for name, port in zip(_ENDPOINTS, ports, strict=True)}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Jaeger and the Collector. Jaeger starts first: without it, the Collector logs warnings."""
    logs, endpoints = tmp_path_factory.mktemp("servers"), _free_endpoints()
    servers = Servers(
        otlp=f"http://{endpoints['COLLECTOR_OTLP_HTTP_ENDPOINT']}",
        jaeger=f"http://{endpoints['JAEGER_QUERY_HTTP_ENDPOINT']}",
        collector_log=logs / "collector.log",
    )
    jaeger: list[str | Path] = [binary("jaeger"), "--config", _ROOT / "tests/servers/jaeger.yaml"]
    collector: list[str | Path] = [binary("collector"), "--config", _ROOT / "collector-config.yaml"]
    with running(jaeger, logs / "jaeger.log", endpoints) as first:
        first.wait_until("Jaeger listens", lambda: accepts(endpoints["JAEGER_QUERY_HTTP_ENDPOINT"]))
        first.wait_until("Jaeger receives", lambda: accepts(endpoints["JAEGER_OTLP_GRPC_ENDPOINT"]))
        with running(collector, servers.collector_log, endpoints) as second:
            second.wait_until("the Collector listens", lambda: accepts(endpoints["COLLECTOR_OTLP_HTTP_ENDPOINT"]))
            yield servers


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


def _nodes(servers: Servers, trace_id: str) -> list[Node]:
    answer = servers.ask(f"/api/v3/traces/{trace_id}")
    if answer is None:
        return []
    return [
        Node(
            name=span["name"],
            id=span["spanId"],
            parent=span.get("parentSpanId", ""),
            status=span.get("status", {}).get("code", 0),
            attributes={item["key"]: str(next(iter(item["value"].values()))) for item in span.get("attributes", [])},
            raw=json.dumps(span),
        )
        for resource in answer["result"]["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def _below(nodes: list[Node], parent: Node, name: str) -> list[Node]:
    found = [node for node in nodes if node.parent == parent.id and node.name == name]
    return sorted(found, key=lambda node: int(node.attributes.get("http.request.resend_count", "0")))


def test_the_trace_in_jaeger_shows_every_delivery(servers: Servers, step_receiver: ScriptedReceiver) -> None:
    """In Jaeger each step has its delivery and attempts below it, and failed attempts have status error."""
    step_receiver.answers(503, 503)
    done = _run_agent(servers, step_receiver.url)
    expected = 1 + 2 * len(done.outcomes) + len(step_receiver.received)
    until("the whole trace", lambda: len(_nodes(servers, done.trace_id)) == expected)
    nodes = _nodes(servers, done.trace_id)
    steps = {node.attributes["step_id"]: node for node in nodes if "step_id" in node.attributes}
    assert steps.keys() == done.outcomes.keys()
    statuses: list[list[str]] = []
    for step_id, outcome in done.outcomes.items():
        (delivery,) = _below(nodes, steps[step_id], "step_hook.deliver")
        assert delivery.attributes["step_hook.outcome"] == outcome
        assert delivery.attributes["step_hook.result"] == "delivered"
        assert delivery.status != _ERROR
        attempts = _below(nodes, delivery, "POST")
        statuses.append([attempt.attributes["http.response.status_code"] for attempt in attempts])
        assert all((attempt.status == _ERROR) == ("error.type" in attempt.attributes) for attempt in attempts)
    flat = [status for row in statuses for status in row]
    assert sorted(flat) == ["204"] * len(done.outcomes) + ["503"] * 2
    assert all(row[-1] == "204" for row in statuses)


def test_jaeger_does_not_adjust_clock_skew(servers: Servers, step_receiver: ScriptedReceiver) -> None:
    """With host.name, Jaeger does not take deliveries, which begin after their step has ended, for clock skew."""
    done = _run_agent(servers, step_receiver.url)
    until("the whole trace", lambda: len(_nodes(servers, done.trace_id)) == 1 + 3 * len(done.outcomes))
    assert not [node.raw for node in _nodes(servers, done.trace_id) if "skew" in node.raw or "warning" in node.raw]


def test_jaeger_finds_a_discarded_delivery(servers: Servers, step_receiver: ScriptedReceiver) -> None:
    """A discarded delivery has status error, and a search for its result finds it."""
    step_receiver.answers(*[410] * 6)
    done = _run_agent(servers, step_receiver.url)
    until("the whole trace", lambda: len(_nodes(servers, done.trace_id)) == 1 + 3 * len(done.outcomes))
    deliveries = [node for node in _nodes(servers, done.trace_id) if node.name == "step_hook.deliver"]
    assert [(node.status, node.attributes["step_hook.result"]) for node in deliveries] == [(_ERROR, "discarded")] * 6
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
