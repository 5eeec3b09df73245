"""Exits: every step that ended is delivered or logged, within the limit; the exit code is the application's own."""

import signal

import pytest
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from processes import Run, Start, StepReceiver

from otel_step_hook import StepHookProcessor, StepHookSettings

PLAIN = """
end_steps("step", 3)
sys.exit(3)
"""
CUT_OFF = "keep_time_to_record(0.5)" + PLAIN  # half of the shutdown timeout
STEPS = ["step-0", "step-1", "step-2"]
ORDERS = ["added first", "added last", "made first"]  # made before the provider, and added last
PATIENT = {"timeout": 600, "give_up_after": 600}  # seconds: nothing but the shutdown timeout ends the program in time

ORDERED = """
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor
order = sys.argv[1]
provider = TracerProvider()
exporter = ConsoleSpanExporter(formatter=lambda span: f"{span.name}\\n")
exporting = BatchSpanProcessor(exporter), SimpleSpanProcessor(exporter)
hook = hook if order == "made first" else StepHookProcessor()
for processor in (hook, *exporting) if order == "added first" else (*exporting, hook):
    provider.add_span_processor(processor)
end_step("step-0", provider.get_tracer("tests"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_plain_exit_in_any_order(receiver: StepReceiver, run: Run, order: str) -> None:
    """Wherever the hook stands, a process that just ends has delivered, and has exported the delivery's spans."""
    ended = run(ORDERED, order)
    assert (ended.code, ended.err, receiver.steps) == (0, "", ["step-0"])
    assert sorted(ended.out) == sorted(["POST", "step", "step_hook.deliver"] * 2)  # by each kind of exporting processor


@pytest.mark.parametrize("kind", [SimpleSpanProcessor, BatchSpanProcessor])
@pytest.mark.parametrize("end", ["shutdown", "force_flush"])
@pytest.mark.parametrize("order", ORDERS)
def test_shutdown_and_flush_in_any_order(
    receiver: StepReceiver, order: str, end: str, kind: type[SimpleSpanProcessor | BatchSpanProcessor]
) -> None:
    """Wherever the hook stands, what the provider's own calls return to is delivered and exported."""
    settings = StepHookSettings(webhook=receiver.url)
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
    assert (exported, receiver.steps) == (["POST", "step", "step_hook.deliver"], ["step-0"])


def test_healthy(receiver: StepReceiver, run: Run) -> None:
    """A receiver that answers gets everything, and the exit code is the application's."""
    ended = run(PLAIN)
    assert (ended.code, ended.err, receiver.steps) == (3, "", STEPS)


@pytest.mark.slow
def test_slow(receiver: StepReceiver, start: Start) -> None:
    """A receiver that takes its time within the limit gets everything."""
    receiver.gate.clear()
    program = start(PLAIN, shutdown_timeout=600)
    receiver.wait_for(3)
    receiver.gate.set()
    ended = program.ended()
    assert (ended.code, ended.err, receiver.steps) == (3, "", STEPS)


@pytest.mark.slow
def test_hung(receiver: StepReceiver, run: Run) -> None:
    """A receiver that never answers costs the shutdown timeout; the log says what it did not take."""
    receiver.gate.clear()
    ended = run(CUT_OFF, shutdown_timeout=4, **PATIENT)
    assert (ended.code, ended.noise, receiver.steps) == (3, [], STEPS)
    assert ended.err.count("discarded step step-") == 2  # the first, and the last of "2 more like this"
    assert "2 more like this: discarded step" in ended.err


@pytest.mark.slow
def test_refusing(run: Run, closed_port: int) -> None:
    """A receiver that is not there keeps no process longer than the limit."""
    url = f"http://127.0.0.1:{closed_port}/hook"
    ended = run(CUT_OFF, webhook=url, shutdown_timeout=4, **PATIENT)
    assert (ended.code, ended.noise) == (3, [])
    assert "could not be reached: ConnectionRefusedError" in ended.err
    assert "2 more like this: discarded step" in ended.err


