"""The sampler that keeps steps: every step is told, and as many traces are exported as the sampler below says."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest
from emitting import StepRecorder
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    TraceFlags,
    TraceState,
    set_span_in_context,
)
from opentelemetry.util.types import Attributes
from support import Pipeline

from otel_step_hook import ConfigurationError, Profile, StepHookProcessor, StepHookSettings, StepSampler
from otel_step_hook.sampler import from_argument, from_environment
from otel_step_hook.testing import ScriptedReceiver

STEP = {"step_id": "step-1"}


class EvenIds(RandomIdGenerator):
    """Trace ids that lie evenly over all that there are, so that a tenth of them is exactly a tenth."""

    def __init__(self, traces: int) -> None:
        step = (1 << 64) // traces
        self._ids = iter(range((1 << 64) + step // 2, 1 << 65, step))

    def generate_trace_id(self) -> int:
        return next(self._ids)


@contextmanager
def sampled(receiver: ScriptedReceiver, sampler: Sampler, traces: int = 10) -> Iterator[Pipeline]:
    """A pipeline whose provider has this sampler, for so many traces."""
    hook = StepHookProcessor(StepHookSettings(webhook=receiver.url, shutdown_timeout=5))
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler, id_generator=EvenIds(traces), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.add_span_processor(hook)
    try:
        yield Pipeline(provider, hook, exporter)
    finally:
        provider.shutdown()


def decision(sampler: Sampler, name: str = "span", attributes: Attributes = None) -> Decision:
    """What becomes of a span of a new trace that begins so."""
    return sampler.should_sample(None, 1, name, None, attributes).decision


@pytest.mark.parametrize("root", [TraceIdRatioBased(0.1), ParentBased(TraceIdRatioBased(0.1))])
def test_every_step_arrives_and_a_tenth_of_the_traces_is_exported(
    root: Sampler, step_receiver: ScriptedReceiver
) -> None:
    """Whole traces, too: with its step, each exported one has the run around it and the call below it."""
    count = 50
    with sampled(step_receiver, StepSampler(root), count) as hooked:
        for number in range(count):
            with (
                hooked.tracer.start_as_current_span("run"),
                hooked.tracer.start_as_current_span("step", attributes={"step_id": f"step-{number}"}),
                hooked.tracer.start_as_current_span("call"),
            ):
                pass
        assert hooked.provider.force_flush()
        arrived = {webhook.step_id for webhook in step_receiver.received}
        exported = {name: {span.context.trace_id for span in hooked.named(name)} for name in ("run", "step", "call")}
        deliveries = {span.context.trace_id for span in hooked.named("step_hook.deliver")}
    assert arrived == {f"step-{number}" for number in range(count)}
    assert exported["run"] == exported["step"] == exported["call"] == deliveries
    assert len(deliveries) == count / 10


def test_steps_that_can_be_recognised_at_their_start_are_recorded() -> None:
    """Whatever each framework's spans begin with."""
    begins: list[tuple[str, Attributes]] = [
        ("execute_tool search", {"gen_ai.operation.name": "execute_tool"}),
        ("running tool", {"gen_ai.operation.name": "execute_tool"}),
        ("turn", {"openinference.span.kind": "CHAIN"}),
        ("search.tool", {"gen_ai.operation.name": "execute_tool", "traceloop.span.kind": "tool"}),
        ("RunActivity:send", {"temporalActivityID": "1"}),
        ("task-1", {"prefect.run.type": "task"}),
        ("Step 3", {"openinference.span.kind": "CHAIN"}),
        ("execute_event_loop_cycle", None),
        ("invoke_agent helper", None),
        ("invoke_node fetch", {"gen_ai.operation.name": "invoke_node"}),
        ("executor.process writer", {"executor.id": "writer"}),
        ("task_run.load", None),
        ("researcher.write._execute_core", {"openinference.span.kind": "AGENT"}),
        ("write.task", {"traceloop.span.kind": "task"}),
        ("haystack.component.run", None),
        ("autogen process writer", {"messaging.operation": "process"}),
        ("search.tool", None),
        ("StepManager.update_step_error_async", None),
        ("StepManager.log_step_async", None),
        ("build", {"cicd.pipeline.task.run.id": "1"}),
        ("step", {"step.id": 1}),
    ]
    found = {str(begin): decision(StepSampler(ALWAYS_OFF), *begin) for begin in begins}
    assert found == dict.fromkeys(found, Decision.RECORD_ONLY)


