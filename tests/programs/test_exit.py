"""Process exits: each step is delivered or logged within the shutdown timeout, and the exit code is unchanged."""

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
ORDERS = ["added first", "added last", "made first"]  # constructed before the provider, added last
LONG = {"timeout": 600, "give_up_after": 600}  # seconds: only the shutdown timeout ends the program in time

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
def test_exit_with_processors_in_any_order(receiver: StepReceiver, run: Run, order: str) -> None:
    """A process without an explicit shutdown delivers its step and exports the delivery spans, in any order."""
    ended = run(ORDERED, order)
    assert (ended.code, ended.err, receiver.steps) == (0, "", ["step-0"])
    assert sorted(ended.out) == sorted(["POST", "step", "step_hook.deliver"] * 2)  # by both exporting processors


@pytest.mark.parametrize("kind", [SimpleSpanProcessor, BatchSpanProcessor])
@pytest.mark.parametrize("end", ["shutdown", "force_flush"])
@pytest.mark.parametrize("order", ORDERS)
def test_shutdown_and_flush_with_processors_in_any_order(
    receiver: StepReceiver, order: str, end: str, kind: type[SimpleSpanProcessor | BatchSpanProcessor]
) -> None:
    """When the provider's `shutdown` or `force_flush` returns, the step is delivered and its spans are exported."""
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


def test_a_healthy_receiver(receiver: StepReceiver, run: Run) -> None:
    """A receiver that answers gets all steps, and the exit code is the application's."""
    ended = run(PLAIN)
    assert (ended.code, ended.err, receiver.steps) == (3, "", STEPS)


@pytest.mark.slow
def test_a_slow_receiver(receiver: StepReceiver, start: Start) -> None:
    """A receiver that is slow, but answers within the shutdown timeout, gets all steps."""
    receiver.gate.clear()
    program = start(PLAIN, shutdown_timeout=600)
    receiver.wait_for(3)
    receiver.gate.set()
    ended = program.ended()
    assert (ended.code, ended.err, receiver.steps) == (3, "", STEPS)


@pytest.mark.slow
def test_a_receiver_that_hangs(receiver: StepReceiver, run: Run) -> None:
    """A receiver that never answers delays the exit by the shutdown timeout; the discarded steps are logged."""
    receiver.gate.clear()
    ended = run(CUT_OFF, shutdown_timeout=4, **LONG)
    assert (ended.code, ended.noise, receiver.steps) == (3, [], STEPS)
    assert ended.err.count("discarded step step-") == 2  # the first line, and the one that counts the repetitions
    assert "2 more like this: discarded step" in ended.err


@pytest.mark.slow
def test_a_closed_port(run: Run, closed_port: int) -> None:
    """Refused connections delay the exit by no more than the shutdown timeout."""
    url = f"http://127.0.0.1:{closed_port}/hook"
    ended = run(CUT_OFF, webhook=url, shutdown_timeout=4, **LONG)
    assert (ended.code, ended.noise) == (3, [])
    assert "refuses connections: nothing listens there" in ended.err
    assert "2 more like this: discarded step" in ended.err


@pytest.mark.slow
def test_a_name_look_up_that_hangs(run: Run) -> None:
    """A resolver that never answers delays the exit by the shutdown timeout; the lost steps are logged."""
    url = "http://receiver.test/hook"
    # In the place of a DNS server that swallows questions: there is none to be had on loopback.
    hanging = "import socket; socket.getaddrinfo = lambda *_, **__: threading.Event().wait(); "
    ended = run(hanging + CUT_OFF, webhook=url, shutdown_timeout=4, **LONG)
    assert (ended.code, ended.noise) == (3, [])
    # The second, because Python 3.12 starts no thread during its exit (python/cpython#113964): then the worker
    # thread itself may be blocked by the look-up.
    expected = (
        "2 more like this: discarded step",
        "; 3 steps for endpoint default are neither delivered nor discarded",
    )
    assert any(sentence in ended.err for sentence in expected)


@pytest.mark.slow
def test_an_unhandled_exception(receiver: StepReceiver, run: Run) -> None:
    """After an unhandled exception the steps are delivered; traceback and exit code are as without the hook."""
    ended = run("""
        end_steps("step", 3)
        raise LookupError("the application's own")
    """)
    assert (ended.code, receiver.steps) == (1, STEPS)
    assert ended.err.endswith("LookupError: the application's own\n")


