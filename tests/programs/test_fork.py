"""Forks: the child has its own queue, thread and connections; what the parent queued is the parent's."""

import signal
import urllib.request
from collections.abc import Iterator

import pytest
from processes import Ledger, Program, run


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """A receiver that is running."""
    with Ledger() as ledger:
        yield ledger


def test_without_earlier_steps(ledger: Ledger) -> None:
    """A process that has sent nothing yet can fork, and its child delivers when it ends."""
    ended = run("forks", "idle", url=ledger.url)
    assert (ended.code, ended.out, ended.noise) == (0, ["3"], [])
    assert ledger.steps == ["child-0", "child-1"]


def test_at_any_moment(ledger: Ledger) -> None:
    """A fork soon after the first step, whatever the thread is just doing, loses nothing and doubles nothing."""
    ended = run("forks", "at_any_moment", url=ledger.url)
    assert (ended.code, ended.noise) == (0, [])
    assert ledger.steps == sorted(f"{who}-{number}" for who in ("parent", "child") for number in range(16))
    assert ledger.connections("parent").isdisjoint(ledger.connections("child"))


def test_nothing_is_left_to_do_once(ledger: Ledger) -> None:
    """The sending thread imports no module and makes no TLS context: a fork in the middle of that would be for ever."""
    ended = run("forks", "nothing_late", url=ledger.url)
    assert (ended.code, ended.out, ended.noise) == (0, ["[]"], [])
    assert ledger.steps == ["parent-0"]


def test_after_a_delivery(ledger: Ledger) -> None:
    """The child opens connections of its own; the parent's goes on to serve the parent when the child has ended."""
    ended = run("forks", "delivered", url=ledger.url)
    assert (ended.code, ended.out, ended.noise) == (0, ["3"], [])
    assert ledger.steps == ["child-0", "child-1", "parent-0", "parent-1"]
    assert len(ledger.connections("parent")) == 1
    assert ledger.connections("parent").isdisjoint(ledger.connections("child"))


def test_in_flight(ledger: Ledger) -> None:
    """What is in flight or queued at the fork is sent once, by the parent, over connections of the parent."""
    ledger.gate.clear()
    with Program("forks", "flying", url=ledger.url, concurrency=4) as program:
        ledger.wait_for(4)
        program.go_on()
        ledger.wait_for(6)
        ledger.gate.set()
        ended = program.ended()
    assert (ended.code, ended.out, ended.noise) == (0, ["3"], [])
    assert ledger.steps == sorted([f"parent-{number}" for number in range(12)] + ["child-0", "child-1"])
    assert ledger.connections("parent").isdisjoint(ledger.connections("child"))


def test_a_loop_that_a_child_drops(ledger: Ledger) -> None:
    """The parent still hears of what happens on it: their epoll is one object of the kernel."""
    ended = run("forks", "collected", url=ledger.url)
    assert (ended.code, ended.out) == (0, ["3", "127.0.0.1"])


def test_held_steps(ledger: Ledger) -> None:
    """What waits for a span of the parent's is the parent's to tell, once."""
    ended = run("forks", "held", url=ledger.url)
    assert (ended.code, ended.out, ended.err) == (0, ["3"], "")
    assert ledger.steps == ["child-0", "child-1", "parent-plan"]


def test_grandchildren(ledger: Ledger) -> None:
    """Each of three generations delivers its own steps over its own connections."""
    ended = run("forks", "generations", url=ledger.url)
    assert (ended.code, ended.out, ended.noise) == (0, ["4"], [])
    assert ledger.steps == ["child-0", "child-1", "grandchild-0", "parent-0", "parent-1"]
    used = [ledger.connections(name) for name in ("parent", "child", "grandchild")]
    assert len(set.union(*used)) == 3


def test_from_a_thread(ledger: Ledger) -> None:
    """A child in which only the forking thread has survived delivers."""
    ended = run("forks", "from_thread", url=ledger.url)
    assert (ended.code, ended.out, ended.noise) == (0, ["3"], [])
    assert ledger.steps == ["child-0", "parent-0", "parent-1"]


def test_child_that_is_cut_off(ledger: Ledger) -> None:
    """`os._exit` in a child loses what is queued there and nothing else."""
    with Program("forks", "cut_off", url=ledger.url, concurrency=3) as program:
        assert program.says() == "delivered"
        ledger.gate.clear()
        program.go_on()
        ledger.wait_for(5)
        program.go_on()
        assert program.says() == "5"
        ledger.gate.set()
        ended = program.ended()
    assert (ended.code, ended.noise) == (0, [])
    lost = [step for step in ledger.steps if step.startswith("child-lost")]
    assert len(lost) == 3
    assert [step for step in ledger.steps if step not in lost] == ["child-delivered", "parent-0", "parent-1"]


def test_between_fork_and_exec(ledger: Ledger) -> None:
    """A function that runs before exec and ends a step leaves the parent's deliveries alone."""
    ended = run("forks", "in_subprocess", url=ledger.url)
    assert (ended.code, ended.noise) == (0, [])
    assert [step for step in ledger.steps if step != "child-0"] == ["parent-0", "parent-1"]
    assert len(ledger.connections("parent")) == 1


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["process", "pool"])
def test_multiprocessing(ledger: Ledger, method: str, kind: str) -> None:
    """Children that multiprocessing makes deliver when they end, although some of them skip atexit."""
    ended = run("multiprocesses", method, kind, url=ledger.url)
    assert (ended.code, ended.out, ended.noise) == (0, ["done"], [])
    assert ledger.steps == ["child-0", "child-1", "parent-0", "parent-1"]
    assert ledger.connections("parent").isdisjoint(ledger.connections("child"))


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_gunicorn(ledger: Ledger, preload: tuple[str, ...]) -> None:
    """Gunicorn's workers deliver while they run, and drain when SIGTERM ends them."""
    arguments = ("--config", "serving.py", *preload, "served:application")
    with Program("gunicorn", *arguments, url=ledger.url) as program:
        port, *ready = [program.says() for _ in range(3)]
        assert ready == ["ready", "ready"]
        address = f"http://127.0.0.1:{port}"
        for number in range(6):
            urllib.request.urlopen(f"{address}/{number}").close()
        ledger.wait_for(6 + (1 if preload else 2))
        ledger.gate.clear()
        urllib.request.urlopen(f"{address}/last").close()
        program.process.send_signal(signal.SIGTERM)
        ledger.gate.set()
        ended = program.ended()
    assert ended.code == 0
    assert [line for line in ended.noise if f", {port})" not in line] == []  # the workers leave gunicorn's own open
    served = [f"request-{number}" for number in range(6)] + ["request-last"]
    assert ledger.steps == sorted(["loaded"] * (1 if preload else 2) + served)
