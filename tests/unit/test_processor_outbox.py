"""Hooks with an outbox: durable at once, delivered by whichever hook comes next, in the step's own trace."""

import contextlib
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import support
from delivering import threads, wait_until
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import format_trace_id
from storing import change, descriptors, journals, rows
from support import NewPipeline, Pipeline

from otel_step_hook import StepHookProcessor, StepHookSettings
from otel_step_hook.delivery import outbox_file
from otel_step_hook.testing import Answer, ScriptedReceiver

LATER = {"initial_backoff": 1000.0, "max_backoff": 1000.0}  # no test waits for a second attempt


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a file that is not there yet."""
    return tmp_path / "steps.db"


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets workers look for what others have left all the time, instead of every half minute."""
    monkeypatch.setattr(outbox_file, "LOOK_INTERVAL", 0.02)
    monkeypatch.setattr("otel_step_hook.delivery.dispatch.IDLE", 0.02)


def end_step(pipeline: Pipeline, step_id: str) -> None:
    """End one successful step, without a flush."""
    pipeline.tracer.start_span("step", attributes={"step_id": step_id}).end()


def begin(pipeline: Pipeline) -> None:
    """Start the worker thread, by a span that is no step."""
    pipeline.tracer.start_span("no step").end()


def waiting(path: Path) -> int:
    """How many deliveries wait in the file."""
    return len(rows(path, "id", "discarded_at IS NULL"))


def test_a_step_is_delivered_and_its_row_is_gone(
    pipeline: NewPipeline, step_receiver: ScriptedReceiver, path: Path
) -> None:
    """As without an outbox: one webhook, one span for the delivery, and one for the attempt."""
    hooked = pipeline(outbox=path)
    hooked.end_step("step-1")
    (received,) = step_receiver.wait_for(1)
    assert received.step_id == "step-1"
    wait_until(lambda: not waiting(path))
    step, deliver, post = (hooked.named(name)[0] for name in ("step", "step_hook.deliver", "POST"))
    assert (deliver.parent, post.parent) == (step.context, deliver.context)
    assert post.resource is deliver.resource is step.resource


def test_a_flush_waits_for_no_receiver(pipeline: NewPipeline, closed_port: int, path: Path) -> None:
    """It returns true once the step is durable, although the receiver is down; so does one of a long step id."""
    hooked = pipeline(f"http://127.0.0.1:{closed_port}/", outbox=path, **LATER)
    for step_id in ("step-1", "x" * 2000):
        hooked.end_step(step_id)
    wait_until(lambda: waiting(path) == 2)


def test_the_next_hook_delivers_the_rest(pipeline: NewPipeline, step_receiver: ScriptedReceiver, path: Path) -> None:
    """Under the same webhook id, below the same delivery span, in the step's trace, with its resource."""
    step_receiver.answers(503)
    with support.pipeline(step_receiver.url, is_step=None, outbox=path, **LATER) as first:
        first.end_step("step-1")
        (before,) = step_receiver.wait_for(1)
        wait_until(lambda: rows(path, "attempts", "owner IS NULL") == [1])
    assert (waiting(path), journals(path.parent)) == (1, [])
    assert not first.named("step_hook.deliver")
    change(path, "UPDATE delivery SET due_at = 0")
    second = pipeline(outbox=path)
    begin(second)
    _, after = step_receiver.wait_for(2)
    wait_until(lambda: second.named("step_hook.deliver"))
    assert (after.body, after.headers["webhook-id"]) == (before.body, before.headers["webhook-id"])
    step, failed = first.named("step")[0], first.named("POST")[0]
    deliver, post = second.named("step_hook.deliver")[0], second.named("POST")[0]
    assert deliver.parent is not None
    assert failed.parent is not None
    assert post.parent is not None
    assert step.context is not None
    assert deliver.context is not None
    assert (deliver.parent.span_id, failed.parent.span_id) == (step.context.span_id, deliver.context.span_id)
    assert post.parent.span_id == failed.parent.span_id
    assert {span.context.trace_id for span in (step, failed, deliver, post) if span.context} == {step.context.trace_id}
    assert {span.resource.attributes["service.name"] for span in (deliver, post)} == {"tests"}
    assert format_trace_id(step.context.trace_id) in after.headers["traceparent"]
    assert dict(post.attributes or {})["http.request.resend_count"] == 1
    assert dict(deliver.attributes or {})["step_hook.attempts"] == 2


