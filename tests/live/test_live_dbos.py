"""DBOS: each step is one, under the id of its workflow and its number there."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import workflows_dbos as workflows
from dbos import DBOS, SetWorkflowID
from dbos._error import DBOSAwaitedWorkflowCancelledError, DBOSMaxStepRetriesExceeded, DBOSStepTimeoutError
from observing import LIMIT, Observed, Told, cancel_inside
from opentelemetry import trace

_DIED = 3


@pytest.fixture
def traced(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> Observed:
    """A pipeline whose provider is the global one, the only one that DBOS knows."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", observed.provider)  # it can be set once in a process
    return observed


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for the database; nothing has run."""
    workflows.seen.clear()
    workflows.gate.reached.clear()
    yield tmp_path
    DBOS.destroy()


@pytest.fixture
def launched(traced: Observed, folder: Path) -> Observed:
    """DBOS is running, with a database of its own."""
    DBOS(config=workflows.settings(folder))
    DBOS.launch()
    return traced


def run(workflow: Callable[[], object]) -> object:
    """Run *workflow* under the id `flow`."""
    with SetWorkflowID("flow"):
        return workflow()


def seen() -> list[str]:
    """Which step ids DBOS itself has told the steps when they ran."""
    return sorted("/".join(pair) for pair in workflows.seen)


def test_steps_that_return_are_successes(launched: Observed) -> None:
    """Each step of a workflow is told once, under its number; the workflow is not."""
    assert run(workflows.two_steps) == "onetwo"
    assert seen() == ["flow/1", "flow/2"]
    assert launched.told() == [Told("first", "flow/1", "success"), Told("second", "flow/2", "success")]


def test_steps_are_numbered_with_the_newer_names_of_attributes_too(traced: Observed, folder: Path) -> None:
    """`otel_attribute_format="semconv"` changes what the spans say, and nothing of what is told."""
    DBOS(config=workflows.settings(folder, "semconv"))
    DBOS.launch()
    run(workflows.two_steps)
    assert traced.told() == [Told("first", "flow/1", "success"), Told("second", "flow/2", "success")]


def test_a_step_that_raises_has_failed(launched: Observed) -> None:
    """The exception that ends the workflow is the failure of its step."""
    with pytest.raises(workflows.StepError):
        run(workflows.fails)
    assert launched.told() == [Told("broken", "flow/2", "failed"), Told("first", "flow/1", "success")]


def test_a_step_whose_failure_is_forgiven_has_failed(launched: Observed) -> None:
    """A workflow that goes on after a failed step has two steps; the handled exception does not fail the second."""
    assert run(workflows.forgives) == "instead"
    assert launched.told() == [Told("broken", "flow/1", "failed"), Told("first", "flow/2", "success")]


def test_a_step_that_succeeds_at_last_is_one_success(launched: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts that are followed by another are not told."""
    monkeypatch.setattr(workflows, "errors", iter([workflows.StepError(), workflows.StepError()]))
    assert run(workflows.tries_again) == "at last"
    assert seen() == ["flow/1"] * 3
    assert launched.told() == [Told("flaky", "flow/1", "success")]


def test_a_step_that_fails_too_often_is_one_failure(launched: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last attempt's failure is the step's."""
    monkeypatch.setattr(workflows, "errors", (workflows.StepError() for _ in iter(int, 1)))
    with pytest.raises(DBOSMaxStepRetriesExceeded):
        run(workflows.tries_again)
    assert seen() == ["flow/1"] * 3
    assert launched.told() == [Told("flaky", "flow/1", "failed")]


@pytest.mark.anyio
async def test_steps_that_run_at_once_are_told_apart(launched: Observed) -> None:
    """Each of three steps that run side by side has the number that DBOS gave it."""
    with SetWorkflowID("flow"):
        assert await workflows.at_once() == [1, 2, 3]
    assert seen() == ["flow/1", "flow/2", "flow/3"]
    assert launched.told() == [Told("slow", f"flow/{number}", "success") for number in (1, 2, 3)]


@pytest.mark.anyio
async def test_a_workflow_cancelled_inside_its_step_tells_that_step_as_cancelled(launched: Observed) -> None:
    """Cancelling the task of the workflow cancels the step that it is in."""
    with SetWorkflowID("flow"):
        await cancel_inside(workflows.waits(), workflows.gate)
    assert launched.told() == [Told("endless", "flow/1", "cancelled")]


@pytest.mark.anyio
async def test_a_step_that_dbos_interrupts_is_told_as_cancelled(launched: Observed) -> None:
    """Cancelling a workflow by its id, as from DBOS's console, cancels the preemptible step that it is in."""
    with SetWorkflowID("flow"):
        handle = await DBOS.start_workflow_async(workflows.waits_preemptibly)
    assert await asyncio.to_thread(workflows.gate.reached.wait, LIMIT)
    await DBOS.cancel_workflow_async("flow")
    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        await handle.get_result()
    assert launched.told() == [Told("preemptible", "flow/1", "cancelled")]


@pytest.mark.anyio
async def test_a_step_that_takes_too_long_has_failed(launched: Observed) -> None:
    """DBOS cancels what is inside of a step that has a time limit; the step itself has failed."""
    with SetWorkflowID("flow"), pytest.raises(DBOSStepTimeoutError):
        await workflows.waits_too_long()
    assert launched.told() == [Told("late", "flow/1", "failed")]


def test_the_steps_of_a_workflow_inside_another_have_its_id(launched: Observed) -> None:
    """A child workflow numbers its steps by itself, under an id of its own."""
    run(workflows.calls_another)
    told = launched.told()
    assert sorted(each.step_id for each in told) == seen()
    assert len({each.step_id for each in told}) == 3
    assert {each.outcome for each in told} == {"success"}


def test_what_dbos_does_between_steps_is_no_step(launched: Observed) -> None:
    """Sleeping and setting an event take numbers, as DBOS counts, and are not told."""
    run(workflows.sleeps)
    assert launched.told() == [Told("first", "flow/1", "success"), Told("second", seen()[1], "success")]


def test_a_step_outside_of_a_workflow_is_not_told(launched: Observed) -> None:
    """DBOS runs it as a plain function, without a span."""
    assert workflows.first("alone") == "alone"
    assert launched.told() == []


def test_a_workflow_that_has_ended_is_not_told_again(launched: Observed) -> None:
    """Asking for a workflow by its id once more gives its result, and runs nothing."""
    assert run(workflows.two_steps) == run(workflows.two_steps)
    assert launched.told() == [Told("first", "flow/1", "success"), Told("second", "flow/2", "success")]


def _dies_in_its_second_step(folder: Path) -> None:
    died = subprocess.run(
        [sys.executable, workflows.__file__, str(folder)],
        env={**os.environ, workflows.DIES: "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=2 * LIMIT,
        check=False,
    )
    assert died.returncode == _DIED, died.stderr


def test_a_recovered_workflow_tells_its_steps_under_the_ids_that_they_had(traced: Observed, folder: Path) -> None:
    """After a crash in its second step DBOS replays the first, which no span says: it is told again, under its id."""
    _dies_in_its_second_step(folder)
    DBOS(config=workflows.settings(folder))
    DBOS.launch()
    told = traced.receiver.wait_for(2, LIMIT)
    (pending,) = DBOS.list_workflows()
    assert DBOS.retrieve_workflow(pending.workflow_id).get_result() == "onetwo"
    assert len(told) == 2
    assert seen() == [f"{pending.workflow_id}/2"]
    assert traced.told() == [
        Told("first", f"{pending.workflow_id}/1", "success"),
        Told("second", f"{pending.workflow_id}/2", "success"),
    ]
