"""Ends steps where one does not expect it: in signal handlers, finalisers, log handlers and exporters.

Prints how many have ended and how many of them were dropped. A watchdog ends it when it hangs.
"""

import faulthandler
import gc
import itertools
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from application import end_step, hook, provider, tracer
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from otel_step_hook import StepHookProcessor

_RUN = 1.5  # seconds; long enough for thousands of interruptions
_OFTEN = 0.0005  # seconds between two signals
_DEEP = 20  # signal handlers that interrupt one another
_LOG = logging.getLogger("otel_step_hook")

reader = InMemoryMetricReader()
ended = itertools.count()
_finalised: list[object] = []


def _end(name: str) -> None:
    """End a step, counted before anything can interrupt it."""
    end_step(f"{name}-{next(ended)}")


def _dropped() -> int:
    """How many steps the metric says were dropped."""
    data = reader.get_metrics_data()
    points = [
        point
        for resource in (data.resource_metrics if data is not None else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "step_hook.dropped"
        for point in metric.data.data_points
    ]
    return sum(getattr(point, "value", 0) for point in points)


def _work(name: str) -> None:
    """What an application does all the time, and more often."""
    log = logging.getLogger("application")
    until = time.monotonic() + _RUN
    rounds = 0
    while time.monotonic() < until:
        rounds += 1
        _end(name)
        thread = threading.Thread(target=_end, args=(name,))
        thread.start()
        log.warning("at work")
        if rounds % 50 == 0:
            provider.force_flush(20)
        thread.join()


def _interrupt(handler: Callable[[], None], every: float = _OFTEN) -> None:
    def interrupt(*_: object) -> None:
        # On a slow machine a handler takes longer than it is until the next signal: without an end
        # to their nesting there would be none to the stack.
        if len(nested) < _DEEP:
            nested.append(None)
            handler()
            nested.pop()

    nested: list[None] = []
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, _OFTEN, every)


def in_signal_handler() -> None:
    """A signal handler ends steps while its thread does anything."""
    _interrupt(lambda: _end("signal"))
    _work("main")
    signal.setitimer(signal.ITIMER_REAL, 0)


def first_in_signal_handler() -> None:
    """A signal handler ends the first step of a hook, which starts a thread, while its thread starts threads."""
    for _ in range(40):
        other = StepHookProcessor()
        own = TracerProvider(shutdown_on_exit=False)
        own.add_span_processor(other)
        begun = own.get_tracer("tests").start_span("step", attributes={"step_id": f"first-{next(ended)}"})
        _interrupt(begun.end, every=0)
        while begun.is_recording():
            threading.Thread(target=int).start()
        own.shutdown()


class _Ending:
    """Ends a step when it is collected, which only the garbage collector can do."""

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        _end("finaliser")
        _finalised.append(self.me)


def _generator() -> Iterator[None]:
    span = tracer.start_span("step", attributes={"step_id": f"generator-{next(ended)}"})
    try:
        yield
    finally:
        span.end()
        _finalised.append(span)


def _abandon() -> None:
    _Ending()
    held: list[object] = [generator := _generator()]
    held.append(held)
    next(generator)


def in_finaliser() -> None:
    """The garbage collector ends steps, at any allocation of any thread."""
    gc.set_threshold(3)

    abandoned: list[None] = []

    def produce() -> None:
        until = time.monotonic() + _RUN
        while time.monotonic() < until:
            _abandon()
            abandoned.extend((None, None))
            time.sleep(0.001)  # or nobody else would run

    producer = threading.Thread(target=produce)
    producer.start()
    _work("main")
    producer.join()
    while len(_finalised) < len(abandoned):
        gc.collect()  # in vain while another thread collects


def in_many_threads() -> None:
    """Many threads end steps at once; some of them flush."""

    def work(number: int) -> None:
        for step in range(300):
            _end(f"thread-{number}")
            if step % 100 == number:
                provider.force_flush(100)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class _Handler(logging.Handler):
    """Does on our own thread what nobody should do there."""

    def emit(self, record: logging.LogRecord) -> None:
        if threading.current_thread() is threading.main_thread():
            return
        if record.levelno == logging.WARNING:  # not that a step was dropped: that would be one more
            _end("logged")
        hook.force_flush()
        provider.shutdown()
        sys.exit("not ours to do")


def in_log_handler() -> None:
    """A log handler ends a step, flushes, shuts down, and exits, all on the sender's own thread."""
    _LOG.addHandler(_Handler())
    for _ in range(20):
        _end("main")
    provider.force_flush()
    _end("late")


class _Exporter(SpanExporter):
    """Does on our own thread what nobody should do there."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if spans[0].name != "step":
            hook.force_flush()
            sys.exit("not ours to do")
        return SpanExportResult.SUCCESS


def in_exporter() -> None:
    """An exporter flushes, and exits, on the sender's own thread."""
    provider.add_span_processor(SimpleSpanProcessor(_Exporter()))
    for _ in range(20):
        _end("main")


def main() -> None:
    """Do what the argument says, and count."""
    faulthandler.dump_traceback_later(25, exit=True)
    metrics.set_meter_provider(MeterProvider([reader]))
    logging.getLogger("application").addHandler(logging.StreamHandler(sys.stdout))
    logging.getLogger("application").propagate = False
    globals()[sys.argv[1]]()
    provider.shutdown()
    print("counted ended", next(ended))
    print("counted dropped", _dropped())


if __name__ == "__main__":
    main()
