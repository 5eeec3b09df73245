"""Letta's steps: the spans that were observed on a real server are made again with the plain SDK.

The server itself needs 261 packages. Its spans have the scope letta.otel.tracing: `agent_step`, which ends before the
commit or never, and the methods of its StepManager, whose spans end after the commit.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from emitting import Framework
from opentelemetry.trace import Span, Status, StatusCode, set_span_in_context
from support import Pipeline, pipeline

from otel_step_hook.steps import reader
from otel_step_hook.steps.frameworks import PROFILES
from otel_step_hook.steps.profile import Profile, first_attribute, name_matches
from otel_step_hook.testing import ScriptedReceiver

STEP = "step-1b4e28ba-2fa1-4d3b-8f7c-9d2e5a6b7c8d"
SCOPE = "letta.otel.tracing"


@dataclass
class Server:
    """Makes the spans that Letta's server makes during a step."""

    hooked: Pipeline
    open_spans: list[Span] = field(default_factory=list)

    def method(self, name: str, status: StatusCode = StatusCode.OK, **parameters: str) -> None:
        """Make the span of a traced method: it has all parameters as text, and its status is set at its end."""
        tracer = self.hooked.provider.get_tracer(SCOPE)
        span = tracer.start_span(name)
        span.set_attributes({f"parameter.{key}": text for key, text in parameters.items()})
        span.set_status(Status(status))
        span.end()

    def begin(self, step_id: str = STEP, run_id: str = "run-1") -> Span:
        """Start a step: an `agent_step` span, which is never current, and the span that inserts the database row."""
        tracer = self.hooked.provider.get_tracer(SCOPE)
        with tracer.start_as_current_span("LettaAgentV3._step_checkpoint_start") as checkpoint:
            step = tracer.start_span("agent_step", set_span_in_context(checkpoint))
            step.set_attribute("step_id", step_id)
            self.method("StepManager.log_step_async", step_id=step_id, agent_id="agent-1", run_id=run_id)
        self.open_spans.append(step)
        return step

    def finish(
        self, kind: str = "success", step_id: str = STEP, status: StatusCode = StatusCode.OK, **more: str
    ) -> None:
        """End a step: the span of the method that saves its final state."""
        self.method(f"StepManager.update_step_{kind}_async", status, step_id=step_id, stop_reason="None", **more)

    def outcomes(self, receiver: ScriptedReceiver) -> list[tuple[str, object]]:
        """Return the step ids and outcomes that *receiver* has got."""
        assert self.hooked.provider.force_flush()
        return [(webhook.step_id, webhook.data["outcome"]) for webhook in receiver.received]


@pytest.fixture
def server(step_receiver: ScriptedReceiver) -> Iterator[Server]:
    """A server whose steps are reported to the receiver."""
    with pipeline(step_receiver.url, payload="full") as hooked:
        yield Server(hooked)


# The cases that were observed


def test_a_step_that_succeeds_is_reported_after_the_commit(server: Server, step_receiver: ScriptedReceiver) -> None:
    """A step is reported once, with its agent and run ids, and not when `agent_step` ends before the commit."""
    server.begin().end()
    assert server.outcomes(step_receiver) == []
    server.finish()
    server.method("StepManager.update_step_stop_reason", step_id=STEP, stop_reason="StopReasonType.end_turn")
    assert server.outcomes(step_receiver) == [(STEP, "success")]
    (webhook,) = step_receiver.received
    assert (webhook.data["agent_id"], webhook.data["run_id"]) == ("agent-1", "run-1")
    (delivery,) = server.hooked.named("step_hook.deliver")
    (saved,) = server.hooked.named("StepManager.update_step_success_async")
    assert delivery.parent == saved.context


def test_a_step_that_fails_is_reported_although_its_span_is_ok(server: Server, step_receiver: ScriptedReceiver) -> None:
    """`agent_step` never ends, and the span that saves the failure has status OK."""
    server.begin()
    server.finish("error", error_type="LLMError")
    assert server.outcomes(step_receiver) == [(STEP, "failed")]


