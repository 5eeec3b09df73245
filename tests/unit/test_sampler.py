"""The sampler that keeps steps: every step is sent, and as many traces are exported as its root sampler decides."""

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
    """Makes trace ids that are spread evenly over all possible ones, so that a tenth of them is exactly a tenth."""

    def __init__(self, traces: int) -> None:
        step = (1 << 64) // traces
        self._ids = iter(range((1 << 64) + step // 2, 1 << 65, step))

    def generate_trace_id(self) -> int:
        return next(self._ids)


@contextmanager
def sampled(receiver: ScriptedReceiver, sampler: Sampler, traces: int = 10) -> Iterator[Pipeline]:
    """A pipeline whose provider has this sampler, and ids for so many traces."""
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
    """The decision of *sampler* about a root span that starts like this."""
    return sampler.should_sample(None, 1, name, None, attributes).decision


@pytest.mark.parametrize("root", [TraceIdRatioBased(0.1), ParentBased(TraceIdRatioBased(0.1))])
def test_every_step_arrives_and_a_tenth_of_the_traces_is_exported(
    root: Sampler, step_receiver: ScriptedReceiver
) -> None:
    """Each exported trace is whole: it has the step, the run around it and the call below it."""
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
    """A span that starts like a step of a framework is recorded, even if it is not sampled."""
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
    """A span that cannot be a step costs the same as without the sampler."""
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


def test_a_sampled_span_stays_sampled() -> None:
    """Only the decision to drop a span is changed."""
    for attributes in (None, STEP):
        assert decision(StepSampler(ALWAYS_ON), attributes=attributes) is Decision.RECORD_AND_SAMPLE


def test_all_spans_can_be_recorded(step_receiver: ScriptedReceiver) -> None:
    """With *record_all* a step whose attributes are set after its start is sent, and not exported."""
    with sampled(step_receiver, StepSampler(ALWAYS_OFF, record_all=True)) as hooked:
        late = hooked.tracer.start_span("step")
        late.set_attribute("step_id", "late")
        late.end()
        assert hooked.provider.force_flush()
        assert [webhook.step_id for webhook in step_receiver.received] == ["late"]
        assert hooked.spans == []


def test_a_rule_of_the_user_decides() -> None:
    """A rule recognises a framework's steps by name or attributes."""
    sampler = StepSampler(ALWAYS_OFF, may_be_step=lambda name, attributes: name == "mine" and "key" in attributes)
    assert decision(sampler, "mine", {"key": 1}) is Decision.RECORD_ONLY
    assert decision(sampler, "mine") is Decision.DROP
    assert decision(sampler, "other", STEP) is Decision.RECORD_ONLY


@pytest.mark.parametrize("required", [(), ("my.id",)])
def test_a_profile_of_the_user_decides(required: Sequence[str]) -> None:
    """A profile recognises steps by name or attributes, with required attributes and without."""
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


def test_the_sampled_names_of_profiles_do_not_interfere() -> None:
    """The names of each profile are a regular expression of their own, with their own flags and groups."""
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


def test_the_spans_around_a_tool_are_recorded() -> None:
    """Without them the tool would be reported beside the task that it is a part of."""
    recorder = StepRecorder()
    provider = TracerProvider(StepSampler(ALWAYS_OFF), shutdown_on_exit=False)
    provider.add_span_processor(recorder)
    tracer = provider.get_tracer("traceloop.tracer")
    with ExitStack() as ending:
        for kind in ("task", "agent", "workflow", "tool"):
            span = ending.enter_context(tracer.start_as_current_span(f"work.{kind}"))
            span.set_attribute("traceloop.span.kind", kind)
    assert [event.name for event in recorder.events] == ["work.task"]


def test_a_rule_that_raises_records_the_span() -> None:
    """An exception in a rule neither reaches the application nor loses a step."""

    def fail(name: str, attributes: object) -> bool:
        raise LookupError(name, attributes)

    assert decision(StepSampler(ALWAYS_OFF, may_be_step=fail)) is Decision.RECORD_ONLY


class _Keeping(Sampler):
    """Drops every span, and keeps the arguments of each call."""

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


def test_the_root_sampler_gets_all_arguments_and_its_state_is_kept() -> None:
    """The result has the span's attributes, which samplers leave out when they drop a span."""
    root = _Keeping()
    context, links = Context(), list[Link]()
    result = StepSampler(root).should_sample(context, 5, "step", SpanKind.CLIENT, STEP, links, None)
    assert root.asked == [(context, 5, "step", SpanKind.CLIENT, STEP, links, None)]
    assert (result.decision, dict(result.attributes)) == (Decision.RECORD_ONLY, STEP)
    assert result.trace_state == TraceState([("mine", "1")])
    assert StepSampler(root).get_description() == "StepSampler{Keeping}"


def test_below_a_remote_parent_that_is_not_sampled_a_step_is_sent(step_receiver: ScriptedReceiver) -> None:
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
    """The argument has the same format as that of OpenTelemetry's own sampler by ratio."""
    assert from_argument(argument).get_description().startswith(description)


def test_the_argument_may_ask_for_all_spans() -> None:
    """``0,all`` records the spans that the ratio drops."""
    assert decision(from_argument("0,all")) is Decision.RECORD_ONLY
    assert decision(from_argument("0")) is Decision.DROP


def test_the_declarative_configuration_uses_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The declarative configuration passes no argument, so that it is read from OTEL_TRACES_SAMPLER_ARG."""
    assert "TraceIdRatioBased{1" in from_environment().get_description()
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.1")
    assert "TraceIdRatioBased{0.1}" in from_environment().get_description()


def test_the_declarative_configuration_has_no_options() -> None:
    """Options in the file are refused with the place where the ratio belongs."""
    expected = (
        r"step_hook has options in the configuration file \(ratio, all\); expected none, as in step_hook: \{\}; put"
    )
    with pytest.raises(ConfigurationError, match=expected):
        from_environment(ratio=0.1, all=True)


@pytest.mark.parametrize("argument", ["lots", "2", "-0.1", "nan", "0.1,some", "all"])
def test_any_other_argument_is_refused_with_what_is_expected(argument: str) -> None:
    """OpenTelemetry logs the message, and continues with its default."""
    with pytest.raises(ConfigurationError, match=r"must be a ratio from 0 to 1, such as 0\.1, or one and the word all"):
        from_argument(argument)


_BY_NAME = """
from opentelemetry.sdk._configuration import _initialize_components
from opentelemetry import trace
_initialize_components()
print(trace.get_tracer_provider().sampler.get_description())
"""


def test_the_sampler_is_selected_by_name() -> None:
    """``OTEL_TRACES_SAMPLER=step_hook`` selects it, with its argument, without any code."""
    environment = os.environ | {"OTEL_TRACES_SAMPLER": "step_hook", "OTEL_TRACES_SAMPLER_ARG": "0.25"}
    done = subprocess.run(
        [sys.executable, "-c", _BY_NAME], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("StepSampler{ParentBased{root:TraceIdRatioBased{0.25}")
    assert done.stderr == ""
