"""The fields of log lines, for formatters that write JSON, and what a line says about its receiver."""

import gc
import io
import json
import logging
import weakref
from collections.abc import Iterator

import pytest
from delivering import DELIVERED, ONE_ATTEMPT, WAIT, NewRig, Script, event, failed
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanContext, TraceFlags
from support import log_lines

from otel_step_hook.delivery.delivery_log import DeliveryLog
from otel_step_hook.delivery.log import RateLimitedLog, log_safely
from otel_step_hook.delivery.model import Delivery, Endpoint, Pipeline
from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.testing import Answer, ScriptedReceiver

CONTEXT = SpanContext(0x7ACE, 0xFF, is_remote=False, trace_flags=TraceFlags(1))
OF_STEP = {
    "otel_step_hook.step_id": "step-7",
    "otel_step_hook.endpoint": "default",
    "trace_id": "00000000000000000000000000007ace",
    "span_id": "00000000000000ff",
}
USUAL = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class JsonFormatter(logging.Formatter):
    """Writes a record as JSON, with all attributes that are not those of every record, like python-json-logger."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {name: value for name, value in vars(record).items() if name not in USUAL}
        return json.dumps({"line": record.getMessage(), **fields})


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What a handler with a formatter for JSON writes of the library's lines."""
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("otel_step_hook")
    usual = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield handler.stream
    logger.removeHandler(handler)
    logger.setLevel(usual)


def fields_of(written: io.StringIO) -> list[dict[str, object]]:
    """The fields of each line, without the line itself and the webhook's id, which each line about a step has."""
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    for line in lines:
        text = line.pop("line")
        assert line.pop("otel_step_hook.webhook_id", "msg_") in text or "otel_step_hook.step_id" not in line
    return lines


def test_the_fields_of_lines_about_a_delivery(rigged: NewRig, written: io.StringIO) -> None:
    """Each line about an attempt or a delivery has the ids, the endpoint, the attempt, and the status, if any."""
    rigged(Script(failed(503), AttemptResult(error_type="timeout"), DELIVERED)).deliver(
        event("step-7", context=CONTEXT)
    )
    assert fields_of(written) == [
        OF_STEP | {"otel_step_hook.attempt": 1, "otel_step_hook.status": 503},
        OF_STEP | {"otel_step_hook.attempt": 2},
        OF_STEP | {"otel_step_hook.attempt": 3, "otel_step_hook.status": 204},
    ]


@pytest.mark.parametrize(
    ("result", "status"),
    [(failed(410), {"otel_step_hook.status": 410}), (AttemptResult(error_type="gaierror"), {})],
)
def test_the_fields_of_a_discarded_delivery(
    rigged: NewRig, written: io.StringIO, result: AttemptResult, status: dict[str, int]
) -> None:
    """They are those of its last attempt."""
    rigged(Script(result), **ONE_ATTEMPT).deliver(event("step-7", context=CONTEXT))
    assert fields_of(written) == [OF_STEP | {"otel_step_hook.attempt": 1} | status] * 2


def test_a_line_that_counts_has_what_all_share(rigged: NewRig, written: io.StringIO) -> None:
    """The ids of one step would be wrong for the others: of the fields only the endpoint is left."""
    rig = rigged(Script(failed(400)), **ONE_ATTEMPT)
    rig.deliver(event(), event(), event())
    rig.worker.shutdown(WAIT)
    counts = [line for line in map(json.loads, written.getvalue().splitlines()) if "2 more like this" in line["line"]]
    assert len(counts) == 2
    assert [set(line) for line in counts] == [{"line", "otel_step_hook.endpoint"}] * 2


def test_a_line_that_counts_is_about_one_endpoint(written: io.StringIO) -> None:
    """A Temporal worker logs its unknown endpoints together: each has lines and counts of its own."""
    limited = RateLimitedLog()
    for name in ("billing", "audit", "billing", "audit"):
        delivery = Delivery("msg_a", event(), Pipeline(None, Resource({})), 0.0)
        DeliveryLog(Endpoint(name, ""), limited).discarded(delivery, "unknown_endpoint")
    limited.log_counts(all_of_them=True)
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    named = [line["otel_step_hook.endpoint"] for line in lines if line["line"].startswith("1 more like this")]
    assert named == ["billing", "audit"]


def test_the_fields_of_lines_about_the_endpoint(rigged: NewRig, written: io.StringIO) -> None:
    """A line about the endpoint itself has its name."""
    script = Script(*[failed()] * 10, AttemptResult(status_code=204, directive="disable"))
    rigged(script, concurrency=1, give_up_after=600.0).deliver(event())
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    about = [line for line in lines if "step_id" not in "".join(line) and "more like this" not in line["line"]]
    assert [" ".join(line["line"].split()[:5]).partition(" (")[0] for line in about] == [
        "endpoint default is down",
        "endpoint default is up again",
        "the receiver http://receiver.test answered 'webhook-delivery:",
    ]
    assert [set(line) for line in about] == [{"line", "otel_step_hook.endpoint"}] * 3


