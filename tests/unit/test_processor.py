"""Which spans are steps, and under which id they are told."""

import json
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from lines import Lines
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.trace import SpanContext, StatusCode
from support import Pipeline, pipeline

from otel_step_hook import StepHookProcessor, StepHookSettings
from otel_step_hook.steps.event import MAX_STEP_ID, generated_step_id
from otel_step_hook.testing import Received, ScriptedReceiver

_GENERATED = re.compile(r"step-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _told(hooked: Pipeline, receiver: ScriptedReceiver) -> list[Received]:
    assert hooked.provider.force_flush()
    return receiver.received


def _ids(hooked: Pipeline, receiver: ScriptedReceiver) -> list[str]:
    return sorted(webhook.step_id for webhook in _told(hooked, receiver))


# The generic rule


@pytest.mark.parametrize("key", ["step_id", "step.id"])
def test_a_span_with_a_step_id_is_a_step(key: str, step_receiver: ScriptedReceiver) -> None:
    """The attribute may be there from the start, or come later; other spans are none."""
    with pipeline(step_receiver.url) as hooked:
        hooked.tracer.start_span("early", attributes={key: "early"}).end()
        late = hooked.tracer.start_span("late")
        late.set_attribute(key, "late")
        late.end()
        hooked.tracer.start_span("no step", attributes={"step": "no", "Step_ID": "no"}).end()
        assert _ids(hooked, step_receiver) == ["early", "late"]
    assert [json.loads(webhook.body) for webhook in step_receiver.received if webhook.step_id == "late"] == [
        {"step_id": "late"}
    ]


def test_step_id_is_stronger_than_step_dot_id(step_receiver: ScriptedReceiver) -> None:
    """With both, the specification's own name counts; a blank one does not."""
    with pipeline(step_receiver.url) as hooked:
        hooked.tracer.start_span("both", attributes={"step.id": "dotted", "step_id": "plain"}).end()
        hooked.tracer.start_span("blank", attributes={"step.id": "only", "step_id": " "}).end()
        assert _ids(hooked, step_receiver) == ["only", "plain"]


def test_the_id_at_the_end_counts(step_receiver: ScriptedReceiver) -> None:
    """An id that is set anew while the step runs is the step's."""
    with pipeline(step_receiver.url) as hooked:
        span = hooked.tracer.start_span("step", attributes={"step_id": "first"})
        span.set_attribute("step_id", "second")
        span.end()
        assert _ids(hooked, step_receiver) == ["second"]


@pytest.mark.parametrize("value", ["", "  ", b""])
def test_a_step_with_a_blank_id_gets_one_of_its_span(value: str | bytes, step_receiver: ScriptedReceiver) -> None:
    """A step is told even when its id says nothing; the id made for it is the span's own."""
    with pipeline(step_receiver.url) as hooked:
        span = hooked.tracer.start_span("step", attributes={"step_id": value})
        span.end()
        assert _ids(hooked, step_receiver) == [generated_step_id(span.get_span_context())]


@pytest.mark.parametrize(
    ("value", "step_id"),
    [
        (7, "7"),
        (True, "true"),
        ("x" * 10_000, "x" * 10_000),
        ("line\r\nbreak\0\x1b[31m\u202e", "line\r\nbreak\0\x1b[31m\u202e"),
        ("\ud800 lone", "\ud800 lone"),
    ],
)
def test_a_step_id_of_any_text_arrives(value: str | int, step_id: str, step_receiver: ScriptedReceiver) -> None:
    """Numbers, 10 kB, control characters and what is no UTF-8 reach the receiver as text, unchanged."""
    with pipeline(step_receiver.url) as hooked:
        hooked.tracer.start_span("step", attributes={"step_id": value}).end()
        assert _ids(hooked, step_receiver) == [step_id]


@pytest.mark.parametrize(
    ("value", "step_id"),
    [
        (b"\xffbytes", "\\xffbytes"),
        (("a", 1), '["a", 1]'),
        ({"run": {"n": 1, "b": b"x"}}, '{"run": {"b": "x", "n": 1}}'),
    ],
)
def test_a_step_id_of_any_type_arrives(value: object, step_id: str, step_receiver: ScriptedReceiver) -> None:
    """Bytes, sequences and mappings as well, which older SDKs do not let into a span."""
    context = SpanContext(trace_id=1, span_id=2, is_remote=False)
    with pipeline(step_receiver.url) as hooked:
        hooked.hook.on_end(ReadableSpan("step", context=context, attributes={"step_id": value}))  # type: ignore[dict-item]  # -- anything
        assert _ids(hooked, step_receiver) == [step_id]


def test_a_step_id_that_is_too_long_is_dropped_and_told(step_receiver: ScriptedReceiver) -> None:
    """Cut short it would name another step; the application notices nothing, the log says what happened."""
    with pipeline(step_receiver.url) as hooked, Lines() as lines:
        hooked.tracer.start_span("step", attributes={"step_id": "x" * (MAX_STEP_ID + 1)}).end()
        assert lines.wait_for("dropped a step (unreadable): ValueError").levelname == "ERROR"
        hooked.end_step("next")
    assert [webhook.step_id for webhook in step_receiver.received] == ["next"]


# The SDK's limits


def _limited(receiver: ScriptedReceiver, limits: SpanLimits, *, is_step: Callable[[ReadableSpan], bool] | None) -> str:
    """The id that a step is told under, whose attributes after the id fill what *limits* allow."""
    hook = StepHookProcessor(StepHookSettings(webhook=receiver.url), is_step=is_step)
    provider = TracerProvider(span_limits=limits, shutdown_on_exit=False)
    provider.add_span_processor(hook)
    span = provider.get_tracer("tests").start_span("step", attributes={"step_id": "step-0123456789"})
    for number in range(200):
        span.set_attribute(f"key.{number}", number)
    span.end()
    provider.shutdown()
    (webhook,) = receiver.received
    return webhook.step_id


@pytest.mark.parametrize("scope", ["my.agent", "gcp.vertex.agent"])
def test_spans_that_may_have_lost_a_step_id_are_counted(scope: str, step_receiver: ScriptedReceiver) -> None:
    """Nobody can know any more whether a span was a step when the SDK has evicted attributes that came late."""
    hook = StepHookProcessor(StepHookSettings(webhook=step_receiver.url))
    provider = TracerProvider(span_limits=SpanLimits(max_span_attributes=1), shutdown_on_exit=False)
    provider.add_span_processor(hook)
    tracer = provider.get_tracer(scope)
    for _ in range(3):
        span = tracer.start_span("step")
        span.set_attributes({"step_id": "late", "another": "1"})
        span.end()
    tracer.start_span("whole").end()
    tracer.start_span("step", attributes={"step_id": "early"}).end()
    provider.shutdown()
    assert hook.spans_with_dropped_attributes == 3
    assert [webhook.step_id for webhook in step_receiver.received] == ["early"]


@pytest.mark.parametrize("limits", [SpanLimits(), SpanLimits(max_span_attributes=1)])
@pytest.mark.parametrize("is_step", [None, lambda _: True])
def test_an_id_that_the_sdk_evicts_is_remembered(
    limits: SpanLimits, is_step: Callable[[ReadableSpan], bool] | None, step_receiver: ScriptedReceiver
) -> None:
    """The SDK drops the oldest attributes first, which the id is; the step is told under it all the same."""
    assert _limited(step_receiver, limits, is_step=is_step) == "step-0123456789"


def test_an_id_that_the_sdk_cuts_is_the_one_in_the_trace(step_receiver: ScriptedReceiver) -> None:
    """With a limit on the length of values, webhook and trace show the same, shortened id."""
    assert _limited(step_receiver, SpanLimits(max_span_attribute_length=6), is_step=None) == "step-0"


# The user's own rule


def test_a_rule_of_ones_own_decides(step_receiver: ScriptedReceiver) -> None:
    """With *is_step* nothing else makes a step; it is asked about ended spans, and about none of ours."""
    asked: list[tuple[str, bool]] = []

    def is_step(span: ReadableSpan) -> bool:
        asked.append((span.name, span.end_time is not None))
        return span.name == "mine"

    with pipeline(step_receiver.url, is_step=is_step) as hooked:
        hooked.tracer.start_span("mine").end()
        hooked.tracer.start_span("mine", attributes={"step.id": "named"}).end()
        hooked.tracer.start_span("other", attributes={"step_id": "other"}).end()
        generated, named = sorted(_ids(hooked, step_receiver), reverse=True)
    assert _GENERATED.fullmatch(generated)
    assert named == "named"
    assert asked == [("mine", True), ("mine", True), ("other", True)]


_COUNT_DROPS = """
import json, logging, sys, threading
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from otel_step_hook import StepHookProcessor, StepHookSettings

reader, told = InMemoryMetricReader(), threading.Semaphore(0)
metrics.set_meter_provider(MeterProvider([reader], shutdown_on_exit=False))
class Lines(logging.Handler):
    def emit(self, record):
        print(record.levelname, record.getMessage())
        told.release()
logging.getLogger("otel_step_hook").addHandler(Lines())

def end_step(is_step):
    hook = StepHookProcessor(StepHookSettings(webhook="http://127.0.0.1:9"), is_step=is_step)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(hook)
    if is_step is None:
        provider.shutdown()
    provider.get_tracer("tests").start_span("step", attributes={"step_id": "step-1"}).end()
    assert told.acquire(timeout=30)

end_step(lambda span: {}[span.name])
end_step(None)
for scope in reader.get_metrics_data().resource_metrics[0].scope_metrics:
    for metric in scope.metrics:
        for point in metric.data.data_points:
            print(metric.name, dict(point.attributes), point.value)
"""


def test_steps_that_are_lost_are_counted_and_told() -> None:
    """A rule that raises, and a step after shutdown: the application is unharmed, log and metric tell of each."""
    done = subprocess.run([sys.executable, "-c", _COUNT_DROPS], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    first, second, *points = done.stdout.splitlines()
    assert re.fullmatch(r"ERROR dropped a step \(unreadable\): KeyError <- <string>:\d+ <lambda> <- .*", first)
    assert second == "ERROR dropped a step (shutdown): the step ended after shutdown()"
    assert points == [
        "step_hook.dropped {'reason': 'unreadable'} 1",
        "step_hook.dropped {'reason': 'shutdown'} 1",
    ]


def test_a_rule_that_raises_for_one_span_is_asked_about_the_next(step_receiver: ScriptedReceiver) -> None:
    """One span that a rule cannot read costs that span alone."""

    def is_step(span: ReadableSpan) -> bool:
        return bool((span.attributes or {})["kind"] == "step")

    with pipeline(step_receiver.url, is_step=is_step) as hooked, Lines() as lines:
        hooked.tracer.start_span("without a kind").end()
        hooked.tracer.start_span("step", attributes={"kind": "step", "step_id": "step"}).end()
        assert _ids(hooked, step_receiver) == ["step"]
        lines.wait_for("dropped a step (unreadable): KeyError")


# Outcomes


@pytest.mark.parametrize("outcome", ["success", "failed", "cancelled"])
def test_only_the_outcomes_asked_for_are_sent(outcome: str, step_receiver: ScriptedReceiver) -> None:
    """A receiver that wants to hear of one outcome hears of no other."""
    with pipeline(step_receiver.url, outcomes=outcome, payload="full") as hooked:
        hooked.tracer.start_span("step", attributes={"step_id": "success"}).end()
        hooked.tracer.start_span("step", attributes={"step_id": "cancelled", "step.status": "cancelled"}).end()
        failing = hooked.tracer.start_span("step", attributes={"step_id": "failed"})
        failing.set_status(StatusCode.ERROR)
        failing.end()
        (webhook,) = _told(hooked, step_receiver)
    assert webhook.step_id == webhook.data["outcome"] == outcome


def test_a_pause_is_not_told(step_receiver: ScriptedReceiver) -> None:
    """A graph that waits for a human has not ended; the span of its next part will tell."""
    with pipeline(step_receiver.url) as hooked:
        span = hooked.tracer.start_span("node", attributes={"step_id": "node"})
        span.add_event("exception", {"exception.type": "langgraph.errors.GraphInterrupt"})
        span.set_status(StatusCode.OK)
        span.end()
        assert _ids(hooked, step_receiver) == []