def test_the_resource_of_the_first_process_is_kept(step_receiver: ScriptedReceiver, path: Path) -> None:
    """The service that ended the step is shown, whichever one sends the webhook."""
    provider = TracerProvider(resource=Resource({"service.name": "first", "list": [1]}), shutdown_on_exit=False)
    hook = StepHookProcessor(StepHookSettings(webhook=step_receiver.url, outbox=path, **LATER))
    provider.add_span_processor(hook)
    step_receiver.answers(503)
    provider.get_tracer("tests").start_span("step", attributes={"step_id": "step-1"}).end()
    step_receiver.wait_for(1)
    provider.shutdown()
    change(path, "UPDATE delivery SET due_at = 0")
    with support.pipeline(step_receiver.url, outbox=path) as second:
        begin(second)
        step_receiver.wait_for(2)
        wait_until(lambda: second.named("step_hook.deliver"))
    found = second.named("step_hook.deliver")[0].resource.attributes
    assert (found["service.name"], found["list"]) == ("first", (1,))


def test_two_hooks_on_one_file_send_each_step_once(
    pipeline: NewPipeline, step_receiver: ScriptedReceiver, path: Path
) -> None:
    """Whichever worker leases a row delivers it; the spans of both are complete."""
    first, second = pipeline(outbox=path), pipeline(outbox=path)
    for number in range(50):
        end_step(first if number % 2 else second, f"step-{number}")
    step_receiver.wait_for(50)
    wait_until(lambda: not waiting(path))
    assert sorted(one.step_id for one in step_receiver.received) == sorted(f"step-{number}" for number in range(50))
    wait_until(lambda: len(first.named("step_hook.deliver") + second.named("step_hook.deliver")) == 50)


def test_a_discarded_delivery_stays_with_its_last_error(
    pipeline: NewPipeline, step_receiver: ScriptedReceiver, path: Path
) -> None:
    """A receiver that is gone for good ends a delivery; the row stays for a person, and its span says the same."""
    step_receiver.answers(410)
    hooked = pipeline(outbox=path)
    hooked.end_step("step-1")
    wait_until(lambda: rows(path, "error_type", "discarded_at IS NOT NULL") == ["410"])
    (deliver,) = hooked.named("step_hook.deliver")
    assert dict(deliver.attributes or {})["error.type"] == "410"
    assert rows(path, "attempts") == [1]


def test_what_has_expired_in_the_file_is_discarded_without_an_attempt(
    pipeline: NewPipeline, step_receiver: ScriptedReceiver, closed_port: int, path: Path
) -> None:
    """A process that starts after the give-up time discards what waits, with the error of the last attempt."""
    first = pipeline(f"http://127.0.0.1:{closed_port}/", outbox=path, **LATER)
    first.end_step("step-1")
    wait_until(lambda: rows(path, "attempts") == [1])
    first.provider.shutdown()
    change(path, "UPDATE delivery SET submitted_at = submitted_at - 100000, due_at = 0")
    begin(pipeline(outbox=path))
    wait_until(lambda: rows(path, "error_type", "discarded_at IS NOT NULL") == ["ConnectionRefusedError"])
    assert (rows(path, "attempts"), step_receiver.received) == ([1], [])


def test_a_step_that_is_submitted_again_is_delivered_again(
    pipeline: NewPipeline, step_receiver: ScriptedReceiver, path: Path
) -> None:
    """A discarded delivery is revived by the same step, under the same webhook id."""
    step_receiver.answers(410)
    hooked = pipeline(outbox=path)
    span = hooked.tracer.start_span("step", attributes={"step_id": "step-1"})
    span.end()
    wait_until(lambda: rows(path, "error_type", "discarded_at IS NOT NULL") == ["410"])
    hooked.hook.on_end(span._readable_span())  # type: ignore[attr-defined]  # -- as a second provider would
    first, second = step_receiver.wait_for(2)
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    wait_until(lambda: not rows(path))


