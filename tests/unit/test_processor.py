"""Which spans are steps, and under which step id they are reported."""

import json
import re
from collections.abc import Callable, Iterator

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.trace import SpanContext, StatusCode
from support import NewPipeline, Pipeline, log_lines

from otel_step_hook import StepHookProcessor, StepHookSettings
from otel_step_hook.delivery.metrics import Instruments
from otel_step_hook.steps.event import MAX_STEP_ID, generated_step_id
from otel_step_hook.testing import Received, ScriptedReceiver

_GENERATED = re.compile(r"step-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _received(hooked: Pipeline, receiver: ScriptedReceiver) -> list[Received]:
    assert hooked.provider.force_flush()
    return receiver.received


def _ids(hooked: Pipeline, receiver: ScriptedReceiver) -> list[str]:
    return sorted(webhook.step_id for webhook in _received(hooked, receiver))


# The generic rule


@pytest.mark.parametrize("key", ["step_id", "step.id"])
def test_a_span_with_a_step_id_is_a_step(hooked: Pipeline, key: str, step_receiver: ScriptedReceiver) -> None:
    """The attribute may be set at the start or later; spans without it are no steps."""
    hooked.tracer.start_span("early", attributes={key: "early"}).end()
    late = hooked.tracer.start_span("late")
    late.set_attribute(key, "late")
    late.end()
    hooked.tracer.start_span("no step", attributes={"step": "no", "Step_ID": "no"}).end()
    assert _ids(hooked, step_receiver) == ["early", "late"]
    assert [json.loads(webhook.body) for webhook in step_receiver.received if webhook.step_id == "late"] == [
        {"step_id": "late"}
    ]


def test_step_id_takes_precedence_over_step_dot_id(hooked: Pipeline, step_receiver: ScriptedReceiver) -> None:
    """If a span has both, the specification's own name counts, unless it is blank."""
    hooked.tracer.start_span("both", attributes={"step.id": "dotted", "step_id": "plain"}).end()
    hooked.tracer.start_span("blank", attributes={"step.id": "only", "step_id": " "}).end()
    assert _ids(hooked, step_receiver) == ["only", "plain"]


def test_the_id_at_the_end_counts(hooked: Pipeline, step_receiver: ScriptedReceiver) -> None:
    """A step id that changes while the step runs is reported as it is at the end."""
    span = hooked.tracer.start_span("step", attributes={"step_id": "first"})
    span.set_attribute("step_id", "second")
    span.end()
    assert _ids(hooked, step_receiver) == ["second"]


@pytest.mark.parametrize("value", ["", "  ", b""])
def test_a_step_with_a_blank_id_gets_a_generated_one(
    hooked: Pipeline, value: str | bytes, step_receiver: ScriptedReceiver
) -> None:
    """A step with a blank id is reported under an id that is generated from its span."""
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
        ("\ud800 lone", "\\ud800 lone"),
    ],
)
def test_a_step_id_of_any_text_arrives(
    hooked: Pipeline, value: str | int, step_id: str, step_receiver: ScriptedReceiver
) -> None:
    """Numbers, 10 kB and control characters reach the receiver as text, unchanged; a lone surrogate is written out."""
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
def test_a_step_id_of_any_type_arrives(
    hooked: Pipeline, value: object, step_id: str, step_receiver: ScriptedReceiver
) -> None:
    """Bytes, sequences and mappings, which older SDKs do not let into a span, arrive as text."""
    context = SpanContext(trace_id=1, span_id=2, is_remote=False)
    hooked.hook.on_end(ReadableSpan("step", context=context, attributes={"step_id": value}))  # type: ignore[dict-item]  # -- anything
    assert _ids(hooked, step_receiver) == [step_id]


