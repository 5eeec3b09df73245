"""Letta's steps, as its spans tell them: every row of what was observed on the real server, replayed by the plain SDK.

The server itself needs 261 packages. What it emits is in the letta.otel.tracing scope: `agent_step`, which ends before
the commit or never, and the methods of its StepManager, whose spans end after it.
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
    """Emits what Letta's server does in the course of a step."""

    hooked: Pipeline
    open_spans: list[Span] = field(default_factory=list)

    def method(self, name: str, status: StatusCode = StatusCode.OK, **parameters: str) -> None:
        """A traced method: all of its parameters as text, its status at its end."""
        tracer = self.hooked.provider.get_tracer(SCOPE)
        span = tracer.start_span(name)
        span.set_attributes({f"parameter.{key}": text for key, text in parameters.items()})
        span.set_status(Status(status))
        span.end()

    def begin(self, step_id: str = STEP, run_id: str = "run-1") -> Span:
        """A step begins: `agent_step`, which is never current, and the row in the database."""
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
        """A step's last state is saved."""
        self.method(f"StepManager.update_step_{kind}_async", status, step_id=step_id, stop_reason="None", **more)

    def told(self, receiver: ScriptedReceiver) -> list[tuple[str, object]]:
        """Which steps the receiver has been told of, and how they ended."""
        assert self.hooked.provider.force_flush()
        return [(webhook.step_id, webhook.data["outcome"]) for webhook in receiver.received]


@pytest.fixture
def server(step_receiver: ScriptedReceiver) -> Iterator[Server]:
    """A server whose steps are told to the receiver."""
    with pipeline(step_receiver.url, payload="full") as hooked:
        yield Server(hooked)


# What was observed, row by row


def test_a_step_that_succeeds_is_told_after_the_commit(server: Server, step_receiver: ScriptedReceiver) -> None:
    """Not when `agent_step` ends, which is before the commit; once, with the ids of its agent and its run."""
    server.begin().end()
    assert server.told(step_receiver) == []
    server.finish()
    server.method("StepManager.update_step_stop_reason", step_id=STEP, stop_reason="StopReasonType.end_turn")
    assert server.told(step_receiver) == [(STEP, "success")]
    (webhook,) = step_receiver.received
    assert (webhook.data["agent_id"], webhook.data["run_id"]) == ("agent-1", "run-1")
    (delivery,) = server.hooked.named("step_hook.deliver")
    (saved,) = server.hooked.named("StepManager.update_step_success_async")
    assert delivery.parent == saved.context


def test_a_step_that_fails_is_told_although_its_span_is_ok(server: Server, step_receiver: ScriptedReceiver) -> None:
    """`agent_step` never ends, and the span that saves the failure has status OK."""
    server.begin()
    server.finish("error", error_type="LLMError")
    assert server.told(step_receiver) == [(STEP, "failed")]


def test_each_step_of_a_turn_is_told(server: Server, step_receiver: ScriptedReceiver) -> None:
    """A turn of several steps is several webhooks."""
    ids = [f"{STEP[:-1]}{number}" for number in range(3)]
    for step_id in ids:
        server.begin(step_id).end()
        server.finish(step_id=step_id)
    assert sorted(server.told(step_receiver)) == [(step_id, "success") for step_id in ids]


@pytest.mark.parametrize("last", ["asyncio.exceptions.CancelledError", "CancelledError: stopped", "GeneratorExit"])
def test_a_step_that_was_cancelled_is_told_as_cancelled(
    last: str, server: Server, step_receiver: ScriptedReceiver
) -> None:
    """Letta saves it as failed with an unknown error; the last line of the traceback tells what it was."""
    server.begin()
    server.finish("error", error_type="Unknown", error_traceback=f"Traceback …\n  File …\n{last}\n")
    assert server.told(step_receiver) == [(STEP, "cancelled")]


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
    """Only an unknown error that ends in a cancellation is one."""
    server.begin()
    server.finish("error", error_type=kind, error_traceback=traceback)
    assert server.told(step_receiver) == [(STEP, "failed")]


def test_a_step_that_is_saved_as_cancelled_is_told_so(server: Server, step_receiver: ScriptedReceiver) -> None:
    """Nothing in the public server does that, but its manager can."""
    server.begin()
    server.finish("cancelled")
    assert server.told(step_receiver) == [(STEP, "cancelled")]


def test_a_stream_that_was_cancelled_is_told_when_letta_saves_it(
    server: Server, step_receiver: ScriptedReceiver
) -> None:
    """Nothing at the time of the cancellation; later, in an unrelated trace, the collected generator saves an error."""
    server.begin()
    server.method("RunManager.update_run_by_id_async", run_id="run-1", update="RunUpdate(status=<RunStatus.cancelled>)")
    assert server.told(step_receiver) == []
    with server.hooked.provider.get_tracer(SCOPE).start_as_current_span("POST /v1/agents"):
        server.finish("error", error_type="Unknown", error_traceback="Traceback …\nGeneratorExit")
    assert server.told(step_receiver) == [(STEP, "cancelled")]


