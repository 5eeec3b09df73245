"""The application that the programs share: a provider with a hook, whose settings come from the environment."""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable

import interruptible  # noqa: F401 -- its import removes a lock of coverage
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Tracer

# httpx imports click (encode/httpx#3547) and httpcore imports trio wherever they are installed. Deliveries need
# neither, and each program would take half as long again to start.
sys.modules |= dict.fromkeys(("trio", "click"))  # type: ignore[arg-type]  # -- None forbids the import

from otel_step_hook import StepHookProcessor  # noqa: E402 -- see above
from otel_step_hook.delivery import dispatch  # noqa: E402 -- see above


def provider_with(hook: StepHookProcessor) -> TracerProvider:
    """A provider whose only processor is *hook*."""
    provider = TracerProvider()
    provider.add_span_processor(hook)
    return provider


hook = StepHookProcessor()
provider = provider_with(hook)
tracer = provider.get_tracer("tests")


def end_step(step_id: str, tracer: Tracer = tracer) -> None:
    """End a step that succeeds."""
    tracer.start_span("step", attributes={"step_id": step_id}).end()


def end_steps(name: str, count: int) -> None:
    """End *count* steps that succeed, with the ids *name*-0, *name*-1 and so on."""
    for number in range(count):
        end_step(f"{name}-{number}")


def deliver(step_id: str) -> None:
    """End a step that succeeds and flush, so that it is delivered."""
    end_step(step_id)
    provider.force_flush()


def fork(in_child: Callable[[], object] = lambda: end_steps("child", 2)) -> None:
    """Fork, run *in_child* in the child, and print its exit code, which is 3 unless something ended it before."""
    pid = os.fork()
    if pid == 0:
        in_child()
        sys.exit(3)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def wait_for_test() -> None:
    """Wait until the test calls `Program.go_on`."""
    os.read(0, 1)


def print_log() -> threading.Event:
    """Print each line that the hook logs from now on; the event is set with the first."""
    has_logged = threading.Event()

    class Printing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print(record.getMessage(), flush=True)
            has_logged.set()

    logging.getLogger("otel_step_hook").addHandler(Printing())
    return has_logged


def compute(seconds: float) -> None:
    """Keep the interpreter busy for some *seconds*."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def keep_time_to_record(share: float) -> None:
    """Keep this share of the shutdown timeout for what is discarded: the usual one is short on a busy machine."""
    dispatch._STOP_MARGIN = share


def count_metrics() -> Callable[[], None]:
    """Install the global meter provider. Returns a function that prints the metrics as one line of JSON."""
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))

    def print_metrics() -> None:
        counted = reader.get_metrics_data()
        print(counted.to_json(indent=None) if counted is not None else "", flush=True)

    return print_metrics