def test_a_step_id_that_is_no_utf_8(rigged: NewRig, written: io.StringIO) -> None:
    """A formatter can write any step id, whole; what UTF-8 cannot write is a question mark, as in spans."""
    rigged(Script()).deliver(event("\ud800" + "x" * 200, context=CONTEXT))
    assert fields_of(written)[0]["otel_step_hook.step_id"] == "?" + "x" * 200


@pytest.fixture
def _factory() -> Iterator[None]:
    """A factory of records like those of applications that put the current trace into each line."""
    usual = logging.getLogRecordFactory()

    def make(*args: object, **more: object) -> logging.LogRecord:
        record = usual(*args, **more)
        record.trace_id = "that of the application"
        return record

    logging.setLogRecordFactory(make)
    yield
    logging.setLogRecordFactory(usual)


@pytest.mark.usefixtures("_factory")
def test_the_fields_of_an_application_are_kept(rigged: NewRig, written: io.StringIO) -> None:
    """Where each record has a `trace_id` already, which logging does not let us replace, no line is lost."""
    rigged(Script()).deliver(event("step-7", context=CONTEXT))
    (line,) = fields_of(written)
    assert line == {
        "otel_step_hook.step_id": "step-7",
        "otel_step_hook.endpoint": "default",
        "otel_step_hook.attempt": 1,
        "otel_step_hook.status": 204,
        "trace_id": "that of the application",
    }


def test_a_handler_that_raises_gets_a_line_once() -> None:
    """A KeyError of a handler is not taken for a name that is there twice."""
    seen: list[str] = []

    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())
            raise KeyError("trace_id")

    logger, handler = logging.getLogger("otel_step_hook"), Raising()
    logger.addHandler(handler)
    try:
        log_safely(logging.ERROR, "anything", fields={"trace_id": "0"})
    finally:
        logger.removeHandler(handler)
    assert seen == ["anything"]


def test_a_line_that_waits_keeps_no_pipeline(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """A line that is counted holds values alone: the processors of its step are collected with their provider."""
    rig = rigged(Script(failed(400)), **ONE_ATTEMPT)
    rig.deliver(event(), event())
    processor = weakref.ref(rig.pipeline.processor)
    del rig.pipeline
    gc.collect()
    assert processor() is None
    assert not any("more like this" in line for line in caplog.messages)


# What a line says


def test_a_line_says_what_the_receiver_says(
    rigged: NewRig, step_receiver: ScriptedReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """It has the receiver's host, the status with its phrase, its sentence without secrets, and what it asks for."""
    step_receiver.answers(Answer(503, {"retry-after": "30"}, b'{"error": "sesame is a key for another team"}'))
    rigged(webhook=step_receiver.url, key="sesame", **ONE_ATTEMPT).deliver(event("step-7"))
    first, second = log_lines(caplog)
    host = step_receiver.url.removesuffix("/hook")
    assert first.startswith(
        f'WARNING the receiver {host} answered 503 Service Unavailable: "REDACTED is a key for another team"; '
        "it asks to wait 30 s (step step-7, endpoint default, webhook msg_"
    )
    assert second.startswith(
        f"WARNING discarded step step-7: the receiver {host} answered 503 Service Unavailable (success, "
        "endpoint default, webhook msg_"
    )


@pytest.mark.parametrize(
    ("error_type", "reason"),
    [
        ("ConnectionRefusedError", "the receiver http://receiver.test refuses connections: nothing listens there"),
        ("999", "the receiver http://receiver.test answered 999"),
        ("timeout", "no answer in time"),
        ("LookupError", "LookupError"),
    ],
)
def test_a_discarded_delivery_says_why(
    rigged: NewRig, caplog: pytest.LogCaptureFixture, error_type: str, reason: str
) -> None:
    """In words, where there are any for its error type."""
    result = failed(999) if error_type == "999" else AttemptResult(error_type=error_type)
    rigged(Script(result), **ONE_ATTEMPT).deliver(event("step-7"))
    assert f"discarded step step-7: {reason} (success, " in caplog.text


def test_a_delivery_that_the_end_of_the_process_cuts_off(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """The log says so in a sentence; span and metric have `shutdown`."""
    rig = rigged(Script(failed(503)), give_up_after=600.0, initial_backoff=100.0, max_backoff=100.0)
    rig.submit(event("step-7"))
    rig.worker.shutdown(WAIT)
    assert "discarded step step-7: the process ended before it was delivered (success, " in caplog.text
    assert rig.results == [("step-7", "discarded", "shutdown")]


def test_an_attempt_through_a_proxy_names_both(
    rigged: NewRig, closed_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Where there is no answer, the receiver may be fine and the proxy not there; its user information is not shown."""
    proxy = f"http://user:sesame@127.0.0.1:{closed_port}"
    rigged(webhook="http://receiver.test/hook", proxy=proxy, **ONE_ATTEMPT).deliver(event("step-7"))
    both = f"the receiver http://receiver.test or the proxy http://127.0.0.1:{closed_port} refuses connections"
    failure, discarded = log_lines(caplog)
    assert failure.startswith(f"ERROR {both}")
    assert discarded.startswith(f"ERROR discarded step step-7: {both}")
    assert "sesame" not in caplog.text
