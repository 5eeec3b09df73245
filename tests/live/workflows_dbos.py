"""DBOS workflows, in a module of their own, so that the process that recovers a workflow finds it under the same name.

As a program, it runs `two_steps` in the database in the given folder, and dies inside the second step.
"""

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from dbos import DBOS, DBOSConfig
from observing import Gate

DIES = "OTEL_STEP_HOOK_TESTS_DIE"
seen: list[tuple[str, str]] = []  # workflow id and DBOS's step number of each step that has run
gate = Gate()
errors: Iterator[Exception] = iter(())


class StepError(Exception):
    """What a step raises here."""


def settings(folder: Path, names: Literal["legacy", "semconv"] = "legacy") -> DBOSConfig:
    """Return a configuration with a database in *folder*, and tracing with the older or newer attribute *names*."""
    return {
        "name": "tests",
        "system_database_url": f"sqlite:///{folder / 'dbos.sqlite'}",
        "enable_otlp": True,
        "otel_attribute_format": names,
        "application_version": "1",  # the same for both processes
        "console_log_level": "CRITICAL",
        "notification_listener_polling_interval_sec": 0.01,
    }


def _note() -> None:
    seen.append((str(DBOS.workflow_id), str(DBOS.step_id)))


@DBOS.step()
def first(text: str) -> str:
    """Succeed."""
    _note()
    return text


@DBOS.step()
def second(text: str) -> str:
    """Succeed, or kill the process if the environment variable `DIES` is set."""
    if DIES in os.environ:
        os._exit(3)
    _note()
    return text


@DBOS.step()
def broken() -> str:
    """Fail."""
    _note()
    raise StepError


@DBOS.step(retries_allowed=True, interval_seconds=0.01, max_attempts=3)
def flaky() -> str:
    """Raise the next exception of *errors*, or succeed if there is none."""
    _note()
    for error in errors:
        raise error
    return "at last"


@DBOS.step()
async def slow(number: int) -> int:
    """Let the event loop run other steps, and succeed."""
    _note()
    await asyncio.sleep(0)
    return number


@DBOS.step()
async def endless() -> str:
    """Wait until it is cancelled."""
    _note()
    return await gate.wait()


@DBOS.step(preemptible=True)
async def preemptible() -> str:
    """Wait until DBOS cancels it together with its workflow."""
    _note()
    return await gate.wait()


@DBOS.step(timeout_seconds=0.01)
async def late() -> str:
    """Wait until its timeout expires."""
    _note()
    return await gate.wait()


@DBOS.workflow()
def two_steps() -> str:
    """Run two steps."""
    return first("one") + second("two")


@DBOS.workflow()
def fails() -> str:
    """Run a step that succeeds, and a step that fails."""
    return first("one") + broken()


@DBOS.workflow()
def recovers() -> str:
    """Handle the exception of a failed step, and run another step."""
    try:
        return broken()
    except StepError:
        return first("instead")


@DBOS.workflow()
def tries_again() -> str:
    """Run a step that DBOS retries."""
    return flaky()


@DBOS.workflow()
async def at_once() -> list[int]:
    """Run three steps concurrently."""
    return list(await asyncio.gather(slow(1), slow(2), slow(3)))


@DBOS.workflow()
async def waits() -> str:
    """Run a step that waits until it is cancelled."""
    return await endless()


@DBOS.workflow()
async def waits_preemptibly() -> str:
    """Run a step that waits and that DBOS may interrupt."""
    return await preemptible()


@DBOS.workflow()
async def waits_too_long() -> str:
    """Run a step whose timeout expires."""
    return await late()


@DBOS.workflow()
def calls_another() -> str:
    """Run a step, and a child workflow with two steps."""
    return first("outer") + two_steps()


@DBOS.workflow()
def sleeps() -> str:
    """Call operations of DBOS itself between two steps."""
    first("before")
    DBOS.sleep(0.01)
    DBOS.set_event("key", "value")
    return second("after")


if __name__ == "__main__":
    DBOS(config=settings(Path(sys.argv[1])))
    DBOS.launch()
    DBOS.start_workflow(two_steps).get_result()