@pytest.mark.slow
def test_names_that_hang(run: Run) -> None:
    """A resolver that does not answer costs the shutdown timeout; the log says what could not be sent."""
    url = "http://receiver.test/hook"
    # In the place of a DNS server that swallows questions: there is none to be had on loopback.
    hanging = "import socket; socket.getaddrinfo = lambda *_, **__: threading.Event().wait(); "
    ended = run(hanging + CUT_OFF, webhook=url, shutdown_timeout=4, **PATIENT)
    assert (ended.code, ended.noise) == (3, [])
    # The second: Python 3.12 starts no thread once it exits, so that the sender itself may be caught in the look-up.
    expected = (
        "2 more like this: discarded step",
        "; 3 steps for endpoint default are neither delivered nor discarded",
    )
    assert any(sentence in ended.err for sentence in expected)


@pytest.mark.slow
def test_exception(receiver: StepReceiver, run: Run) -> None:
    """An application that fails has its steps delivered, and fails as it does without us."""
    ended = run("""
        end_steps("step", 3)
        raise LookupError("the application's own")
    """)
    assert (ended.code, receiver.steps) == (1, STEPS)
    assert ended.err.endswith("LookupError: the application's own\n")


@pytest.mark.slow
def test_interrupt(receiver: StepReceiver, run: Run) -> None:
    """Ctrl-C delivers what has ended, and ends the process as it does without us."""
    ended = run("""
        import signal
        end_steps("step", 3)
        signal.raise_signal(signal.SIGINT)
    """)
    assert (ended.code, receiver.steps) == (-signal.SIGINT, STEPS)
    assert ended.err.endswith("KeyboardInterrupt\n")


