"""Processes that hand webhooks over to Temporal and end at once: their exit code is their own, and nothing is lost."""

import asyncio
import uuid
from concurrent.futures import ThreadPoolExecutor

import processes
import pytest
from processes import Ended, Program, Run, Start, python_program
from sending import silent
from servers.running import until
from servers.temporal import TemporalServer
from servers.temporal_workers import Server
from temporalio.client import Client

from otel_step_hook.testing import HostileReceiver

pytest_plugins = ["servers.temporal_fixtures"]
LIMIT = 300.0  # seconds of a program; the end of a whole interpreter takes one on a busy machine
pytestmark = [pytest.mark.servers, pytest.mark.timeout(LIMIT + 60)]

FRESH = 10  # interpreters for each way to end, and each server
CHILDREN = 80  # forked, for each way to end
AT_A_TIME = 4
ENDS = {"sys.exit": ("sys.exit(7)", 7), "the end": ("", 0), "an exception": ("raise LookupError('its own')", 1)}
_MANY_CORES = "16"  # threads of a runtime of Temporal's SDK: it has one for each core


@pytest.fixture
def queue() -> str:
    """A task queue that no worker polls."""
    return f"queue-{uuid.uuid4()}"


@pytest.fixture
def start(queue: str, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Start a program that hands its webhooks over to the server at an address."""
    monkeypatch.setattr(processes, "LIMIT", LIMIT)

    def start(address: str, program: str, *args: str, **settings: object) -> Program:
        monkeypatch.setenv("TEMPORAL_ADDRESS", address)
        here = {"engine": "temporal", "webhook": "http://127.0.0.1:9/hook", "task_queue": queue}
        return python_program(program, *args, **(here | settings))

    return start


@pytest.fixture
def run(start: Start) -> Run:
    """Start a program, and wait until it has ended."""
    return lambda address, program, *args, **settings: start(address, program, *args, **settings).ended()


async def _count(server: Server, queue: str) -> int:
    client, query = await Client.connect(server.address), f"TaskQueue = '{queue}'"
    if isinstance(server, TemporalServer):
        return (await client.count_activities(query)).count
    return (await client.count_workflows(query)).count


def _wait_for(server: Server, queue: str, count: int) -> None:
    """Wait until the server shows *count* deliveries; it does so some time after it has accepted them."""
    until(f"{count} deliveries are handed over", lambda: asyncio.run(_count(server, queue)) >= count)
    assert asyncio.run(_count(server, queue)) == count


def _without_own_traceback(ended: Ended) -> str:
    """What is on stderr, but for the traceback of the exception in `ENDS`."""
    before, traceback, own = ended.err.partition("Traceback (most recent call last):\n")
    assert not traceback or own.endswith("LookupError: its own\n")
    return before


@pytest.mark.parametrize("end", ENDS)
def test_fresh_processes_keep_their_exit_codes(temporal_server: Server, run: Run, queue: str, end: str) -> None:
    """Each of many processes ends as it asked to, and writes nothing of ours to stderr."""
    statement, code = ENDS[end]
    program = f"end_step(sys.argv[1])\n{statement}"
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda number: run(temporal_server.address, program, f"step-{number}"), range(FRESH)))
    assert [one.code for one in ended] == [code] * FRESH
    assert [_without_own_traceback(one) for one in ended] == [""] * FRESH
    _wait_for(temporal_server, queue, FRESH)


FORKING = """
import collections
running, codes = set(), collections.Counter()
count, at_a_time = map(int, sys.argv[1:3])
def wait():
    pid, status = os.wait()
    running.remove(pid)
    codes[os.waitstatus_to_exitcode(status)] += 1
for number in range(count):
    while len(running) >= at_a_time:
        wait()
    pid = os.fork()
    if pid == 0:
        break
    running.add(pid)
else:
    while running:
        wait()
    print(dict(codes), flush=True)
    os._exit(0)
end_step(f"child-{number}")
"""


@pytest.mark.parametrize("end", ENDS)
def test_forked_children_keep_their_exit_codes(newer_temporal: Server, run: Run, queue: str, end: str) -> None:
    """Children of a process that has handed nothing over each have a runtime, and end as interpreters do."""
    statement, code = ENDS[end]
    ended = run(newer_temporal.address, f"{FORKING}{statement}", str(CHILDREN), str(AT_A_TIME))
    assert (ended.code, ended.out) == (0, [str({code: CHILDREN})])
    assert "otel" not in ended.err
    # Of the exception; two children that end at the same time write into each other's lines.
    assert not [line for line in ended.noise if "Traceback (most recent call last):" not in line]
    _wait_for(newer_temporal, queue, CHILDREN)


FORKING_AFTER_USE = """
deliver("parent-first")
for number in range(int(sys.argv[2])):
    end_step(f"parent-{number}")
    if sys.argv[1] == "idle":
        provider.force_flush()
    else:
        compute(number % 20 * 0.001)  # seconds; a handover takes some 10 ms
    fork(lambda: end_step(f"child-{number}"))
"""
FORKS = 24


@pytest.mark.parametrize("moment", ["idle", "in flight"])
def test_children_of_a_process_that_has_used_temporal(
    newer_temporal: Server, run: Run, queue: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They discard their steps, and say so: a second runtime of Temporal's SDK would crash them."""
    monkeypatch.setenv("TOKIO_WORKER_THREADS", _MANY_CORES)
    ended = run(newer_temporal.address, FORKING_AFTER_USE, moment, str(FORKS))
    assert (ended.code, ended.out, ended.noise) == (0, ["3"] * FORKS, [])
    steps = [f"discarded step child-{number}: ForkedError " for number in range(FORKS)]
    assert [step for step in steps if step not in ended.err] == []
    _wait_for(newer_temporal, queue, FORKS + 1)


def test_with_an_outbox_another_process_hands_over_what_a_child_cannot(
    newer_temporal: Server, start: Start, queue: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The steps of a child whose parent has used Temporal wait in the outbox, from where the parent takes them."""
    program = start(
        newer_temporal.address,
        """
        def in_child():
            has_logged = print_log()
            end_steps("child", 2)
            has_logged.wait()
        end_step("parent-0")
        wait_for_test()
        fork(in_child)
        end_step("parent-1")
        wait_for_test()
        """,
        outbox=tmp_path_factory.mktemp("outbox") / "steps.db",
    )
    _wait_for(newer_temporal, queue, 1)
    program.go_on()
    assert program.read_line().startswith("this process was forked from one that had used Temporal")
    assert program.read_line() == "3"
    _wait_for(newer_temporal, queue, 4)
    program.go_on()
    ended = program.ended()
    assert (ended.code, ended.out, ended.err) == (0, [], "")


@pytest.mark.parametrize("end", ENDS)
def test_a_server_that_hangs(run: Run, end: str) -> None:
    """A server that accepts connections and never answers delays the exit by the shutdown timeout alone."""
    statement, code = ENDS[end]
    with HostileReceiver(silent) as server:
        address = server.url.removeprefix("http://").partition("/")[0]
        ended = run(address, f"end_step('step-1')\n{statement}", shutdown_timeout=4, timeout=600, give_up_after=600)
        assert server.connections == 1
    assert (ended.code, [line for line in ended.noise if not line.startswith("Traceback")]) == (code, [])
    assert "discarded step step-1: the process ended before it was delivered " in ended.err
