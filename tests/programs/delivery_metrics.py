"""Deliver with a real MeterProvider in place, and print what it has counted, as JSON."""

import asyncio
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from dispatching import DELIVERED, Script, event, failed, rigged
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from otel_step_hook.delivery.log import Trouble
from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.delivery.telemetry import Pipeline, Telemetry
from otel_step_hook.steps.event import Outcome

reader = InMemoryMetricReader()


class _Raising(SpanProcessor):
    def on_end(self, span: ReadableSpan) -> None:  # noqa: ARG002 -- the SDK's signature
        raise RuntimeError


def points() -> dict[str, list[object]]:
    """For each metric its points: labels, count or value, unit."""
    found: dict[str, list[object]] = {}
    told = reader.get_metrics_data()
    for scope in told.resource_metrics[0].scope_metrics if told else ():
        assert (scope.scope.name, bool(scope.scope.version)) == ("otel_step_hook", True)
        for metric in scope.metrics:
            found[metric.name] = [
                [
                    dict(point.attributes or {}),
                    getattr(point, "count", None) or getattr(point, "value", None),
                    metric.unit,
                ]
                for point in metric.data.data_points
            ]
    return found


async def main() -> None:
    """Deliveries that succeed at last, are refused, cannot be recorded, and are cut off."""
    metrics.set_meter_provider(MeterProvider([reader]))
    timeout, gone = AttemptResult(error_type="timeout"), failed(410)
    async with rigged(Script(failed(), timeout, DELIVERED, gone, DELIVERED), concurrency=1) as rig:
        rig.submit(event("retried", Outcome.FAILED))
        await rig.done()
        rig.submit(event("gone", Outcome.CANCELLED))
        await rig.done()
        rig.pipeline = Pipeline(_Raising(), rig.pipeline.resource)
        rig.submit(event("unrecorded"))
        await rig.done()
    async with rigged(Script(asyncio.Event()), concurrency=1) as rig:
        rig.submit(event("cut off"), event("queued"))
        await asyncio.sleep(0)
        during = points()["step_hook.queue.size"]
        rig.dispatcher._stop_now()
        rig.dispatcher.stop_by(0.0)
        await rig.stopped()
        await asyncio.sleep(0)
    Telemetry("http://receiver.test/", Trouble()).dropped("queue_full", 3)
    json.dump({"during": during, "after": points()}, sys.stdout)


asyncio.run(main())
