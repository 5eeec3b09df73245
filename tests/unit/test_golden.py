"""The output of this library, compared with golden files: events, requests, log lines, spans.

After an intended change of the output ``pytest tests -k golden --snapshot-update`` writes them anew.
"""

import json
import logging
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any

import pytest
from corpus_replay import records, replay
from emitting import Framework
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)
from profile_examples import ELSEWHERE, EXAMPLES
from pytest_httpserver import HTTPServer
from rich.console import Console
from standardwebhooks import Webhook
from syrupy.assertion import SnapshotAssertion

from otel_step_hook import StepHookProcessor, StepHookSettings
from otel_step_hook.cli.demo import run
from otel_step_hook.testing import Answer, HostileReceiver, ScriptedReceiver, read_request

SECRET = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


class SequentialIds(IdGenerator):
    """Makes ids that are the comparable in every run."""

    def __init__(self) -> None:
        self._last = 0

    def generate_span_id(self) -> int:
        self._last += 1
        return self._last

    def generate_trace_id(self) -> int:
        return 0x7ACE


@contextmanager
def provided(**settings: object) -> Iterator[TracerProvider]:
    """A provider whose hook has these settings, and whose span ids are the comparable in every run."""
    provider = TracerProvider(id_generator=SequentialIds(), shutdown_on_exit=False)
    provider.add_span_processor(StepHookProcessor(StepHookSettings(**settings)))
    try:
        yield provider
    finally:
        provider.shutdown()


def end_step(provider: TracerProvider, step_id: str = "step-1", **attributes: str) -> None:
    """End a step that takes one second of 2023, and wait for its delivery."""
    provider.get_tracer("tests").start_span(
        "search",
        attributes={"step_id": step_id, **attributes},
        start_time=1_700_000_000_000_000_000,
    ).end(1_700_000_001_000_000_000)
    provider.force_flush()


# Events


def received_events(receiver: ScriptedReceiver) -> list[dict[str, object]]:
    """The events that *receiver* has got, by span id, without their times."""
    events = [
        {"webhook_id": one.headers["webhook-id"], "type": json.loads(one.body)["type"], **one.data}
        for one in receiver.received
    ]
    events.sort(key=lambda event: str(event["span_id"]))
    return [{key: value for key, value in event.items() if key not in {"started_at", "ended_at"}} for event in events]


def test_golden_events_of_the_corpus(step_receiver: ScriptedReceiver, snapshot: SnapshotAssertion) -> None:
    """Each recorded run of a framework gives the comparable events as before."""
    hook = StepHookProcessor(StepHookSettings(webhook=step_receiver.url, payload="full"))
    events = {}
    for record in records():
        already = len(step_receiver.received)
        replay(record, hook)
        assert hook.force_flush(120_000)
        new = {one.headers["webhook-id"] for one in step_receiver.received[already:]}
        events[record.case] = [event for event in received_events(step_receiver) if event["webhook_id"] in new]
    hook.shutdown()
    assert events == snapshot


def test_golden_events_of_each_profile(step_receiver: ScriptedReceiver, snapshot: SnapshotAssertion) -> None:
    """A step of each profile is reported under the comparable step id as before."""
    with provided(webhook=step_receiver.url, payload="full") as provider:
        for example in EXAMPLES:
            framework = Framework(ELSEWHERE)
            framework.provider = provider
            example.emit(framework)
        assert provider.force_flush(120_000)
    assert [
        (str(event["name"]), event["step_id"], event["type"]) for event in received_events(step_receiver)
    ] == snapshot


# Requests


def requests_of(answers: list[bytes], **settings: object) -> list[str]:
    """The requests about one step, as text, to a receiver that gives these answers."""
    requests: list[bytes] = []
    left = list(answers)

    def behave(connection: socket.socket, _: threading.Event) -> None:
        while request := read_request(connection):
            requests.append(request)
            connection.sendall(left.pop(0) + b"content-length: 0\r\n\r\n")

    with HostileReceiver(behave) as receiver:
        url = receiver.url.replace("127.0.0.1", f"{settings.pop('user', '')}127.0.0.1") + str(settings.pop("query", ""))
        with provided(webhook=url, initial_backoff=0.01, max_backoff=0.01, **settings) as provider:
            parent = SpanContext(
                0x7ACE, 0xFF, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("vendor", "state")])
            )
            provider.get_tracer("tests").start_span(
                "search",
                set_span_in_context(NonRecordingSpan(parent)),
                attributes={"step_id": "step-ü"},
                start_time=1_700_000_000_000_000_000,
            ).end(1_700_000_001_123_456_789)
            assert provider.force_flush()
    return [comparable(request) for request in requests]