def test_each_step_of_a_run_is_reported(server: Server, step_receiver: ScriptedReceiver) -> None:
    """A run of several steps gives one webhook for each."""
    ids = [f"{STEP[:-1]}{number}" for number in range(3)]
    for step_id in ids:
        server.begin(step_id).end()
        server.finish(step_id=step_id)
    assert sorted(server.outcomes(step_receiver)) == [(step_id, "success") for step_id in ids]


@pytest.mark.parametrize("last", ["asyncio.exceptions.CancelledError", "CancelledError: stopped", "GeneratorExit"])
def test_a_step_that_was_cancelled_is_reported_as_cancelled(
    last: str, server: Server, step_receiver: ScriptedReceiver
) -> None:
    """Letta saves a cancelled step as failed with an unknown error, whose traceback ends in the cancellation."""
    server.begin()
    server.finish("error", error_type="Unknown", error_traceback=f"Traceback …\n  File …\n{last}\n")
    assert server.outcomes(step_receiver) == [(STEP, "cancelled")]


@pytest.mark.parametrize(
    ("kind", "traceback"),
    [
        ("Unknown", "Traceback …\nValueError: CancelledError"),
        ("LLMError", "asyncio.exceptions.CancelledError"),
        ("Unknown", ""),
    ],
)
def test_any_other_error_is_a_failure(
    kind: str, traceback: str, server: Server, step_receiver: ScriptedReceiver
) -> None:
    """Only an error of type `Unknown` whose traceback ends in a cancellation is a cancellation."""
    server.begin()
    server.finish("error", error_type=kind, error_traceback=traceback)
    assert server.outcomes(step_receiver) == [(STEP, "failed")]


def test_a_step_that_is_saved_as_cancelled_is_reported_so(server: Server, step_receiver: ScriptedReceiver) -> None:
    """The StepManager has a method for it, although the public server never calls it."""
    server.begin()
    server.finish("cancelled")
    assert server.outcomes(step_receiver) == [(STEP, "cancelled")]


def test_a_cancelled_stream_is_reported_when_letta_saves_it(server: Server, step_receiver: ScriptedReceiver) -> None:
    """Letta saves no step when a stream is cancelled, but in another trace, when its generator is collected."""
    server.begin()
    server.method("RunManager.update_run_by_id_async", run_id="run-1", update="RunUpdate(status=<RunStatus.cancelled>)")
    assert server.outcomes(step_receiver) == []
    with server.hooked.provider.get_tracer(SCOPE).start_as_current_span("POST /v1/agents"):
        server.finish("error", error_type="Unknown", error_traceback="Traceback …\nGeneratorExit")
    assert server.outcomes(step_receiver) == [(STEP, "cancelled")]


def test_a_step_that_could_not_be_saved_is_not_reported(server: Server, step_receiver: ScriptedReceiver) -> None:
    """If the step is missing or belongs to another user, the span has status ERROR, and nothing was committed."""
    server.finish(status=StatusCode.ERROR)
    server.finish("error", status=StatusCode.ERROR, error_type="LLMError")
    server.finish(status=StatusCode.UNSET)
    assert server.outcomes(step_receiver) == []


def test_a_cancellation_while_a_step_is_saved_is_not_reported(server: Server, step_receiver: ScriptedReceiver) -> None:
    """The span of the method has status ERROR, and the database row did not change."""
    tracer = server.hooked.provider.get_tracer(SCOPE)
    with (
        contextlib.suppress(KeyboardInterrupt),
        tracer.start_as_current_span(
            "StepManager.update_step_success_async", attributes={"parameter.step_id": STEP}
        ) as span,
    ):
        span.set_status(Status(StatusCode.ERROR))
        raise KeyboardInterrupt
    assert server.outcomes(step_receiver) == []


def test_a_step_is_reported_once_with_each_outcome(server: Server, step_receiver: ScriptedReceiver) -> None:
    """Letta sometimes saves the same state twice, and may replace a final state by another."""
    server.begin().end()
    for kind in ("success", "success", "error", "success", "error"):
        server.finish(kind, error_type="LLMError")
    assert sorted(server.outcomes(step_receiver)) == [(STEP, "failed"), (STEP, "success")]


