"""What the documentation shows of requests, spans and metrics, against those of a step that is sent."""

import json
import logging
import re

import pytest
from delivering import event, failed
from documentation import KEY, ROOT, claim, page
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from support import log_lines, pipeline

from otel_step_hook.delivery.delivery_log import DeliveryLog
from otel_step_hook.delivery.log import RateLimitedLog
from otel_step_hook.delivery.model import Delivery, Endpoint, Pipeline
from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.steps.event import Outcome
from otel_step_hook.testing import Received, ScriptedReceiver

_REQUEST = claim("docs/receivers.md", "POST /hooks/steps HTTP/1.1")
_FULL = claim("docs/receivers.md", '"type": "step.success"')
_TREE = claim("docs/telemetry.md", "└─ step_hook.deliver")
_LINES = claim("docs/telemetry.md", "WARNING the receiver")
_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def _sent(receiver: ScriptedReceiver, *, payload: str) -> Received:
    with pipeline(receiver.url, payload=payload, key=KEY, signing_secret=_SECRET) as hooked:
        hooked.tracer.start_span("search", attributes={"step_id": "step-42"}).end()
        assert hooked.provider.force_flush()
    (received,) = receiver.received
    return received


def _shape(value: str) -> str:
    """*value* with one sign for each kind of character, and one for each run of them: ids of one form look the same."""
    return re.sub(r"[0-9]+(\.[0-9]+)*", "0", re.sub(r"[A-Za-z0-9+/=]{6,}", "x", value))


def test_the_request_is_shown_whole(step_receiver: ScriptedReceiver) -> None:
    """It has the headers that are shown and no others, each in that form, and that body."""
    head, _, body = _REQUEST.text.partition("\n\n")
    shown = dict(line.split(": ", 1) for line in head.splitlines()[1:])
    received = _sent(step_receiver, payload="step_id")
    assert received.body == body.strip().encode()
    assert received.headers.keys() == shown.keys()
    for name in shown.keys() - {"host", "authorization"}:
        assert _shape(received.headers[name]) == _shape(shown[name]), name
    assert received.headers["content-length"] == shown["content-length"]


def _form(value: object) -> object:
    """*value* with times and hexadecimal ids as signs of their form."""
    if isinstance(value, dict):
        return {name: _form(inner) for name, inner in value.items()}
    text = str(value)
    if re.fullmatch(r"[\d-]{10}T[\d:]{8}\.\d{6}Z", text):
        return "a time"
    return len(text) if re.fullmatch("[0-9a-f]+", text) else text


def test_the_full_body_is_shown_whole(step_receiver: ScriptedReceiver) -> None:
    """It has the names that are shown and no others, in that order; times and ids have the same form."""
    shown, received = json.loads(_FULL.text), json.loads(_sent(step_receiver, payload="full").body)
    assert json.dumps(_form(received)) == json.dumps(_form(shown))


def _described(span: ReadableSpan) -> str:
    attributes = span.attributes or {}
    if "error.type" in attributes:
        return f"error.type={attributes['error.type']!s}"
    status = attributes.get("http.response.status_code")
    return "" if status is None else f"http.response.status_code={status}"


def test_the_tree_of_spans_is_that_of_a_step(step_receiver: ScriptedReceiver) -> None:
    """A step that is refused once, and then accepted, has these spans, below each other in this way."""
    step_receiver.answers(503, 204)
    with pipeline(step_receiver.url) as hooked:
        hooked.tracer.start_span("search", attributes={"step_id": "step-42"}).end()
        assert hooked.provider.force_flush()
    (step,), (deliver,), attempts = (hooked.named(name) for name in ("search", "step_hook.deliver", "POST"))
    assert deliver.parent == step.context
    assert all(attempt.parent == deliver.context for attempt in attempts)
    lines = _TREE.text.splitlines()
    assert [line.lstrip("├└─ ").split()[0] for line in lines] == ["search", "step_hook.deliver", "POST", "POST"]
    for line, span in zip(lines[2:], attempts, strict=True):
        assert line.endswith(_described(span))


def test_the_log_lines_are_those_of_two_steps(caplog: pytest.LogCaptureFixture) -> None:
    """A step that is refused and then reaches nobody, and one that the end of the process cuts off, log these lines."""
    log = DeliveryLog(Endpoint("default", "https://hooks.example.com/hooks/steps"), RateLimitedLog())
    first, second = (
        Delivery(f"msg_{webhook_id}", event(step_id, outcome), Pipeline(None, Resource({})), 0.0, attempts=1)
        for webhook_id, step_id, outcome in (
            ("asl2afiegv3xbzf422tzzpkqbwevmkrf", "step-1", Outcome.SUCCESS),
            ("gymnrgixirgc4iaamn3tqbuteu6pb2bu", "step-2", Outcome.FAILED),
        )
    )
    first.error_type = second.error_type = "503"
    log.failed(first, failed(503, retry_after=30.0, excerpt=b'{"error": "database is down"}'), 15.0)
    first.error_type, first.attempts = "ConnectionRefusedError", 2
    log.failed(first, AttemptResult(error_type="ConnectionRefusedError"), 15.0)
    log.discarded(second, "shutdown")
    assert log_lines(caplog) == _LINES.text.splitlines()


def test_each_field_of_a_line_is_in_the_table(
    step_receiver: ScriptedReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """The table of fields has those of a line about a delivery, and no others."""
    caplog.set_level("INFO", "otel_step_hook")
    _sent(step_receiver, payload="step_id")
    (record,) = [record for record in caplog.records if record.getMessage().startswith("delivered step step-42")]
    usual = {*vars(logging.makeLogRecord({})), "message", "asctime"}
    rows = re.findall(r"^\| (`(?:otel_step_hook\.|trace_id).*?) \|", page("docs/telemetry.md"), re.MULTILINE)
    assert set(re.findall("`(.*?)`", " ".join(rows))) == set(vars(record)) - usual


def test_each_metric_is_in_the_table() -> None:
    """The table of metrics has those that are made, and no others."""
    made = re.findall(r'"(step_hook\.[a-z.]+)"', (ROOT / "otel_step_hook/delivery/metrics.py").read_text())
    shown = re.findall(r"^\| `(step_hook\.[a-z.]+)`", page("docs/telemetry.md"), re.MULTILINE)
    assert sorted(shown) == sorted(made)