def test_other_spans_are_dropped_as_before() -> None:
    """They cost what they cost without the sampler."""
    begins: list[tuple[str, Attributes]] = [
        ("embeddings gpt", {"gen_ai.operation.name": "embeddings"}),
        ("GET /v1", {"http.request.method": "GET"}),
        ("LangGraph", None),
        ("turn", None),
        ("RunActivity:send", None),
        ("StepManager.get_step_async", None),
        ("run", {"prefect.run.type": "flow"}),
        (None, None),  # type: ignore[list-item]  # -- as an instrumentation may call it
    ]
    found = {str(begin): decision(StepSampler(ALWAYS_OFF), *begin) for begin in begins}
    assert found == dict.fromkeys(found, Decision.DROP)


def test_what_is_sampled_stays_sampled() -> None:
    """Only what would be dropped is changed."""
    for attributes in (None, STEP):
        assert decision(StepSampler(ALWAYS_ON), attributes=attributes) is Decision.RECORD_AND_SAMPLE


def test_all_spans_can_be_recorded(step_receiver: ScriptedReceiver) -> None:
    """For frameworks that give their spans their attributes later: such a step is told, and not exported."""
    with sampled(step_receiver, StepSampler(ALWAYS_OFF, record_all=True)) as hooked:
        late = hooked.tracer.start_span("step")
        late.set_attribute("step_id", "late")
        late.end()
        assert hooked.provider.force_flush()
        assert [webhook.step_id for webhook in step_receiver.received] == ["late"]
        assert hooked.spans == []


def test_a_rule_of_the_users() -> None:
    """A name or an attribute of an own framework's steps."""
    sampler = StepSampler(ALWAYS_OFF, may_be_step=lambda name, attributes: name == "mine" and "key" in attributes)
    assert decision(sampler, "mine", {"key": 1}) is Decision.RECORD_ONLY
    assert decision(sampler, "mine") is Decision.DROP
    assert decision(sampler, "other", STEP) is Decision.RECORD_ONLY


@pytest.mark.parametrize("required", [(), ("my.id",)])
def test_a_profile_of_the_users(required: Sequence[str]) -> None:
    """A profile is asked, with required attributes and without."""
    own = Profile(
        name="mine",
        required_attributes=tuple(required),
        is_step=lambda span: "my.id" in span.attributes,
        sampled_names="mine .*",
    )
    sampler = StepSampler(ALWAYS_OFF, profiles=[own])
    assert decision(sampler, "any", {"my.id": 1}) is Decision.RECORD_ONLY
    assert decision(sampler, "mine too") is Decision.RECORD_ONLY
    assert decision(sampler, "any") is Decision.DROP


def test_the_names_that_profiles_start_with_do_not_meet() -> None:
    """Each is a regular expression of its own, with its own flags and groups."""
    own = [
        Profile(name="loud", sampled_names="(?i)my step.*"),
        Profile(name="named", sampled_names=r"(?P<kind>a)-(?P=kind)"),
        Profile(name="named again", sampled_names=r"(?P<kind>b)-\1"),
    ]
    sampler = StepSampler(ALWAYS_OFF, profiles=own)
    for name in ("MY STEP 1", "a-a", "b-b"):
        assert decision(sampler, name) is Decision.RECORD_ONLY
    for name in ("step", "A-A", "b-a"):
        assert decision(sampler, name) is Decision.DROP


def test_what_encloses_a_tool_is_kept() -> None:
    """Or the tool would be told beside the task that it is a part of."""
    recorder = StepRecorder()
    provider = TracerProvider(StepSampler(ALWAYS_OFF), shutdown_on_exit=False)
    provider.add_span_processor(recorder)
    tracer = provider.get_tracer("traceloop.tracer")
    with ExitStack() as ending:
        for kind in ("task", "agent", "workflow", "tool"):
            span = ending.enter_context(tracer.start_as_current_span(f"work.{kind}"))
            span.set_attribute("traceloop.span.kind", kind)
    assert [event.name for event in recorder.events] == ["work.task"]