# Spans that are no steps


@pytest.mark.parametrize(
    "name",
    [
        "NoopStepManager.update_step_success_async",
        "StepManager.record_step_metrics_async",
        "StepManager.log_step_async",
        "LettaAgentV3.step",
        "agent_step",
    ],
)
def test_no_other_span_of_letta_is_a_step(name: str, server: Server, step_receiver: ScriptedReceiver) -> None:
    """The no-op manager, the metrics and the loop are no steps, although their spans have a step id."""
    server.method(name, step_id=STEP)
    tracer = server.hooked.provider.get_tracer(SCOPE)
    tracer.start_span(name, attributes={"step_id": STEP, "step.id": STEP}).end()
    assert server.outcomes(step_receiver) == []


def test_without_a_step_id_of_letta_nothing_is_reported(server: Server, step_receiver: ScriptedReceiver) -> None:
    """Letta's step ids begin with ``step-``."""
    server.finish(step_id="None")
    server.finish(step_id="")
    server.method("StepManager.update_step_success_async")
    assert server.outcomes(step_receiver) == []


def test_agent_step_of_another_scope_is_a_generic_step(server: Server, step_receiver: ScriptedReceiver) -> None:
    """An `agent_step` span with a ``step_id`` is a step by the generic profile if its scope is not Letta's."""
    server.hooked.tracer.start_span("agent_step", attributes={"step_id": "mine"}).end()
    assert server.outcomes(step_receiver) == [("mine", "success")]


# Agent and run ids


def test_unknown_agent_and_run_ids_are_left_out(server: Server, step_receiver: ScriptedReceiver) -> None:
    """If Letta has no run, or the start of the step was not seen, the event lacks these keys."""
    server.begin(run_id="None").end()
    server.finish()
    server.finish(step_id=f"{STEP[:-1]}0")
    assert len(server.outcomes(step_receiver)) == 2
    first, second = step_receiver.received
    data = {first.step_id: first.data, second.step_id: second.data}
    assert "run_id" not in data[STEP]
    assert data[STEP]["agent_id"] == "agent-1"
    assert not {"agent_id", "run_id"} & data[f"{STEP[:-1]}0"].keys()


def test_a_users_profile_gets_the_agent_and_run_ids_of_letta() -> None:
    """Steps of a user's profile for Letta's spans have the details that Letta's row has read."""
    mine = Profile(
        name="mine",
        scopes=(SCOPE,),
        is_step=name_matches(r"StepManager\.update_step_\w+_async"),
        step_id=first_attribute("parameter.step_id"),
    )
    framework = Framework(SCOPE, [mine, *PROFILES])
    details = {"parameter.step_id": "mine", "parameter.agent_id": "agent-1", "parameter.run_id": "run-1"}
    framework.emit("StepManager.log_step_async", later=details)
    framework.emit("StepManager.update_step_success_async", later={"parameter.step_id": "mine"})
    (event,) = framework.recorder.events
    assert (event.step_id, event.details) == ("mine", {"agent_id": "agent-1", "run_id": "run-1"})


def test_the_remembered_details_are_bounded(
    server: Server, step_receiver: ScriptedReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The details of steps that are never saved are evicted, and later steps still have theirs."""
    monkeypatch.setattr(reader, "_MAX_REMEMBERED", 10)  # instead of ten thousand
    for number in range(50):
        step_id = f"step-{number:08x}"
        server.begin(step_id)
        if number % 2:
            server.finish(step_id=step_id)
    assert len(server.outcomes(step_receiver)) == 25
    assert all(webhook.data["agent_id"] == "agent-1" for webhook in step_receiver.received)


def test_the_agent_and_run_ids_are_sent_only_in_the_full_payload(step_receiver: ScriptedReceiver) -> None:
    """By default the body is that of Letta's own webhook: the step id, and nothing else."""
    with pipeline(step_receiver.url) as hooked:
        server = Server(hooked)
        server.begin().end()
        server.finish()
        assert hooked.provider.force_flush()
    assert step_receiver.received[0].body == b'{"step_id": "%s"}' % STEP.encode()