def test_a_step_that_could_not_be_saved_is_not_told(server: Server, step_receiver: ScriptedReceiver) -> None:
    """A step that is missing, or somebody else's, leaves a span with status ERROR: nothing was committed."""
    server.finish(status=StatusCode.ERROR)
    server.finish("error", status=StatusCode.ERROR, error_type="LLMError")
    server.finish(status=StatusCode.UNSET)
    assert server.told(step_receiver) == []


def test_a_cancellation_while_a_step_is_saved_is_not_told(server: Server, step_receiver: ScriptedReceiver) -> None:
    """The method's span says ERROR with the cancellation, and the row is as it was."""
    tracer = server.hooked.provider.get_tracer(SCOPE)
    with (
        contextlib.suppress(KeyboardInterrupt),
        tracer.start_as_current_span(
            "StepManager.update_step_success_async", attributes={"parameter.step_id": STEP}
        ) as span,
    ):
        span.set_status(Status(StatusCode.ERROR))
        raise KeyboardInterrupt
    assert server.told(step_receiver) == []


def test_a_step_is_told_once_with_each_outcome(server: Server, step_receiver: ScriptedReceiver) -> None:
    """Letta saves the same state twice now and then, and may change a state that was the last one."""
    server.begin().end()
    for kind in ("success", "success", "error", "success", "error"):
        server.finish(kind, error_type="LLMError")
    assert sorted(server.told(step_receiver)) == [(STEP, "failed"), (STEP, "success")]


# What is no step


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
    """Not even with a step id: the manager that does nothing, the metrics, the loop."""
    server.method(name, step_id=STEP)
    tracer = server.hooked.provider.get_tracer(SCOPE)
    tracer.start_span(name, attributes={"step_id": STEP, "step.id": STEP}).end()
    assert server.told(step_receiver) == []


def test_without_a_real_step_id_nothing_is_told(server: Server, step_receiver: ScriptedReceiver) -> None:
    """Letta's ids begin with ``step-``."""
    server.finish(step_id="None")
    server.finish(step_id="")
    server.method("StepManager.update_step_success_async")
    assert server.told(step_receiver) == []


def test_the_same_convention_elsewhere_is_the_generic_one(server: Server, step_receiver: ScriptedReceiver) -> None:
    """An `agent_step` with a ``step_id`` that is not Letta's is a step as any other."""
    server.hooked.tracer.start_span("agent_step", attributes={"step_id": "mine"}).end()
    assert server.told(step_receiver) == [("mine", "success")]


# Whose a step is


def test_a_step_of_nobody_says_so_by_silence(server: Server, step_receiver: ScriptedReceiver) -> None:
    """Where Letta knows no run, or the beginning was not seen, there is no such key."""
    server.begin(run_id="None").end()
    server.finish()
    server.finish(step_id=f"{STEP[:-1]}0")
    assert len(server.told(step_receiver)) == 2
    first, second = step_receiver.received
    data = {first.step_id: first.data, second.step_id: second.data}
    assert "run_id" not in data[STEP]
    assert data[STEP]["agent_id"] == "agent-1"
    assert not {"agent_id", "run_id"} & data[f"{STEP[:-1]}0"].keys()


def test_a_profile_of_the_users_knows_whose_a_step_of_letta_is() -> None:
    """One for the same spans, which takes the steps over, has them with the ids that Letta's row has read."""
    mine = Profile(
        name="mine",
        scopes=(SCOPE,),
        is_step=name_matches(r"StepManager\.update_step_\w+_async"),
        step_id=first_attribute("parameter.step_id"),
    )
    framework = Framework(SCOPE, [mine, *PROFILES])
    about = {"parameter.step_id": "mine", "parameter.agent_id": "agent-1", "parameter.run_id": "run-1"}
    framework.emit("StepManager.log_step_async", later=about)
    framework.emit("StepManager.update_step_success_async", later={"parameter.step_id": "mine"})
    (event,) = framework.recorder.events
    assert (event.step_id, event.details) == ("mine", {"agent_id": "agent-1", "run_id": "run-1"})


def test_what_is_remembered_of_steps_is_bounded(
    server: Server, step_receiver: ScriptedReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that begin and are never saved make room for those after them, and these have their ids."""
    monkeypatch.setattr(reader, "_MAX_REMEMBERED", 10)  # instead of ten thousand
    for number in range(50):
        step_id = f"step-{number:08x}"
        server.begin(step_id)
        if number % 2:
            server.finish(step_id=step_id)
    assert len(server.told(step_receiver)) == 25
    assert all(webhook.data["agent_id"] == "agent-1" for webhook in step_receiver.received)


def test_the_ids_are_not_told_without_the_full_payload(step_receiver: ScriptedReceiver) -> None:
    """As Letta's own webhook: the step id, and nothing else."""
    with pipeline(step_receiver.url) as hooked:
        server = Server(hooked)
        server.begin().end()
        server.finish()
        assert hooked.provider.force_flush()
    assert step_receiver.received[0].body == b'{"step_id": "%s"}' % STEP.encode()