@pytest.mark.slow
def test_last_thread(receiver: StepReceiver, run: Run) -> None:
    """A step that ends in a thread after the main thread's end is delivered."""
    ended = run("""
        def work():
            threading.main_thread().join()
            end_step("step-2")
        end_steps("step", 2)
        threading.Thread(target=work).start()
    """)
    assert (ended.code, ended.err, receiver.steps) == (0, "", STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_in_exit_handler(receiver: StepReceiver, run: Run, host: str) -> None:
    """Steps of which the first ends while the interpreter exits are delivered, where no thread can be started, too."""
    program = """
        import atexit
        atexit.register(end_steps, "step", 3)
        sys.exit(3)
    """
    ended = run(program, webhook=receiver.url.replace("127.0.0.1", host))
    assert (ended.code, ended.err, receiver.steps) == (3, "", STEPS)


@pytest.mark.slow
def test_flush_in_exit_handler(receiver: StepReceiver, run: Run) -> None:
    """Where no thread can be started, force_flush() does not wait for one; shutdown() does the work."""
    ended = run("""
        import atexit
        atexit.register(provider.force_flush, 3_600_000)  # milliseconds: half of it is longer than this test waits
        atexit.register(end_steps, "step", 3)
        sys.exit(3)
    """)
    assert (ended.code, ended.err, receiver.steps) == (3, "", STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["", "wait_for_test()"], ids=["at once", "in flight"])
def test_hooks_that_were_collected(receiver: StepReceiver, start: Start, moment: str) -> None:
    """What a hook that nobody holds any more has not delivered yet is delivered at an exit right after."""
    receiver.gate.clear()
    program = start(f"""
        import gc
        from opentelemetry.sdk.trace import TracerProvider
        for number in range(3):
            own = TracerProvider(shutdown_on_exit=False)
            own.add_span_processor(StepHookProcessor())
            end_step(f"step-{{number}}", own.get_tracer("tests"))
            del own
            gc.collect()
        {moment}
        gc.collect()
        sys.exit(3)
    """)
    if moment:
        receiver.wait_for(3)
        program.go_on()
    receiver.gate.set()
    ended = program.ended()
    assert (ended.code, ended.err, receiver.steps) == (3, "", STEPS)


@pytest.mark.slow
def test_a_hook_that_was_collected_without_a_thread(receiver: StepReceiver, run: Run) -> None:
    """Where no thread could be started for its steps, they are delivered at the exit."""
    ended = run("""
        import gc
        from opentelemetry.sdk.trace import TracerProvider
        own = TracerProvider(shutdown_on_exit=False)
        own.add_span_processor(StepHookProcessor())
        threading.stack_size(1 << 46)  # bytes: more than there are
        tracer = own.get_tracer("tests")
        for number in range(3):
            end_step(f"step-{number}", tracer)
        del own, tracer
        gc.collect()
        sys.exit(3)
    """)
    assert (ended.code, ended.err, receiver.steps) == (3, "", STEPS)


@pytest.mark.slow
def test_in_earlier_exit_handler(receiver: StepReceiver, run: Run) -> None:
    """An exit handler that the application registers once it has its hook runs before the hook's own."""
    ended = run("""
        import atexit
        atexit.register(end_step, "step-2")
        end_steps("step", 2)
        sys.exit(3)
    """)
    assert (ended.code, ended.err, receiver.steps) == (3, "", STEPS)


@pytest.mark.slow
def test_after_shutdown(receiver: StepReceiver, run: Run) -> None:
    """Steps that end after shutdown() are dropped, counted, and logged once, however many they are."""
    ended = run("""
        import atexit
        end_step("step-0")
        provider.shutdown()
        most = 0
        for number in range(200):
            end_step(f"late-{number}")
            most = max(most, threading.active_count())
        atexit.register(end_step, "last")
        print(most)
    """)
    assert (ended.code, ended.noise, receiver.steps) == (0, [], ["step-0"])
    first, rest = ended.err.splitlines()
    assert first == "dropped a step (shutdown, endpoint default): the step ended after shutdown()"
    assert rest == f"200 more like this: {first}"
    (threads,) = ended.out
    assert int(threads) <= 3  # the main thread, the sender, and the one that starts it


SHUTTING_DOWN = """
end_steps("step", 20)
threads = [threading.Thread(target=provider.shutdown) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for _ in range(100):
    hook.shutdown()
"""


@pytest.mark.slow
def test_many_shutdowns(receiver: StepReceiver, run: Run) -> None:
    """Shutting down in several threads, and again, delivers once."""
    ended = run(SHUTTING_DOWN)
    assert (ended.code, ended.err, receiver.steps) == (0, "", sorted(f"step-{number}" for number in range(20)))


@pytest.mark.slow
def test_shutdowns_share_their_limit(receiver: StepReceiver, run: Run) -> None:
    """However often an application shuts down, a receiver that hangs costs the limit once."""
    receiver.gate.clear()
    ended = run(SHUTTING_DOWN, shutdown_timeout=1, **PATIENT)  # a hundred times would be too long
    assert (ended.code, ended.noise) == (0, [])


def test_shutdown_in_signal_handler(receiver: StepReceiver, start: Start) -> None:
    """A signal handler may shut down while its thread ends steps."""
    program = start(
        """
        import signal
        stopped = threading.Event()  # Python ignores what a handler raises while a generator is closed
        def stop(*_):
            provider.shutdown()
            stopped.set()
            sys.exit(3)
        signal.signal(signal.SIGTERM, stop)
        end_steps("step", 3)
        while not stopped.is_set():
            end_step("many")
        sys.exit(3)
        """,
        max_queue_size=100,
    )
    receiver.wait_for(20)
    program.send_signal(signal.SIGTERM)
    ended = program.ended()
    assert (ended.code, ended.noise) == (3, [])
    assert receiver.steps[-3:] == STEPS


@pytest.mark.slow
def test_at_any_moment(receiver: StepReceiver, run: Run) -> None:
    """Wherever the thread is when the interpreter exits, it neither crashes nor loses a step."""
    ended = run("""
        def in_child():
            end_steps(f"step-{number}", 5)
            compute(number * 0.0003)  # seconds; the first deliveries take about 10 ms
        for number in range(30):
            fork(in_child)
    """)
    assert (ended.code, ended.out, ended.noise) == (0, ["3"] * 30, [])
    assert receiver.steps == sorted(f"step-{number}-{step}" for number in range(30) for step in range(5))
