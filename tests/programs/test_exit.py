"""Exits: every step that ended is delivered or told of, within the limit; the exit code is the application's own."""

import signal
import socket
import threading
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from processes import Ledger, Program, run

from otel_step_hook import StepHookProcessor, StepHookSettings
from otel_step_hook.testing import HostileReceiver, read_request

START = 20.0  # seconds that starting Python and ending it may take beside the shutdown timeout, on a busy machine
STEPS = ["step-0", "step-1", "step-2"]
ORDERS = ["added first", "added last", "made first"]  # made before the provider, and added last


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """A receiver that is running."""
    with Ledger() as ledger:
        yield ledger


@pytest.mark.parametrize("kind", ["simple", "batch"])
def test_plain_exit_in_any_order(ledger: Ledger, kind: str) -> None:
    """Wherever the hook stands, a process that just ends has delivered, and has exported the delivery's spans."""
    programs = [Program("orders", order, kind, url=ledger.url) for order in ORDERS]
    for order, program in zip(ORDERS, programs, strict=True):
        with program:
            ended = program.ended()
        assert (ended.code, ended.noise, order) == (0, [], order)
        assert sorted(ended.out) == ["POST", "step", "step_hook.deliver"], order
    assert ledger.steps == ["step-0"] * 3


@pytest.mark.parametrize("kind", [SimpleSpanProcessor, BatchSpanProcessor])
@pytest.mark.parametrize("end", ["shutdown", "force_flush"])
@pytest.mark.parametrize("order", ORDERS)
def test_shutdown_and_flush_in_any_order(
    ledger: Ledger, order: str, end: str, kind: type[SimpleSpanProcessor | BatchSpanProcessor]
) -> None:
    """Wherever the hook stands, what the provider's own calls return to is delivered and exported."""
    settings = StepHookSettings(webhook=ledger.url)
    hook = StepHookProcessor(settings) if order == "made first" else None
    provider = TracerProvider(shutdown_on_exit=False)
    exporter = InMemorySpanExporter()
    processors: list[SpanProcessor] = [kind(exporter), hook or StepHookProcessor(settings)]
    for processor in reversed(processors) if order == "added first" else processors:
        provider.add_span_processor(processor)
    provider.get_tracer("tests").start_span("step", attributes={"step_id": "step-0"}).end()
    try:
        getattr(provider, end)()
        exported = sorted(span.name for span in exporter.get_finished_spans())
    finally:
        provider.shutdown()
    assert (exported, ledger.steps) == (["POST", "step", "step_hook.deliver"], ["step-0"])


def test_healthy(ledger: Ledger) -> None:
    """A receiver that answers gets everything, and the exit code is the application's."""
    ended = run("exits", "plainly", url=ledger.url)
    assert (ended.code, ended.err, ledger.steps) == (3, "", STEPS)


def test_slow() -> None:
    """A receiver that takes its time within the limit gets everything."""
    arrived = []

    def behave(connection: socket.socket, closing: threading.Event) -> None:
        arrived.append(read_request(connection))
        closing.wait(0.5)  # the time it takes
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with HostileReceiver(behave) as receiver:
        ended = run("exits", "plainly", url=receiver.url, shutdown_timeout=5)
    assert (ended.code, ended.err, len(arrived)) == (3, "", 3)


def test_hung(ledger: Ledger) -> None:
    """A receiver that never answers costs the shutdown timeout, once; what it did not take is told of."""
    ledger.gate.clear()
    ended = run("exits", "plainly", url=ledger.url, shutdown_timeout=1)
    assert (ended.code, ended.noise, ledger.steps) == (3, [], STEPS)
    assert ended.err.count("discarded step step-") == 2  # the first, and the last of "2 more like this"
    assert "2 more like this: discarded step" in ended.err
    assert 1 < ended.seconds < 1 + START


