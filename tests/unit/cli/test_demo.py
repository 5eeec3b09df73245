import asyncio
import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from pytest_httpserver import HTTPServer
from rich.console import Console
from support import Pipeline

import otel_step_hook.cli.demo
from otel_step_hook.cli.demo import AgentRun, agent, run
from otel_step_hook.steps.event import Outcome
from otel_step_hook.testing import HostileReceiver, ScriptedReceiver


@pytest.fixture
def console() -> Console:
    """A console of 92 columns without colours."""
    return Console(file=StringIO(), width=92)


def _output(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_demo(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The demo delivers every step, shows arrivals and trace, and ignores STEP_COMPLETE_… variables."""
    for name, value in {"WEBHOOK": "https://192.0.2.1/", "KEY": "\n", "TIMEOUT": "soon", "TIMOUT": "1"}.items():
        monkeypatch.setenv(f"STEP_COMPLETE_{name}", value)
    assert run(console, svg=tmp_path / "trace.svg") == 0
    output = _output(console)
    arrivals = re.findall(r"^\d\.\d\d s +(\d) +(\d{3}) .*  (step-\S+)$", output, re.MULTILINE)
    assert len(arrivals) == 8
    assert [(attempt, status) for attempt, status, step in arrivals if step == "step-2-search_flights"] == [
        ("1", "503"),
        ("2", "503"),
        ("3", "204"),
    ]
    for line in (
        r"^weekend in Lisbon +\d+\.\d\d s  ━+ *$",
        r"^├─ search_trains +cancelled +[\d.]+ m?s +━+ *$",
        r"^├─ book_hotel +failed FullyBooked +[\d.]+ m?s +━+ *$",
        r"^│  └─ step_hook.deliver  delivered, 3 attempts +[\d.]+ m?s +─+ *$",
        r"^│     ├─ POST +503 Service Unavailable +[\d.]+ m?s +─+ *$",
        r"^6 steps: 4 success, 1 failed, 1 cancelled\. All were delivered, in 8 attempts\.$",
    ):
        assert re.search(line, output, re.MULTILINE), line
    assert max(map(len, output.splitlines())) <= 110  # the path of the picture
    assert (tmp_path / "trace.svg").read_text(encoding="utf-8").count("503&#160;Service&#160;Unavailable") == 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("short_demo")
def test_the_demo_leaves_nothing_behind(console: Console) -> None:
    """After the demo its threads and log handlers are gone, and the global tracer provider is unchanged."""
    before = (set(threading.enumerate()), list(logging.getLogger("otel_step_hook").handlers))
    provider = trace.get_tracer_provider()
    run(console)
    assert (set(threading.enumerate()), list(logging.getLogger("otel_step_hook").handlers)) == before
    assert trace.get_tracer_provider() is provider


@pytest.mark.usefixtures("short_demo")
def test_a_demo_without_the_sdk(console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the SDK is disabled, the demo says so and exits with 1."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    picture = tmp_path / "trace.svg"
    assert run(console, svg=picture, otlp="http://127.0.0.1:9") == 1
    reason = "No span was recorded: OTEL_SDK_DISABLED may have switched OpenTelemetry's SDK off."
    assert _output(console).splitlines()[-2:] == ["", reason]
    assert not picture.exists()


def test_deliveries_that_differ_from_what_the_agent_did(hooked: Pipeline, console: Console) -> None:
    """A wrong outcome, a missing or surplus delivery, and a missing refusal are each reported in a sentence."""
    for step_id in ("step-1", "step-2-search_flights", "step-3"):
        hooked.end_step(step_id)
    outcomes = {
        "step-1": Outcome.FAILED,
        "step-2-search_flights": Outcome.SUCCESS,
        "step-4": Outcome.CANCELLED,
    }
    assert otel_step_hook.cli.demo._print_result(console, AgentRun("0" * 32, outcomes), hooked.spans) == 1
    assert _output(console).splitlines() == [
        "Not as it should be:",
        "  step-1: expected failed, and success was delivered",
        "  step-4: expected cancelled, and nothing was delivered",
        "  step-3: expected nothing, and success was delivered",
        "  step-2-search_flights: accepted at attempt 1, although 2 were to be refused",
    ]


def test_the_agent(hooked: Pipeline, step_receiver: ScriptedReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook reports the outcomes that the agent returns, and all spans are in one trace."""
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: sleep(seconds / 10))
    done = asyncio.run(agent(hooked.tracer))
    assert hooked.provider.force_flush()
    reported = {
        span.attributes["step_hook.step_id"]: span.attributes["step_hook.outcome"]
        for span in hooked.named("step_hook.deliver")
        if span.attributes is not None
    }
    assert reported == done.outcomes
    assert set(reported.values()) == set(Outcome)
    assert {trace.format_trace_id(span.context.trace_id) for span in hooked.spans} == {done.trace_id}
    assert {received.step_id for received in step_receiver.received} == set(done.outcomes)


# Export


@pytest.fixture
def spans(hooked: Pipeline) -> Sequence[ReadableSpan]:
    """The spans of one step, which have ended."""
    hooked.end_step()
    return hooked.spans


@pytest.mark.usefixtures("short_demo")
def test_export(console: Console, httpserver: HTTPServer) -> None:
    """The collector receives the whole trace, and the demo prints where Jaeger shows it."""
    httpserver.expect_request("/base/v1/traces", method="POST").respond_with_data(b"")
    assert run(console, otlp=httpserver.url_for("/base/")) == 0
    ((request, _),) = httpserver.log
    (exported,) = ExportTraceServiceRequest.FromString(request.get_data()).resource_spans
    resource = {attribute.key: attribute.value.string_value for attribute in exported.resource.attributes}
    assert (resource["service.name"], resource["host.name"]) == ("travel-agent", socket.gethostname())
    exported_spans = [span for scope in exported.scope_spans for span in scope.spans]
    assert sorted(span.name for span in exported_spans) == ["POST", "plan", "step_hook.deliver", "weekend in Lisbon"]
    (trace_id,) = {span.trace_id.hex() for span in exported_spans}
    host = httpserver.host
    assert f"Exported trace {trace_id}; with Jaeger, look at http://{host}:16686/trace/{trace_id}\n" in _output(console)


@pytest.mark.usefixtures("short_demo")
def test_export_without_a_collector(
    console: Console, closed_port: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no collector answers, the demo says so, and still succeeds."""
    monkeypatch.setattr(otel_step_hook.cli.demo, "_EXPORT_TIME", 0.2)
    assert run(console, otlp=f"http://user:pw@127.0.0.1:{closed_port}") == 0
    output = _output(console)
    assert re.search(
        r"^The trace was not exported: nothing at http://127.0.0.1:\d+ has accepted it", output, re.MULTILINE
    )
    assert capfd.readouterr() == ("", "")


def _stay_silent(_: socket.socket, closing: threading.Event) -> None:
    closing.wait()


def test_export_to_a_collector_that_hangs(spans: Sequence[ReadableSpan], monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector that never answers delays the demo by no more than a few seconds."""
    monkeypatch.setattr(otel_step_hook.cli.demo, "_EXPORT_TIME", 0.2)
    began = time.monotonic()
    with HostileReceiver(_stay_silent) as collector:
        result = otel_step_hook.cli.demo._export(collector.url, spans, "0" * 32)
    assert result.startswith("The trace was not exported: nothing at http://127.0.0.1:")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "endpoint", ["garbage", "localhost:4318", "ftp://localhost", "http://", "http://localhost:http", "http://[::1"]
)
def test_export_to_no_url(spans: Sequence[ReadableSpan], endpoint: str) -> None:
    """If the endpoint is not an http(s) URL, the demo shows an example of one."""
    assert otel_step_hook.cli.demo._export(endpoint, spans, "0" * 32) == (
        "The trace was not exported: OTEL_EXPORTER_OTLP_ENDPOINT or --otlp is not a URL; "
        "expected one such as http://127.0.0.1:4318"
    )


def test_the_host_of_the_link_to_jaeger() -> None:
    """The host has brackets if it is an IPv6 address, and neither user name nor password."""
    assert otel_step_hook.cli.demo._host("http://user:pw@[::1]:4318/base") == "[::1]"
    assert otel_step_hook.cli.demo._host("https://collector.example") == "collector.example"


def test_export_without_the_extra(spans: Sequence[ReadableSpan], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the exporter, the demo names the extra to install."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    result = otel_step_hook.cli.demo._export("http://127.0.0.1:9", spans, "0" * 32)
    assert result == "The trace was not exported: that needs an extra: pip install 'otel-step-hook[otlp]'"
