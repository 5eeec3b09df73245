"""Forks: the child has its own queue, thread and connections; the parent delivers what it had queued."""

import pytest
from processes import Run, Start, StepReceiver


@pytest.mark.slow
def test_fork_before_the_first_step(receiver: StepReceiver, run: Run) -> None:
    """The child of a process that has sent nothing yet delivers its steps when it exits."""
    ended = run("fork()")
    assert (ended.code, ended.out, ended.noise) == (0, ["3"], [])
    assert receiver.steps == ["child-0", "child-1"]


@pytest.mark.slow
def test_fork_at_any_moment_of_the_worker(receiver: StepReceiver, run: Run) -> None:
    """At whatever point of its work a fork meets the worker thread, no step is lost or sent twice."""
    ended = run("""
        for number in range(16):
            own = provider_with(StepHookProcessor())
            tracer = own.get_tracer("tests")
            end_step(f"parent-{number}", tracer)
            compute(number * 0.0006)  # seconds; the delivery takes about 10 ms
            fork(lambda: end_step(f"child-{number}", tracer))
            own.shutdown()
    """)
    assert (ended.code, ended.out, ended.noise) == (0, ["3"] * 16, [])
    assert receiver.steps == sorted(f"{who}-{number}" for who in ("parent", "child") for number in range(16))
    assert receiver.connections_of("parent").isdisjoint(receiver.connections_of("child"))


@pytest.mark.slow
def test_fork_while_event_loops_begin_and_end(receiver: StepReceiver, run: Run) -> None:
    """A child forked while an event loop begins or ends flushes and shuts down at once; only the parent delivers."""
    ended = run("""
        from otel_step_hook.delivery import dispatch
        dispatch.IDLE = 0.0  # seconds: a loop ends as soon as it is idle
        sys.setswitchinterval(1e-6)  # seconds
        def in_child():
            is_flushed = hook.force_flush(0)
            provider.shutdown()
            os._exit(3 if is_flushed else 4)
        for number in range(40):
            end_step(f"parent-{number}")
            compute(number * 0.0003)  # seconds; the delivery takes about 10 ms
            fork(in_child)
    """)
    assert (ended.code, ended.out, ended.noise) == (0, ["3"] * 40, [])
    assert receiver.steps == sorted(f"parent-{number}" for number in range(40))


@pytest.mark.slow
def test_the_worker_imports_nothing(receiver: StepReceiver, run: Run) -> None:
    """The worker thread imports no module and makes no TLS context: a fork in between would leave it half done."""
    ended = run("""
        import ssl
        known, made = set(sys.modules), []
        def record(frame, event, _):
            if frame.f_code is ssl.SSLContext.__new__.__code__:
                made.append("a TLS context")
        threading.setprofile(record)
        end_step("parent-0")
        provider.shutdown()
        print(sorted({*sys.modules} - known) + made)
    """)
    assert (ended.code, ended.out, ended.noise) == (0, ["[]"], [])
    assert receiver.steps == ["parent-0"]


def test_fork_after_a_delivery(receiver: StepReceiver, run: Run) -> None:
    """The child opens its own connections; the parent's connection still works after the child has ended."""
    ended = run("""
        deliver("parent-0")
        fork()
        end_step("parent-1")
    """)
    assert (ended.code, ended.out, ended.noise) == (0, ["3"], [])
    assert receiver.steps == ["child-0", "child-1", "parent-0", "parent-1"]
    assert len(receiver.connections_of("parent")) == 1
    assert receiver.connections_of("parent").isdisjoint(receiver.connections_of("child"))


@pytest.mark.slow
def test_fork_with_deliveries_in_flight(receiver: StepReceiver, start: Start) -> None:
    """Deliveries in flight or queued at the fork are sent once, by the parent, over its own connections."""
    receiver.gate.clear()
    program = start(
        """
        end_steps("parent", 12)
        wait_for_test()
        fork()
        """,
        concurrency=4,
    )
    receiver.wait_for(4)
    program.go_on()
    receiver.wait_for(6)
    receiver.gate.set()
    ended = program.ended()
    assert (ended.code, ended.out, ended.noise) == (0, ["3"], [])
    assert receiver.steps == sorted([f"parent-{number}" for number in range(12)] + ["child-0", "child-1"])
    assert receiver.connections_of("parent").isdisjoint(receiver.connections_of("child"))