def test_refusing() -> None:
    """A receiver that is not there keeps nobody waiting longer than the limit."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    ended = run("exits", "plainly", url=f"http://127.0.0.1:{port}/hook", shutdown_timeout=1)
    assert (ended.code, ended.noise) == (3, [])
    assert "could not be reached: ConnectionRefusedError" in ended.err
    assert "2 more like this: discarded step" in ended.err
    assert ended.seconds < 1 + START


def test_names_that_hang() -> None:
    """A resolver that does not answer costs the shutdown timeout; what could not be sent is told of."""
    ended = run("exits", "with_names_that_hang", url="http://receiver.test/hook", shutdown_timeout=1)
    assert (ended.code, ended.noise) == (3, [])
    # The second: Python 3.12 starts no thread once it exits, so that the sender itself may be caught in the look-up.
    told = ("2 more like this: discarded step", "shutdown took its 1 s; 3 steps have no last word")
    assert any(sentence in ended.err for sentence in told)
    assert 1 < ended.seconds < 1 + START


def test_exception(ledger: Ledger) -> None:
    """An application that fails has its steps delivered, and fails as it does without us."""
    ended = run("exits", "by_exception", url=ledger.url)
    assert (ended.code, ledger.steps) == (1, STEPS)
    assert ended.err.endswith("LookupError: the application's own\n")


def test_interrupt(ledger: Ledger) -> None:
    """Ctrl-C delivers what has ended, and ends the process as it does without us."""
    with Program("exits", "by_interrupt", url=ledger.url) as program:
        assert program.says() == "ready"
        program.process.send_signal(signal.SIGINT)
        ended = program.ended()
    assert (ended.code, ledger.steps) == (-signal.SIGINT, STEPS)
    assert ended.err.endswith("KeyboardInterrupt\n")


def test_last_thread(ledger: Ledger) -> None:
    """A step that ends in a thread after the main thread's end is delivered."""
    ended = run("exits", "by_thread", url=ledger.url)
    assert (ended.code, ended.err, ledger.steps) == (0, "", STEPS)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_in_exit_handler(ledger: Ledger, host: str) -> None:
    """Steps of which the first ends while the interpreter exits are delivered, where no thread can be started, too."""
    ended = run("exits", "in_exit_handler", url=ledger.url.replace("127.0.0.1", host))
    assert (ended.code, ended.err, ledger.steps) == (3, "", STEPS)


def test_in_earlier_exit_handler(ledger: Ledger) -> None:
    """Whatever the application registers once it has its hook runs before the hook's own."""
    ended = run("exits", "in_earlier_exit_handler", url=ledger.url)
    assert (ended.code, ended.err, ledger.steps) == (3, "", STEPS)


def test_flush_in_exit_handler(ledger: Ledger) -> None:
    """Where no thread can be started, force_flush() does not wait for one; shutdown() does the work."""
    ended = run("exits", "flushed_in_exit_handler", url=ledger.url)
    assert (ended.code, ended.err, ended.out) == (3, "", ["at once"])
    assert ledger.steps == STEPS


def test_after_shutdown(ledger: Ledger) -> None:
    """Steps that end after shutdown() are dropped, counted, and told of once, however many they are."""
    ended = run("exits", "after_shutdown", url=ledger.url)
    assert (ended.code, ended.noise, ledger.steps) == (0, [], ["step-0"])
    first, rest = ended.err.splitlines()
    assert first == "dropped a step (shutdown): the step ended after shutdown()"
    assert rest == f"200 more like this: {first}"
    assert int(ended.out[0].rpartition(" ")[2]) <= 3  # the main thread, the sender, and the one that starts it


def test_many_shutdowns(ledger: Ledger) -> None:
    """Shutting down in several threads delivers once; shutting down again returns at once."""
    ended = run("exits", "by_many_shutdowns", url=ledger.url)
    assert (ended.code, ended.err, ended.out) == (0, "", ["at once"])
    assert ledger.steps == sorted(f"step-{number}" for number in range(20))


def test_shutdowns_share_their_limit(ledger: Ledger) -> None:
    """However many exit handlers shut down one after the other, a receiver that hangs costs the limit once."""
    ledger.gate.clear()
    ended = run("exits", "by_many_shutdowns", url=ledger.url, shutdown_timeout=1)
    assert (ended.code, ended.noise, ended.out) == (0, [], ["at once"])
    assert ended.seconds < 1 + START


def test_shutdown_in_signal_handler(ledger: Ledger) -> None:
    """A signal handler may shut down while its thread ends steps."""
    with Program("exits", "by_signal_handler", url=ledger.url) as program:
        assert program.says() == "ready"
        ledger.wait_for(20)
        program.process.send_signal(signal.SIGTERM)
        ended = program.ended()
    assert (ended.code, ended.noise) == (3, [])
    assert ledger.steps[-3:] == STEPS


def test_at_any_moment(ledger: Ledger) -> None:
    """Wherever the thread is when the interpreter exits, it neither crashes nor loses a step."""
    ended = run("exits", "at_any_moment", url=ledger.url)
    assert (ended.code, ended.out, ended.noise) == (0, ["7"] * 30, [])
    assert ledger.steps == sorted(f"step-{number}-{step}" for number in range(30) for step in range(5))
