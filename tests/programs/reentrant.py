"""A program that ends steps in signal handlers, finalisers, log handlers or exporters, as its argument says.

Prints the number of steps that have ended, and the metrics.
"""

import gc
import itertools
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from application import count_metrics, end_step, hook, provider, provider_with, tracer
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from otel_step_hook import StepHookProcessor

_RUN = 1.5  # seconds; long enough for thousands of interruptions
_INTERVAL = 0.0005  # seconds between two signals
_MAX_DEPTH = 20  # signal handlers that may interrupt one another

ended = itertools.count()
_finalised: list[None] = []


def _end(name: str) -> None:
    """End a step. Its number is taken before anything can interrupt the call."""
    end_step(f"{name}-{next(ended)}")


def _end_in_threads(count: int, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _work(also: Callable[[], object] = lambda: None) -> None:
    """End steps, start threads, log, flush and call *also*, as an application does, for `_RUN` seconds."""
    log = logging.getLogger("application")
    log.addHandler(logging.StreamHandler(sys.stdout))
    until = time.monotonic() + _RUN
    for rounds in itertools.count(1):
        _end("main")
        _end_in_threads(1, lambda _: _end("thread"))
        log.warning("at work")
        also()
        if rounds % 50 == 0:
            provider.force_flush(20)
        if time.monotonic() > until:
            break


def _interrupt(handler: Callable[[], None], every: float) -> None:
    def interrupt(*_: object) -> None:
        # On a slow machine the next signal comes before a handler has ended: without a limit, the nested
        # handlers would exhaust the stack.
        if len(nested) < _MAX_DEPTH:
            nested.append(None)
            handler()
            nested.pop()

    nested: list[None] = []
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, _INTERVAL, every)


def in_signal_handler() -> None:
    """A signal handler ends steps at any moment of the main thread's work."""
    _interrupt(lambda: _end("signal"), _INTERVAL)
    _work()
    signal.setitimer(signal.ITIMER_REAL, 0)


def first_in_signal_handler() -> None:
    """A signal handler ends a hook's first step, which starts a thread, while the main thread starts threads."""
    for _ in range(40):
        own = provider_with(StepHookProcessor())
        begun = own.get_tracer("tests").start_span("step", attributes={"step_id": f"first-{next(ended)}"})
        _interrupt(begun.end, every=0)
        while begun.is_recording():
            threading.Thread(target=int).start()
        own.shutdown()


def _generator() -> Iterator[None]:
    span = tracer.start_span("step", attributes={"step_id": f"generator-{next(ended)}"})
    try:
        yield
    finally:
        span.end()
        _finalised.append(None)


def in_finaliser() -> None:
    """The garbage collector ends the steps of abandoned generators, at any allocation of any thread."""
    gc.set_threshold(3)
    abandoned: list[None] = []

    def abandon() -> None:
        cycle: list[object] = [generator := _generator()]
        cycle.append(cycle)
        next(generator)
        abandoned.append(None)

    _work(abandon)
    while len(_finalised) < len(abandoned):
        gc.collect()  # does nothing while another thread collects


def in_many_threads() -> None:
    """Many threads end steps at once; some of them flush."""

    def work(number: int) -> None:
        for step in range(300):
            _end(f"thread-{number}")
            if step % 100 == number:
                provider.force_flush(100)

    _end_in_threads(16, work)


class _Handler(logging.Handler):
    """Misuses the worker thread: ends a step, flushes, shuts down and exits there."""

    def emit(self, record: logging.LogRecord) -> None:
        if threading.current_thread() is threading.main_thread():
            return
        if record.levelno == logging.WARNING:  # not ERROR: ending a step for each dropped step would never end
            _end("logged")
        hook.force_flush()
        provider.shutdown()
        sys.exit("must not end the worker thread")


def in_log_handler() -> None:
    """A log handler ends a step, flushes, shuts down, and exits, all on the worker thread."""
    logging.getLogger("otel_step_hook").addHandler(_Handler())
    for _ in range(20):
        _end("main")
    provider.force_flush()
    _end("late")


class _Exporter(SpanExporter):
    """Misuses the worker thread: flushes and exits there."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if spans[0].name != "step":
            hook.force_flush()
            sys.exit("must not end the worker thread")
        return SpanExportResult.SUCCESS


def in_exporter() -> None:
    """An exporter flushes, and exits, on the worker thread."""
    provider.add_span_processor(SimpleSpanProcessor(_Exporter()))
    for _ in range(20):
        _end("main")


if __name__ == "__main__":
    print_metrics = count_metrics()
    globals()[sys.argv[1]]()
    provider.shutdown()
    print(next(ended))
    print_metrics()