def comparable(request: bytes) -> str:
    """*request* without the parts that differ from run to run; its signature has been verified."""
    text = request.decode("ascii")
    if "webhook-signature" in text:
        head, _, body = text.partition("\r\n\r\n")
        Webhook(SECRET).verify(body, dict(line.split(": ", 1) for line in head.split("\r\n")[1:]))
    for pattern, name in (
        (r"(?<=127\.0\.0\.1:)\d+", "PORT"),
        (r"(?<=webhook-timestamp: )\d{10}\b", "UNIX SECONDS"),
        (r"(?<=traceparent: 00-0{28}7ace-)[0-9a-f]{16}", "ID OF THE ATTEMPT"),
        (r"(?<=webhook-signature: )v1,[\w/+=]+", "VERIFIED"),
        (r"(?<=user-agent: otel-step-hook/)[\w.+]+", "VERSION"),
    ):
        text = re.sub(pattern, f"<{name}>", text)
    return text


@pytest.mark.parametrize(
    ("answers", "settings"),
    [
        pytest.param([b"HTTP/1.1 204 No Content\r\n"], {}, id="plain"),
        pytest.param([b"HTTP/1.1 204 No Content\r\n"], {"key": "secret", "payload": "full"}, id="full-with-key"),
        pytest.param([b"HTTP/1.1 204 No Content\r\n"], {"signing_secret": SECRET}, id="signed"),
        pytest.param([b"HTTP/1.1 204 No Content\r\n"], {"headers": {"x-team": "agents"}}, id="extra-headers"),
        pytest.param(
            [b"HTTP/1.1 204 No Content\r\n"], {"user": "us%40er:pass@", "query": "?a=b%20c#d"}, id="user-and-query"
        ),
        pytest.param([b"HTTP/1.1 503 No\r\n", b"HTTP/1.1 200 OK\r\n"], {"key": "secret"}, id="two-attempts"),
    ],
)
def test_golden_requests(answers: list[bytes], settings: dict[str, object], snapshot: SnapshotAssertion) -> None:
    """The bytes of each request, head and body, are the same as before, in their order."""
    assert requests_of(answers, **settings) == snapshot