@pytest.mark.slow
def test_a_loop_that_is_collected_in_the_child(run: Run) -> None:
    """The parent's event loop works after its copy in the child, which shares its epoll, was garbage collected."""
    ended = run("""
        import asyncio, gc
        from otel_step_hook.delivery.loop import EventLoop
        loop = EventLoop()
        loop.run_until_complete(asyncio.sleep(0))
        def in_child():
            globals().pop("loop")
            gc.collect()
        fork(in_child)
        # A thread resolves the name and then has to wake the loop.
        print(loop.run_until_complete(loop.getaddrinfo("127.0.0.1", 80))[0][4][0])
        loop.close()
    """)
    assert (ended.code, ended.out) == (0, ["3", "127.0.0.1"])


@pytest.mark.slow
def test_grandchildren(receiver: StepReceiver, run: Run) -> None:
    """Each of three generations delivers its own steps over its own connections."""
    ended = run("""
        def in_child():
            deliver("child-0")
            fork(lambda: end_step("grandchild-0"))
            end_step("child-1")
        deliver("parent-0")
        fork(in_child)
        end_step("parent-1")
    """)
    assert (ended.code, ended.out, ended.noise) == (0, ["3", "3"], [])
    assert receiver.steps == ["child-0", "child-1", "grandchild-0", "parent-0", "parent-1"]
    used = [receiver.connections_of(name) for name in ("parent", "child", "grandchild")]
    assert len(set.union(*used)) == 3


@pytest.mark.slow
def test_fork_from_a_thread(receiver: StepReceiver, run: Run) -> None:
    """A child of another thread than the main thread, in which only that thread exists, delivers."""
    ended = run("""
        def in_child():
            deliver("child-0")
            os._exit(3)
        deliver("parent-0")
        thread = threading.Thread(target=fork, args=(in_child,))
        thread.start()
        thread.join()
        end_step("parent-1")
    """)
    assert (ended.code, ended.out, ended.noise) == (0, ["3"], [])
    assert receiver.steps == ["child-0", "parent-0", "parent-1"]


@pytest.mark.slow
def test_a_child_that_ends_with_os_exit(receiver: StepReceiver, start: Start) -> None:
    """`os._exit` in a child loses the deliveries that are queued there, and no others."""
    program = start(
        """
        def in_child():
            deliver("child-delivered")
            print("delivered", flush=True)
            wait_for_test()
            end_steps("child-lost", 12)
            wait_for_test()
            os._exit(5)
        deliver("parent-0")
        fork(in_child)
        end_step("parent-1")
        """,
        concurrency=3,
    )
    assert program.read_line() == "delivered"
    receiver.gate.clear()
    program.go_on()
    receiver.wait_for(5)
    program.go_on()
    assert program.read_line() == "5"
    receiver.gate.set()
    ended = program.ended()
    assert (ended.code, ended.noise) == (0, [])
    lost = [step for step in receiver.steps if step.startswith("child-lost")]
    assert len(lost) == 3
    assert [step for step in receiver.steps if step not in lost] == ["child-delivered", "parent-0", "parent-1"]


@pytest.mark.slow
def test_a_step_between_fork_and_exec(receiver: StepReceiver, run: Run) -> None:
    """A `preexec_fn` that ends a step does not disturb the deliveries of the parent."""
    ended = run("""
        import subprocess
        deliver("parent-0")
        subprocess.run([sys.executable, "-c", "pass"], check=True, preexec_fn=lambda: end_step("child-0"))
        end_step("parent-1")
    """)
    assert (ended.code, ended.noise) == (0, [])
    assert [step for step in receiver.steps if step != "child-0"] == ["parent-0", "parent-1"]
    assert len(receiver.connections_of("parent")) == 1


MULTIPROCESSING = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
method, kind = sys.argv[1:]
multiprocessing.set_start_method(method)
deliver("parent-0")
if kind == "pool":
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(end_step, ["child-0", "child-1"]))
else:
    children = [multiprocessing.Process(target=end_step, args=(f"child-{number}",)) for number in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
end_step("parent-1")
"""


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["process", pytest.param("pool", marks=pytest.mark.slow)])
def test_multiprocessing(receiver: StepReceiver, run: Run, method: str, kind: str) -> None:
    """Children of multiprocessing deliver when they end; some do not run atexit handlers (python/cpython#83856)."""
    ended = run(MULTIPROCESSING, method, kind)
    assert (ended.code, ended.noise) == (0, [])
    assert receiver.steps == ["child-0", "child-1", "parent-0", "parent-1"]
    assert receiver.connections_of("parent").isdisjoint(receiver.connections_of("child"))