@pytest.mark.slow
def test_ctrl_c(receiver: StepReceiver, run: Run) -> None:
    """After Ctrl-C the steps are delivered; traceback and exit code are as without the hook."""
    ended = run("""
        import signal
        end_steps("step", 3)
        signal.raise_signal(signal.SIGINT)
    """)
    assert (ended.code, receiver.steps) == (-signal.SIGINT, STEPS)
    assert ended.err.endswith("KeyboardInterrupt\n")


@pytest.mark.slow
def test_a_step_after_the_main_thread(receiver: StepReceiver, run: Run) -> None:
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
def test_the_first_step_ends_in_an_exit_handler(receiver: StepReceiver, run: Run, host: str) -> None:
    """Steps that end in an exit handler are delivered, even if Python starts no thread any more."""
    program = """
        import atexit
        atexit.register(end_steps, "step", 3)
        sys.exit(3)
    """
    ended = run(program, webhook=receiver.url.replace("127.0.0.1", host))
    assert (ended.code, ended.err, receiver.steps) == (3, "", STEPS)


@pytest.mark.slow
def test_flush_in_an_exit_handler(receiver: StepReceiver, run: Run) -> None:
    """If no thread can be started, force_flush() returns at once, and shutdown() delivers."""
    ended = run("""
        import atexit
        atexit.register(provider.force_flush, 3_600_000)  # milliseconds: half of it is longer than this test waits
        atexit.register(end_steps, "step", 3)
        sys.exit(3)
    """)
    assert (ended.code, ended.err, receiver.steps) == (3, "", STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["", "wait_for_test()"], ids=["at once", "in flight"])
def test_hooks_that_were_garbage_collected(receiver: StepReceiver, start: Start, moment: str) -> None:
    """Steps of hooks that were garbage collected before they had delivered are delivered at exit."""
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
def test_a_garbage_collected_hook_without_a_thread(receiver: StepReceiver, run: Run) -> None:
    """Steps of a garbage collected hook that could not start its thread are delivered at exit."""
    ended = run("""
        import gc
        from opentelemetry.sdk.trace import TracerProvider
        own = TracerProvider(shutdown_on_exit=False)
        own.add_span_processor(StepHookProcessor())
        threading.stack_size(1 << 46)  # bytes; so much memory that no thread can start
        tracer = own.get_tracer("tests")
        for number in range(3):
            end_step(f"step-{number}", tracer)
        del own, tracer
        gc.collect()
        sys.exit(3)
    """)
    assert (ended.code, ended.err, receiver.steps) == (3, "", STEPS)


@pytest.mark.slow
def test_a_step_in_an_exit_handler_of_the_application(receiver: StepReceiver, run: Run) -> None:
    """An exit handler that is registered after the hook was made runs before the hook's; its step is delivered."""
    ended = run("""
        import atexit
        atexit.register(end_step, "step-2")
        end_steps("step", 2)
        sys.exit(3)
    """)
    assert (ended.code, ended.err, receiver.steps) == (3, "", STEPS)


@pytest.mark.slow
def test_steps_after_shutdown(receiver: StepReceiver, run: Run) -> None:
    """Any number of steps after shutdown() are dropped and counted, and logged in two lines."""
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
    assert int(threads) <= 3  # the main thread, the worker thread, and the thread that starts it


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
    """Repeated shutdowns, from several threads, deliver each step once."""
    ended = run(SHUTTING_DOWN)
    assert (ended.code, ended.err, receiver.steps) == (0, "", sorted(f"step-{number}" for number in range(20)))


@pytest.mark.slow
def test_shutdowns_share_their_timeout(receiver: StepReceiver, run: Run) -> None:
    """With a receiver that hangs, any number of shutdowns take the shutdown timeout once."""
    receiver.gate.clear()
    ended = run(SHUTTING_DOWN, shutdown_timeout=1, **LONG)  # a hundred timeouts would exceed the limit of the test
    assert (ended.code, ended.noise) == (0, [])


def test_shutdown_in_a_signal_handler(receiver: StepReceiver, start: Start) -> None:
    """A signal handler may shut down while its thread ends steps."""
    program = start(
        """
        import signal
        stopped = threading.Event()  # Python ignores exceptions of a handler that runs while a generator is closed
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
def test_exit_at_any_moment_of_the_worker(receiver: StepReceiver, run: Run) -> None:
    """At whatever point of its work the exit meets the worker thread, no step is lost and nothing crashes."""
    ended = run("""
        def in_child():
            end_steps(f"step-{number}", 5)
            compute(number * 0.0003)  # seconds; the first deliveries take about 10 ms
        for number in range(30):
            fork(in_child)
    """)
    assert (ended.code, ended.out, ended.noise) == (0, ["3"] * 30, [])
    assert receiver.steps == sorted(f"step-{number}-{step}" for number in range(30) for step in range(5))
