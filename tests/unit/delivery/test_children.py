"""RQ's way to end a child, and no other. The children of all libraries: see programs/test_pools.py."""

import os
import sys
from types import ModuleType

import pytest

from otel_step_hook.delivery import children

LEAVE = compile("os._exit(status)", "a module", "exec")


@pytest.fixture(autouse=True)
def left(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The statuses that this process would have ended with, in which RQ runs a job, and nothing is armed yet."""
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    monkeypatch.setattr(children, "_looked_at_in", {})
    monkeypatch.setitem(sys.modules, "rq.worker", ModuleType("rq.worker"))
    monkeypatch.setenv("RQ_JOB_ID", "a job")
    return statuses


def _leave_as(module: str, status: int) -> None:
    """Call `os._exit` as the module of that name would."""
    exec(LEAVE, {"__name__": module, "os": os, "status": status})  # noqa: S102 -- our own code


def test_only_rq_itself_drains_before_it_leaves(left: list[int]) -> None:
    """In RQ's horse `os._exit` drains when RQ calls it, and not when the job does. It is replaced once."""
    drained: list[str] = []
    children.arm(lambda: drained.append("once"))
    leave = os._exit
    children.arm(lambda: drained.append("twice"))
    assert os._exit is leave
    _leave_as("jobs", 3)
    assert (left, drained) == ([3], [])
    _leave_as("rq.worker.base", 0)
    assert (left, drained) == ([3, 0], ["once"])


def test_rq_leaves_when_it_is_interrupted(left: list[int]) -> None:
    """A horse that is interrupted while it drains leaves all the same."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    children.arm(interrupted)
    with pytest.raises(KeyboardInterrupt):  # RQ never sees it: the process has ended
        _leave_as("rq.worker", 0)
    assert left == [0]


def test_another_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where RQ is imported, and runs no job, `os._exit` stays what it is."""
    monkeypatch.delenv("RQ_JOB_ID")
    leave = os._exit
    children.arm(lambda: None)
    assert os._exit is leave