def test_a_rule_that_fails_keeps_the_span() -> None:
    """A fault of a rule neither reaches the application nor loses a step."""

    def fail(name: str, attributes: object) -> bool:
        raise LookupError(name, attributes)

    assert decision(StepSampler(ALWAYS_OFF, may_be_step=fail)) is Decision.RECORD_ONLY


class _Keeping(Sampler):
    """Drops everything, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    def should_sample(  # noqa: PLR0917 -- the SDK's signature
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        self.asked.append((parent_context, trace_id, name, kind, attributes, links, trace_state))
        return SamplingResult(Decision.DROP, None, TraceState([("mine", "1")]))

    def get_description(self) -> str:
        return "Keeping"


def test_the_sampler_below_is_asked_everything_and_its_state_is_kept() -> None:
    """The attributes come back, which samplers leave out of what they drop."""
    root = _Keeping()
    context, links = Context(), list[Link]()
    result = StepSampler(root).should_sample(context, 5, "step", SpanKind.CLIENT, STEP, links, None)
    assert root.asked == [(context, 5, "step", SpanKind.CLIENT, STEP, links, None)]
    assert (result.decision, dict(result.attributes)) == (Decision.RECORD_ONLY, STEP)
    assert result.trace_state == TraceState([("mine", "1")])
    assert StepSampler(root).get_description() == "StepSampler{Keeping}"


def test_below_a_remote_parent_that_is_not_sampled_a_step_is_told(step_receiver: ScriptedReceiver) -> None:
    """The caller's decision holds for the export, not for the webhook."""
    parent = NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(0)))
    with sampled(step_receiver, StepSampler(ParentBased(ALWAYS_ON))) as hooked:
        hooked.tracer.start_span("step", set_span_in_context(parent), attributes=STEP).end()
        assert hooked.provider.force_flush()
        assert [webhook.step_id for webhook in step_receiver.received] == ["step-1"]
        assert hooked.spans == []


# By name


@pytest.mark.parametrize(
    ("argument", "description"),
    [
        ("0.1", "StepSampler{ParentBased{root:TraceIdRatioBased{0.1}"),
        ("0.1, all", "StepSampler{ParentBased{root:TraceIdRatioBased{0.1}"),
        (None, "StepSampler{ParentBased{root:TraceIdRatioBased{1"),
        ("", "StepSampler{ParentBased{root:TraceIdRatioBased{1"),
        (0.5, "StepSampler{ParentBased{root:TraceIdRatioBased{0.5}"),
    ],
)
def test_the_argument_is_a_ratio(argument: str | float | None, description: str) -> None:
    """As for OpenTelemetry's own sampler by ratio."""
    assert from_argument(argument).get_description().startswith(description)


def test_the_argument_may_ask_for_all_spans() -> None:
    """``0,all`` records what the ratio drops."""
    assert decision(from_argument("0,all")) is Decision.RECORD_ONLY
    assert decision(from_argument("0")) is Decision.DROP


def test_a_file_takes_the_argument_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The declarative configuration passes nothing on."""
    assert "TraceIdRatioBased{1" in from_environment().get_description()
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.1")
    assert "TraceIdRatioBased{0.1}" in from_environment().get_description()


@pytest.mark.parametrize("argument", ["lots", "2", "-0.1", "nan", "0.1,some", "all"])
def test_any_other_argument_is_refused_with_what_is_expected(argument: str) -> None:
    """OpenTelemetry logs the sentence, and goes on with its default."""
    with pytest.raises(ConfigurationError, match=r"must be a ratio from 0 to 1, such as 0\.1, or one and the word all"):
        from_argument(argument)


_BY_NAME = """
from opentelemetry.sdk._configuration import _initialize_components
from opentelemetry import trace
_initialize_components()
print(trace.get_tracer_provider().sampler.get_description())
"""


def test_the_sampler_is_there_by_name() -> None:
    """``OTEL_TRACES_SAMPLER=step_hook`` with its argument, for whoever configures the SDK by the environment."""
    environment = os.environ | {"OTEL_TRACES_SAMPLER": "step_hook", "OTEL_TRACES_SAMPLER_ARG": "0.25"}
    done = subprocess.run(
        [sys.executable, "-c", _BY_NAME], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("StepSampler{ParentBased{root:TraceIdRatioBased{0.25}")
    assert done.stderr == ""