def test_a_step_whose_id_is_too_long_is_dropped(
    hooked: Pipeline, step_receiver: ScriptedReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """A shortened id would name another step, so that the step is dropped and logged."""
    hooked.tracer.start_span("step", attributes={"step_id": "x" * (MAX_STEP_ID + 1)}).end()
    hooked.end_step("next")
    hooked.provider.shutdown()
    (line,) = log_lines(caplog)
    assert line.startswith("ERROR dropped a step (unreadable, endpoint default): ValueError")
    assert [webhook.step_id for webhook in step_receiver.received] == ["next"]


# The SDK's limits


def _limited(receiver: ScriptedReceiver, limits: SpanLimits, *, is_step: Callable[[ReadableSpan], bool] | None) -> str:
    """The reported id of a step whose later attributes fill what *limits* allow."""
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
    """A span of which the SDK has evicted attributes may have been a step, and is counted."""
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
    """The SDK evicts the oldest attributes first, and the step is still reported under its id."""
    assert _limited(step_receiver, limits, is_step=is_step) == "step-0123456789"


def test_an_id_that_the_sdk_cuts_is_the_one_in_the_trace(step_receiver: ScriptedReceiver) -> None:
    """With a limit on the length of values, webhook and trace have the same shortened id."""
    assert _limited(step_receiver, SpanLimits(max_span_attribute_length=6), is_step=None) == "step-0"


# The user's own rule


def test_a_rule_of_the_user_decides(pipeline: NewPipeline, step_receiver: ScriptedReceiver) -> None:
    """With *is_step* no other rule makes a step; it is called for ended spans, and for no delivery span."""
    asked: list[tuple[str, bool]] = []

    def is_step(span: ReadableSpan) -> bool:
        asked.append((span.name, span.end_time is not None))
        return span.name == "mine"

    hooked = pipeline(is_step=is_step)
    hooked.tracer.start_span("mine").end()
    hooked.tracer.start_span("mine", attributes={"step.id": "named"}).end()
    hooked.tracer.start_span("other", attributes={"step_id": "other"}).end()
    generated, named = sorted(_ids(hooked, step_receiver), reverse=True)
    assert _GENERATED.fullmatch(generated)
    assert named == "named"
    assert asked == [("mine", True), ("mine", True), ("other", True)]


@pytest.fixture
def drops(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], dict[str, int]]]:
    """The number of steps that the hooks of a test have dropped, by reason; the process's meter stays unset."""
    reader = InMemoryMetricReader()

    def drops() -> dict[str, int]:
        collected = reader.get_metrics_data()
        assert collected is not None
        (resource,) = json.loads(collected.to_json())["resource_metrics"]
        metrics = {metric["name"]: metric["data"]["data_points"] for metric in resource["scope_metrics"][0]["metrics"]}
        return {point["attributes"]["reason"]: point["value"] for point in metrics["step_hook.dropped"]}

    with monkeypatch.context() as patched:
        patched.setattr("opentelemetry.metrics.get_meter", MeterProvider([reader], shutdown_on_exit=False).get_meter)
        Instruments.of_this_process.cache_clear()
        yield drops
    Instruments.of_this_process.cache_clear()


def test_dropped_steps_are_counted_and_logged(
    drops: Callable[[], dict[str, int]], pipeline: NewPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    """A rule that raises and a step after shutdown are in the log and in the metric."""
    raising, closed = pipeline(is_step=lambda span: {}[span.name]), pipeline()
    raising.end_step()
    raising.hook.shutdown()
    closed.hook.shutdown()
    closed.end_step()
    closed.hook.shutdown()
    unreadable, late = log_lines(caplog)
    assert re.fullmatch(
        r"ERROR dropped a step \(unreadable, endpoint default\): KeyError <- \S+:\d+ <lambda> <- .*", unreadable
    )
    assert late == "ERROR dropped a step (shutdown, endpoint default): the step ended after shutdown()"
    assert drops() == {"unreadable": 1, "shutdown": 1}


def test_a_rule_that_raises_for_one_span_is_asked_about_the_next(
    pipeline: NewPipeline, step_receiver: ScriptedReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """A rule that raises for one span is called for the next one as usual."""

    def is_step(span: ReadableSpan) -> bool:
        return bool((span.attributes or {})["kind"] == "step")

    hooked = pipeline(is_step=is_step)
    hooked.tracer.start_span("without a kind").end()
    hooked.tracer.start_span("step", attributes={"kind": "step", "step_id": "step"}).end()
    assert _ids(hooked, step_receiver) == ["step"]
    hooked.provider.shutdown()
    (line,) = log_lines(caplog)
    assert line.startswith("ERROR dropped a step (unreadable, endpoint default): KeyError")


# Outcomes


@pytest.mark.parametrize("outcome", ["success", "failed", "cancelled"])
def test_only_the_configured_outcomes_are_sent(
    pipeline: NewPipeline, outcome: str, step_receiver: ScriptedReceiver
) -> None:
    """A receiver gets no webhook for outcomes other than the configured one."""
    hooked = pipeline(outcomes=outcome, payload="full")
    hooked.tracer.start_span("step", attributes={"step_id": "success"}).end()
    hooked.tracer.start_span("step", attributes={"step_id": "cancelled", "step.status": "cancelled"}).end()
    failing = hooked.tracer.start_span("step", attributes={"step_id": "failed"})
    failing.set_status(StatusCode.ERROR)
    failing.end()
    (webhook,) = _received(hooked, step_receiver)
    assert webhook.step_id == webhook.data["outcome"] == outcome


def test_a_pause_sends_nothing(hooked: Pipeline, step_receiver: ScriptedReceiver) -> None:
    """A graph that waits for a human has not ended, and sends no webhook."""
    span = hooked.tracer.start_span("node", attributes={"step_id": "node"})
    span.add_event("exception", {"exception.type": "langgraph.errors.GraphInterrupt"})
    span.set_status(StatusCode.OK)
    span.end()
    assert _ids(hooked, step_receiver) == []