# Log lines


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Level and text of all lines about steps, at every level, in the order in which they are logged."""
    written: list[str] = []
    handler = logging.Handler()
    handler.addFilter(lambda record: "are sent by" not in record.msg)  # the line at start-up, with a version in it
    handler.emit = lambda record: written.append(f"{record.levelname} {record.getMessage()}")  # type: ignore[method-assign]  # -- shorter than a class
    caplog.set_level(logging.DEBUG, "otel_step_hook")
    logger = logging.getLogger("otel_step_hook")
    logger.addHandler(handler)
    yield written
    logger.removeHandler(handler)


def without_ports(lines: list[str]) -> list[str]:
    """*lines* without the ports of receivers, which differ from run to run."""
    return [re.sub(r"(?<=127\.0\.0\.1:)\d+", "PORT", line) for line in lines]


HEADERS = {"webhook-delivery": "abort-message"}
NO_SECOND = {"initial_backoff": 100, "max_backoff": 100}  # seconds; too long for a second attempt


@pytest.mark.parametrize(
    ("answers", "settings"),
    [
        pytest.param([200], {}, id="delivered"),
        pytest.param([503, 302, 204], {}, id="refused-at-first"),
        pytest.param([500], NO_SECOND, id="discarded"),
        pytest.param([410], {}, id="gone"),
        pytest.param([401], {"key": "sesame", **NO_SECOND}, id="unauthorized"),
        pytest.param([Answer(400, body=b'{"error": "step_id is unknown"}')], NO_SECOND, id="with-a-sentence"),
        pytest.param([Answer(429, headers={"retry-after": "120"})], NO_SECOND, id="retry-after"),
        pytest.param([Answer(308, headers={"location": "https://new.test/hook"})], NO_SECOND, id="moved"),
        pytest.param([Answer(400, headers=HEADERS)], {}, id="abort-message"),
        pytest.param([Answer(400, headers={"webhook-delivery": "disable"})], {}, id="disable"),
        pytest.param([Answer(delay=60)], {"timeout": 1, **NO_SECOND}, id="timeout"),
    ],
)
def test_golden_log_lines_about_answers(
    answers: list[int | Answer],
    settings: dict[str, object],
    step_receiver: ScriptedReceiver,
    lines: list[str],
    snapshot: SnapshotAssertion,
) -> None:
    """Two steps that end, the first of which gets these answers, are logged as before."""
    step_receiver.answers(*answers)
    short = {"initial_backoff": 0.01, "max_backoff": 0.01, "give_up_after": 10}
    with provided(webhook=step_receiver.url, **(short | settings)) as provider:
        end_step(provider)
        end_step(provider, "step-2\n")
    assert without_ports(lines) == snapshot


def _raise(_: object) -> bool:
    raise LookupError("a secret")


def test_golden_log_lines_about_steps_that_are_lost(
    closed_port: int, step_receiver: ScriptedReceiver, lines: list[str], snapshot: SnapshotAssertion
) -> None:
    """No webhook, a closed port, a full queue, a shutdown and a rule that raises are logged as before."""
    with provided() as provider:
        end_step(provider)
    with provided(webhook=f"http://127.0.0.1:{closed_port}/", **NO_SECOND) as provider:
        end_step(provider)
    step_receiver.answers(Answer(503, delay=1))
    with provided(webhook=step_receiver.url, max_queue_size=1, shutdown_timeout=4, initial_backoff=9) as provider:
        steps = [
            provider.get_tracer("tests").start_span("search", attributes={"step_id": f"step-{number}"})
            for number in range(4)
        ]
        for step in steps[:3]:
            step.end()
        provider.shutdown()
        steps[3].end()
        provider.force_flush()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(StepHookProcessor(StepHookSettings(webhook=step_receiver.url), is_step=_raise))
    end_step(provider)
    provider.shutdown()
    assert [re.sub(r"(?<= <- )\w+\.py.*", "PLACE", line) for line in without_ports(lines)] == snapshot


# Spans


def test_golden_spans_of_the_demo(httpserver: HTTPServer, snapshot: SnapshotAssertion) -> None:
    """The demo's trace, as a collector receives it, is the same as before."""
    httpserver.expect_request("/v1/traces", method="POST").respond_with_data(b"")
    assert run(Console(file=StringIO(), width=92), otlp=httpserver.url_for("")) == 0
    ((request, _),) = httpserver.log
    (exported,) = ExportTraceServiceRequest.FromString(request.get_data()).resource_spans
    spans = [(scope.scope.name, span) for scope in exported.scope_spans for span in scope.spans]
    spans.sort(key=lambda pair: pair[1].start_time_unix_nano)

    def below(parent: bytes) -> list[dict[str, Any]]:
        return [
            {
                "name": span.name,
                "scope": scope,
                "kind": span.kind,
                "status": StatusCode(span.status.code).name,
                "attributes": {one.key: comparable_value(one.key, MessageToDict(one.value)) for one in span.attributes},
                "events": [event.name for event in span.events],
                "children": below(span.span_id),
            }
            for scope, span in spans
            if span.parent_span_id == parent
        ]

    assert below(b"") == snapshot


def comparable_value(key: str, value: dict[str, object]) -> object:
    """The value of an attribute, or its type if the value differs from run to run."""
    ((kind, plain),) = value.items()
    differs = key in {"server.port", "network.peer.port", "url.full", "step_hook.webhook_id"}
    return re.sub(r"\d+", "<NUMBER>", str(plain)) if key == "url.full" else f"<{kind}>" if differs else plain