def test_a_disabled_endpoint_discards_what_waits(
    pipeline: NewPipeline, step_receiver: ScriptedReceiver, path: Path
) -> None:
    """A receiver that asks to be disabled gets no more; the rows stay, and say why."""
    step_receiver.answers(Answer(503, {"webhook-delivery": "disable"}))
    hooked = pipeline(outbox=path, concurrency=1)
    for number in range(3):
        end_step(hooked, f"step-{number}")
    wait_until(lambda: len(rows(path, "id", "discarded_at IS NOT NULL")) == 3)
    assert rows(path, "error_type") == ["503", "endpoint_disabled", "endpoint_disabled"]
    assert len(step_receiver.received) == 1


def test_a_collected_hook_leaves_its_rest_in_the_file(closed_port: int, path: Path) -> None:
    """No thread, no descriptor and no journal is left of it; its steps are."""
    before = descriptors()

    def work() -> None:
        provider = TracerProvider(shutdown_on_exit=False)
        settings = StepHookSettings(webhook=f"http://127.0.0.1:{closed_port}/", outbox=path, **LATER)
        provider.add_span_processor(StepHookProcessor(settings))
        for number in range(3):
            provider.get_tracer("tests").start_span("step", attributes={"step_id": str(number)}).end()

    work()
    wait_until(lambda: gc.collect() >= 0 and not threads())
    wait_until(lambda: descriptors() <= before)
    assert (waiting(path), journals(path.parent)) == (3, [])


def test_a_hook_that_never_sees_a_span_makes_no_file(pipeline: NewPipeline, path: Path) -> None:
    """A process that imports the application and ends no step leaves nothing behind."""
    pipeline(outbox=path).hook.shutdown()
    assert list(path.parent.iterdir()) == []


def test_several_endpoints_share_a_file(pipeline: NewPipeline, step_receiver: ScriptedReceiver, path: Path) -> None:
    """Each has rows of its own; one that is down delays no other."""
    with ScriptedReceiver() as down:
        down.answers(*[503] * 10)
        hooked = pipeline(f"{step_receiver.url} {down.url}", outbox=path, **LATER)
        for number in range(5):
            end_step(hooked, f"step-{number}")
        step_receiver.wait_for(5)
        down.wait_for(1)
        wait_until(lambda: waiting(path) == 5)
        assert len(set(rows(path, "endpoint"))) == 1
        hooked.provider.shutdown()
    assert journals(path.parent) == []


def _no_file(path: Path) -> None:
    path.parent.rmdir()


@pytest.mark.parametrize(
    "prepare",
    [lambda path: path.write_text("the notes of somebody\n" * 50), Path.mkdir, _no_file],
    ids=["text", "directory", "missing"],
)
def test_a_file_that_cannot_be_used_costs_no_step(
    pipeline: NewPipeline,
    step_receiver: ScriptedReceiver,
    path: Path,
    prepare: Callable[[Path], object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Webhooks are sent from memory, and a flush waits for them; a line says why."""
    prepare(path)
    hooked = pipeline(outbox=path)
    for number in range(5):
        end_step(hooked, f"step-{number}")
    assert {one.step_id for one in step_receiver.wait_for(5)} == {f"step-{number}" for number in range(5)}
    hooked.provider.shutdown()
    assert sum("meanwhile webhooks are sent from memory" in line for line in support.log_lines(caplog)) == 1
    with contextlib.suppress(FileNotFoundError):
        assert journals(path.parent) == []


def test_without_the_modules_that_it_needs(
    step_receiver: ScriptedReceiver, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a system without file locks, one line at the start says so, and webhooks are sent from memory."""
    # In place of Windows, where the import of fcntl fails.
    for name in ("otel_step_hook.delivery.outbox", "otel_step_hook.delivery.outbox_file"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "otel_step_hook.delivery.journal", None)
    hook = StepHookProcessor(step_receiver.url, outbox=path)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(hook)
    provider.get_tracer("tests").start_span("step", attributes={"step_id": "step-1"}).end()
    assert provider.force_flush()
    assert [received.step_id for received in step_receiver.received] == ["step-1"]
    needed = "STEP_COMPLETE_OUTBOX needs the Python module otel_step_hook.delivery.journal, which is not there"
    assert [message for message in caplog.messages if message.startswith(needed)] != []
    assert not path.exists()
    provider.shutdown()


def test_a_span_after_the_shutdown_starts_nothing(pipeline: NewPipeline, path: Path) -> None:
    """A hook that was shut down before its first span makes no file and starts no thread."""
    shut_down = pipeline(outbox=path)
    shut_down.provider.shutdown()
    begin(shut_down)
    assert not path.exists()
    assert threads() == []
