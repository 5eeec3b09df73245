"""The metrics: owns the meter, and the endpoints that its observable instruments report."""

import functools
import operator
import weakref
from collections.abc import Callable, Iterable
from typing import NamedTuple

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from otel_step_hook.delivery.model import Counts
from otel_step_hook.steps.event import SCOPE
from otel_step_hook.version import __version__

# Bucket boundaries: those of the HTTP conventions, and longer ones for retries. The SDK's are for milliseconds.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 86400)


class Instruments(NamedTuple):
    """The instruments that count; no-ops without a MeterProvider."""

    deliveries: metrics.Counter
    attempts: metrics.Counter
    dropped: metrics.Counter
    in_memory: metrics.Counter
    duration: metrics.Histogram

    @classmethod
    @functools.cache
    def of_this_process(cls) -> "Instruments":
        """Return the instruments of this process, made once: the SDK warns of an instrument that is made twice."""
        meter = metrics.get_meter(SCOPE, __version__)
        meter.create_observable_up_down_counter(
            "step_hook.queue.size", [_queue_sizes], "{event}", "Events that are neither delivered nor discarded"
        )
        meter.create_observable_up_down_counter(
            "step_hook.queue.in_memory", [_in_memory], "{event}", "Those of them that are lost if the process is killed"
        )
        meter.create_observable_gauge(
            "step_hook.outbox.discarded", [_discarded], "{delivery}", "Discarded deliveries that the outbox keeps"
        )
        meter.create_observable_gauge(
            "step_hook.queue.oldest", [_oldest_ages], "s", "Age of the oldest event in the queue"
        )
        meter.create_observable_gauge(
            "step_hook.circuit.open", [_open_circuits], "1", "1 while an endpoint is down and only probed, else 0"
        )
        return cls(
            meter.create_counter("step_hook.deliveries", "{delivery}", "Deliveries that have ended, by result"),
            meter.create_counter("step_hook.attempts", "{attempt}", "Attempts to deliver"),
            meter.create_counter("step_hook.dropped", "{event}", "Steps lost before they were stored"),
            meter.create_counter(
                "step_hook.outbox.in_memory_events", "{event}", "Events put into memory alone, beside an outbox"
            ),
            meter.create_histogram(
                "step_hook.delivery.duration",
                "s",
                "From the step's end to the result",
                explicit_bucket_boundaries_advisory=_SECONDS,
            ),
        )


def use_provider(provider: metrics.MeterProvider) -> None:
    """Let *provider* be that of this process. Once, by the command line: an application has a provider of its own."""
    metrics.set_meter_provider(provider)


class EndpointState(NamedTuple):
    """What the observable instruments report of one endpoint."""

    counts: Counts
    oldest_age: float  # seconds
    is_circuit_open: bool


class ObservedEndpoint:
    """An endpoint that the observable instruments report for as long as this object lives.

    *observe* is called from any thread.
    """

    def __init__(self, endpoint: str, observe: Callable[[], EndpointState]) -> None:
        self.endpoint = endpoint
        self.observe = observe
        _observed_endpoints[id(self)] = self


# Not a WeakSet: before Python 3.14, iterating fails when another thread adds to it (python/cpython#123089).
_observed_endpoints: "weakref.WeakValueDictionary[int, ObservedEndpoint]" = weakref.WeakValueDictionary()


def _observed(value: Callable[[EndpointState], float], combine: Callable[[float, float], float]) -> list[Observation]:
    """Return one observation per name; *combine* joins the values of endpoints with one name, in two hooks."""
    found: dict[str, float] = {}
    for one in filter(None, (ref() for ref in _observed_endpoints.valuerefs())):
        new = value(one.observe())
        found[one.endpoint] = combine(found[one.endpoint], new) if one.endpoint in found else new
    return [Observation(number, {"endpoint": name}) for name, number in found.items()]


def _queue_sizes(_: CallbackOptions) -> Iterable[Observation]:
    return _observed(lambda one: one.counts.waiting, operator.add)


def _in_memory(_: CallbackOptions) -> Iterable[Observation]:
    return _observed(lambda one: one.counts.in_memory, operator.add)


def _discarded(_: CallbackOptions) -> Iterable[Observation]:
    return _observed(lambda one: one.counts.discarded, max)


def _oldest_ages(_: CallbackOptions) -> Iterable[Observation]:
    return _observed(lambda one: one.oldest_age, max)


def _open_circuits(_: CallbackOptions) -> Iterable[Observation]:
    return _observed(lambda one: int(one.is_circuit_open), max)
