"""The metrics, with a real MeterProvider: in a process of its own, because a process can have only one."""

from pathlib import Path

from processes import Run, Start, metric_points

from otel_step_hook.testing import Answer, ScriptedReceiver

COUNTING = """
from opentelemetry.sdk.trace import SpanProcessor
class Raising(SpanProcessor):
    def on_end(self, span):
        if span.name != "step":
            raise RuntimeError
keep_time_to_record(0.95)
print_metrics = count_metrics()
for outcome in ("failed", "cancelled"):
    tracer.start_span("step", attributes={"step_id": outcome, "step.status": outcome}).end()
    provider.force_flush()
provider.add_span_processor(Raising())
deliver("unrecorded")
end_step("cut off")
wait_for_test()
print_metrics()
end_steps("waiting", 4)
provider.shutdown()
print_metrics()
"""


def test_the_values_of_all_metrics(step_receiver: ScriptedReceiver, start: Start) -> None:
    """Each metric has the right values and attributes, even if another processor raises for delivery spans."""
    step_receiver.answers(503, 204, 410, 204, Answer(delay=600))
    fast = {"initial_backoff": 0.01, "shutdown_timeout": 4}
    program = start(COUNTING, webhook=step_receiver.url, concurrency=1, max_queue_size=2, **fast)
    step_receiver.wait_for(5, 30)
    program.go_on()
    ended = program.ended()
    assert (ended.code, len(ended.out)) == (0, 2)
    during, after = map(metric_points, ended.out)
    deliveries = {
        "endpoint=default, outcome=failed, result=delivered": 1,
        "endpoint=default, outcome=cancelled, result=discarded": 1,
        "endpoint=default, outcome=success, result=delivered": 1,
        "endpoint=default, outcome=success, result=discarded": 2,
    }
    assert during["step_hook.queue.size {event}"] == {"endpoint=default": 1}
    assert during["step_hook.queue.oldest s"]["endpoint=default"] > 0
    assert after == {
        "step_hook.deliveries {delivery}": deliveries,
        "step_hook.delivery.duration s": deliveries,
        "step_hook.attempts {attempt}": {
            "endpoint=default, error.type=503": 1,
            "endpoint=default, error.type=410": 1,
            "endpoint=default, error.type=shutdown": 1,
            "endpoint=default": 2,
        },
        "step_hook.dropped {event}": {"endpoint=default, reason=queue_full": 3},
        "step_hook.queue.size {event}": {"endpoint=default": 0},
        "step_hook.queue.in_memory {event}": {"endpoint=default": 0},
        "step_hook.outbox.discarded {delivery}": {"endpoint=default": 0},
        "step_hook.queue.oldest s": {"endpoint=default": 0},
        "step_hook.circuit.open 1": {"endpoint=default": 0},
    }


def test_events_beside_an_outbox_are_counted(step_receiver: ScriptedReceiver, run: Run, tmp_path: Path) -> None:
    """Those that the journal has no room for, however short they are in memory; without an outbox there are none."""
    program = """
        print_metrics = count_metrics()
        end_steps("step", 3)
        for _ in range(2):
            end_step("x" * 2000)
        provider.shutdown()
        print_metrics()
        """
    name = "step_hook.outbox.in_memory_events {event}"
    durable = run(program, webhook=step_receiver.url, outbox=tmp_path / "steps.db")
    assert metric_points(durable.out[-1])[name] == {"endpoint=default": 2}
    assert name not in metric_points(run(program, webhook=step_receiver.url).out[-1])
