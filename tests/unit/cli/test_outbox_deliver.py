"""`otel-step-hook outbox deliver`: what arrives, what is exported, and what is left."""

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource as OtlpResource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from outboxes import die_with_journal, rows
from support import Cli, log_lines

from otel_step_hook.cli import exporting
from otel_step_hook.testing import Answer, ScriptedReceiver


@pytest.fixture
def outbox(written: Path, tmp_path: Path, step_receiver: ScriptedReceiver, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `written`, which the variables name; the receiver is `step_receiver`."""
    path = tmp_path / "steps.db"
    shutil.copy(written, path)
    monkeypatch.setenv("STEP_COMPLETE_OUTBOX", str(path))
    monkeypatch.setenv("STEP_COMPLETE_WEBHOOK", step_receiver.url)
    return path


@pytest.fixture
def collector() -> Iterator[ScriptedReceiver]:
    """Receives traces by OTLP over HTTP."""
    with ScriptedReceiver() as collector:
        yield collector


def _exported(collector: ScriptedReceiver) -> list[ResourceSpans]:
    return [one for got in collector.received for one in ExportTraceServiceRequest.FromString(got.body).resource_spans]


def _attributes(one: Span | OtlpResource) -> dict[str, object]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in one.attributes}


def _make_due(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE delivery SET due_at = submitted_at WHERE discarded_at IS NULL")
    database.close()


def test_deliver(cli: Cli, outbox: Path, step_receiver: ScriptedReceiver) -> None:
    """What is due is delivered under its webhook id and with its body, and leaves the file; the rest stays."""
    before = rows(outbox)
    _make_due(outbox)
    status, output, errors = cli("outbox", "deliver", "--json")
    assert (status, errors) == (0, "")
    assert json.loads(output) == {
        "outbox": str(outbox),
        "delivered": 1,
        "handed_over": 0,
        "discarded": 0,
        "left": 0,
        "due_at": None,
    }
    (webhook,) = step_receiver.received
    assert (webhook.headers["webhook-id"], webhook.step_id) == (before["later"].webhook_id, "later")
    assert list(rows(outbox)) == ["gone", "aborted"]
    assert [file.name for file in outbox.parent.iterdir()] == ["steps.db"]


def test_deliver_what_was_redelivered(cli: Cli, outbox: Path, step_receiver: ScriptedReceiver) -> None:
    """A delivery that is refused again is discarded again: the exit status is 1."""
    assert cli("outbox", "redeliver", "--all")[0] == 0
    step_receiver.answers(410)
    status, output, _ = cli("outbox", "deliver")
    (left,) = [row for row in rows(outbox).values() if not row.is_discarded]
    assert left.step_id == "later"
    assert status == 1
    assert output.startswith("1 delivered, 1 discarded, 1 left; the next is due in ")
    assert sorted(webhook.step_id for webhook in step_receiver.received) == ["aborted", "gone"]


def test_deliver_ends_when_nothing_is_due_in_time(cli: Cli, outbox: Path, step_receiver: ScriptedReceiver) -> None:
    """It does not wait for what is due later, and says that it is left: the exit status is 1."""
    before, began = rows(outbox), time.monotonic()
    status, output, _ = cli("outbox", "deliver", "--timeout", "100", "--json")
    assert time.monotonic() - began < 50
    document = json.loads(output)
    assert (status, document["left"], document["delivered"]) == (1, 1, 0)
    due_at = datetime.fromisoformat(document["due_at"]).timestamp()
    assert due_at == pytest.approx(before["later"].due_at, abs=1.0)
    assert (rows(outbox), step_receiver.received) == (before, [])


def test_deliver_waits_for_what_is_due_within_its_time(cli: Cli, outbox: Path, step_receiver: ScriptedReceiver) -> None:
    """A delivery that fails is tried again, as in an application."""
    _make_due(outbox)
    step_receiver.answers(503, 503)
    status, output, _ = cli("outbox", "deliver", INITIAL_BACKOFF="0.5", MAX_BACKOFF="0.5")
    assert (status, output) == (0, "1 delivered, 0 discarded, 0 left\n")
    assert len({webhook.headers["webhook-id"] for webhook in step_receiver.received}) == 1
    assert len(step_receiver.received) == 3


def test_deliver_until_its_time_is_up(cli: Cli, outbox: Path, step_receiver: ScriptedReceiver) -> None:
    """An attempt in flight then may end, for a second; what is left is due at once for the next process."""
    _make_due(outbox)
    step_receiver.answers(Answer(delay=100.0))
    status, output, _ = cli("outbox", "deliver", "--timeout", "2")
    assert (status, output) == (1, "0 delivered, 0 discarded, 1 left; the next is due now\n")
    assert not rows(outbox)["later"].is_leased


@pytest.mark.parametrize("exists", [True, False], ids=["with a file", "without a file"])
def test_deliver_what_dead_processes_left_in_journals(
    cli: Cli, outbox: Path, step_receiver: ScriptedReceiver, *, exists: bool
) -> None:
    """Their steps are delivered, and the journals removed; the file is made if they died before it was."""
    die_with_journal(outbox, "left-1", "left-2")
    if not exists:
        outbox.unlink()
    status, output, _ = cli("outbox", "deliver")
    left = {"gone": 1, "aborted": 1, "later": 1} if exists else {}
    assert (status, output.partition(";")[0].strip()) == (
        (1, "2 delivered, 0 discarded, 1 left") if exists else (0, "2 delivered, 0 discarded, 0 left")
    )
    assert sorted(webhook.step_id for webhook in step_receiver.received) == ["left-1", "left-2"]
    assert {row.step_id: row.attempts for row in rows(outbox).values()} == left
    assert not list(outbox.parent.glob("*.journal"))


def test_deliver_leaves_other_endpoints_alone(
    cli: Cli, outbox: Path, step_receiver: ScriptedReceiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows and journals of endpoints that are not in the settings stay, and are named in the log."""
    _make_due(outbox)
    journal = die_with_journal(outbox, "left")
    endpoints = tmp_path / "endpoints.toml"
    endpoints.write_text(f'[[endpoint]]\nname = "other"\nwebhook = "{step_receiver.url}"\n')
    before = rows(outbox)
    status, output, _ = cli("outbox", "deliver", WEBHOOK="", ENDPOINTS=str(endpoints))
    assert (status, output) == (0, "0 delivered, 0 discarded, 0 left\n")
    assert (rows(outbox), journal.exists(), step_receiver.received) == (before, True, [])
    assert "1 deliveries for endpoint default, which this process does not know" in "".join(log_lines(caplog))


def test_deliver_to_several_endpoints(
    cli: Cli, outbox: Path, step_receiver: ScriptedReceiver, collector: ScriptedReceiver, tmp_path: Path
) -> None:
    """Each endpoint gets what waits for it."""
    _make_due(outbox)
    die_with_journal(outbox, "left", endpoint="other")
    endpoints = tmp_path / "endpoints.toml"
    endpoints.write_text(
        f'[[endpoint]]\nname = "default"\nwebhook = "{step_receiver.url}"\n'
        f'[[endpoint]]\nname = "other"\nwebhook = "{collector.url}"\n'
    )
    status, output, _ = cli("outbox", "deliver", WEBHOOK="", ENDPOINTS=str(endpoints))
    assert (status, output) == (0, "2 delivered, 0 discarded, 0 left\n")
    assert [webhook.step_id for webhook in step_receiver.received] == ["later"]
    assert [webhook.step_id for webhook in collector.received] == ["left"]


@pytest.mark.usefixtures("outbox")
def test_a_bar_on_a_terminal(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal a bar shows how many deliveries have ended; with `--json` there is none."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stdout for a terminal
    cli("outbox", "redeliver", "gone")
    _, output, _ = cli("outbox", "deliver", "--timeout", "3")
    assert "1 of 2" in output
    assert "━" in output
    assert json.loads(cli("outbox", "deliver", "--json", "--timeout", "0")[1])["left"] == 1


# What is exported


def test_spans_are_children_of_the_steps_own(
    cli: Cli,
    outbox: Path,
    step_receiver: ScriptedReceiver,
    collector: ScriptedReceiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are in the step's trace, below its span, with the resource of the process that ended it."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "cron-job")
    die_with_journal(outbox, "left")
    (step,) = json.loads(cli("outbox", "show", "--json", "later")[1])["deliveries"]
    _make_due(outbox)
    assert cli("outbox", "deliver")[0] == 0
    spans = [span for one in _exported(collector) for scope in one.scope_spans for span in scope.spans]
    assert sorted(span.name for span in spans) == ["POST", "POST", "step_hook.deliver", "step_hook.deliver"]
    assert {_attributes(one.resource)["service.name"] for one in _exported(collector)} == {"dead", "tests"}
    (delivery,) = [span for span in spans if _attributes(span).get("step_hook.step_id") == "later"]
    assert (delivery.trace_id.hex(), delivery.parent_span_id.hex()) == (step["trace_id"], step["span_id"])
    (post,) = [span for span in spans if span.parent_span_id == delivery.span_id]
    assert (post.trace_id, _attributes(post)["http.request.resend_count"]) == (delivery.trace_id, 1)
    headers = {webhook.step_id: webhook.headers["traceparent"] for webhook in step_receiver.received}
    assert headers["later"][:-2] == f"00-{post.trace_id.hex()}-{post.span_id.hex()}-"


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {
            "OTEL_TRACES_EXPORTER": "none",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1]:9",
        },
        {"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "TRUE"},
    ],
    ids=["nothing is set", "none", "disabled"],
)
def test_nothing_is_exported(
    cli: Cli, outbox: Path, step_receiver: ScriptedReceiver, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """Webhooks are sent all the same; their `traceparent` names no span but the step's, which is in the trace."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (step,) = json.loads(cli("outbox", "show", "--json", "later")[1])["deliveries"]
    _make_due(outbox)
    assert cli("outbox", "deliver") == (0, "1 delivered, 0 discarded, 0 left\n", "")
    (webhook,) = step_receiver.received
    parent = f"00-{step['trace_id']}-{step['span_id']}-"
    # Older tracers that do nothing do not keep the context of the step: then there is no header.
    assert webhook.headers.get("traceparent", parent).startswith(parent)


@pytest.mark.parametrize(
    ("variables", "missing"),
    [
        ("OTEL_TRACES_EXPORTER=zipkin", "zipkin is not installed; expected"),
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:9 OTEL_EXPORTER_OTLP_PROTOCOL=grpc",
            "otlp_proto_grpc is not installed; expected",
        ),
        (
            "OTEL_TRACES_EXPORTER=otlp",
            "otlp_proto_http is not installed; for otlp: pip install 'otel-step-hook[otlp]'; expected",
        ),
    ],
    ids=["zipkin", "grpc", "without the extra"],
)
def test_an_exporter_that_is_not_installed(
    cli: Cli, outbox: Path, monkeypatch: pytest.MonkeyPatch, variables: str, missing: str
) -> None:
    """The exit status is 2, and nothing is sent: its spans would be lost."""
    for name, _, value in (variable.partition("=") for variable in variables.split()):
        monkeypatch.setenv(name, value)
    if "pip" in missing:
        monkeypatch.setattr(exporting, "entry_points", lambda **_: ())
    _make_due(outbox)
    before = rows(outbox)
    status, output, errors = cli("outbox", "deliver")
    assert (status, output, rows(outbox)) == (2, "", before)
    assert errors.startswith(f"OTEL_TRACES_EXPORTER: the exporter {missing} ")


@pytest.mark.usefixtures("step_receiver")
def test_metrics_that_are_read_from_outside_are_left_out(
    cli: Cli, outbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that fits an application, such as for Prometheus, does not keep the command from its work."""
    asked: list[dict[str, str]] = []

    class Pulled:
        def load(self) -> type[InMemoryMetricReader]:
            return InMemoryMetricReader

    def find(**wanted: str) -> list[Pulled]:
        asked.append(wanted)
        return [Pulled()]

    monkeypatch.setattr(exporting, "entry_points", find)
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
    _make_due(outbox)
    assert cli("outbox", "deliver") == (0, "1 delivered, 0 discarded, 0 left\n", "")
    assert asked == [{"group": "opentelemetry_metrics_exporter", "name": "prometheus"}]


def test_no_endpoint_to_deliver_to(cli: Cli, outbox: Path) -> None:
    """The exit status is 2, and the error names the variable."""
    before = rows(outbox)
    status, _, errors = cli("outbox", "deliver", WEBHOOK="")
    assert (status, errors.partition(",")[0]) == (2, "STEP_COMPLETE_WEBHOOK is not set")
    assert rows(outbox) == before
