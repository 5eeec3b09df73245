"""Application, `otel-step-hook worker` and receiver in one trace, as the real Jaeger shows it."""

import socket
from collections.abc import Iterator

import pytest
from processes import Program
from servers.deployment import Deployment, stopped
from servers.running import until
from servers.temporal import TemporalServer
from servers.temporal_workers import Server
from servers.traces import ERROR, Servers, below, nodes_of

from otel_step_hook.testing import ScriptedReceiver

pytest_plugins = ["servers.temporal_fixtures", "servers.trace_fixtures"]
pytestmark = pytest.mark.servers

_APPLICATION = """
from application import *
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import BatchSpanProcessor

provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
span = tracer.start_span("step", attributes={"step_id": sys.argv[1]})
span.end()
provider.force_flush()
provider.shutdown()
print(f"{span.get_span_context().trace_id:032x}")
"""


@pytest.fixture
def exported(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Servers:
    """Jaeger behind a Collector, to which all programs export."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", servers.otlp)
    # Without it, Jaeger takes a delivery, which begins when its parent has ended, for clock skew, and moves it.
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", f"host.name={socket.gethostname()},service.name=agent")
    return servers


@pytest.fixture
def deployment(temporal_server: Server, step_receiver: ScriptedReceiver) -> Iterator[Deployment]:
    """Programs with a task queue of their own."""
    with Deployment(temporal_server, step_receiver.url) as deployment:
        yield deployment


def _trace_id(application: Program) -> str:
    ended = application.ended()
    assert (ended.code, ended.err) == (0, "")
    return ended.out[-1]


def test_one_trace(exported: Servers, deployment: Deployment, step_receiver: ScriptedReceiver) -> None:
    """The worker writes delivery and attempts, below the step and with the application's resource; nobody else does."""
    step_receiver.answers(503)
    trace_id = _trace_id(deployment.start(code=_APPLICATION))
    until("the application's span", lambda: nodes_of(exported, trace_id))
    worker = deployment.worker(OTEL_RESOURCE_ATTRIBUTES="service.name=worker")
    step_receiver.wait_for(2, timeout=40)
    stopped(worker)
    until("the whole trace", lambda: len(nodes_of(exported, trace_id)) >= 4)
    nodes = nodes_of(exported, trace_id)
    assert sorted(node.name for node in nodes) == ["POST", "POST", "step", "step_hook.deliver"]
    (step,) = (node for node in nodes if node.name == "step")
    (delivery,) = below(nodes, step, "step_hook.deliver")
    attempts = below(nodes, delivery, "POST")
    assert delivery.attributes["step_hook.result"] == "delivered"
    assert [attempt.attributes["http.response.status_code"] for attempt in attempts] == ["503", "204"]
    assert [attempt.status == ERROR for attempt in attempts] == [True, False]
    assert {node.service for node in nodes} == {"agent"}
    sent = [webhook.headers["traceparent"].split("-")[1:3] for webhook in step_receiver.received]
    assert sent == [[trace_id, attempt.id] for attempt in attempts]


def test_a_refusal_for_good(exported: Servers, deployment: Deployment, step_receiver: ScriptedReceiver) -> None:
    """The worker writes the delivery that it discards, with status error."""
    step_receiver.answers(410)
    worker = deployment.worker()
    trace_id = _trace_id(deployment.start(code=_APPLICATION))
    step_receiver.wait_for(1, timeout=40)
    stopped(worker)
    until("the whole trace", lambda: len(nodes_of(exported, trace_id)) >= 3)
    nodes = nodes_of(exported, trace_id)
    assert sorted(node.name for node in nodes) == ["POST", "step", "step_hook.deliver"]
    (delivery,) = (node for node in nodes if node.name == "step_hook.deliver")
    assert (delivery.status, delivery.attributes["step_hook.result"]) == (ERROR, "discarded")
    assert delivery.attributes["error.type"] == "410"


def test_a_handover_that_is_given_up(
    exported: Servers, newer_temporal: TemporalServer, step_receiver: ScriptedReceiver, closed_port: int
) -> None:
    """Where no server answers, the application itself writes a discarded delivery, without attempts."""
    with Deployment(newer_temporal, step_receiver.url, give_up_after=2) as deployment:
        application = deployment.start(code=_APPLICATION, variables={"TEMPORAL_ADDRESS": f"127.0.0.1:{closed_port}"})
        ended = application.ended()
    assert (ended.code, ended.noise) == (0, [])
    (trace_id,) = ended.out
    until("the whole trace", lambda: len(nodes_of(exported, trace_id)) >= 2)
    nodes = nodes_of(exported, trace_id)
    assert sorted(node.name for node in nodes) == ["step", "step_hook.deliver"]
    (delivery,) = (node for node in nodes if node.name == "step_hook.deliver")
    assert (delivery.status, delivery.attributes["step_hook.result"]) == (ERROR, "discarded")
    assert (delivery.attributes["error.type"], delivery.service) == ("UNAVAILABLE", "agent")
    assert step_receiver.received == []
