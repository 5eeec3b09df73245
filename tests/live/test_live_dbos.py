"""DBOS: each DBOS step is a step, under the id of its workflow and its number in it."""

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
from observing import LIMIT, Observed, Reported, cancel_inside
from opentelemetry import trace

_DIED = 3


@pytest.fixture
def traced(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> Observed:
    """A pipeline whose provider is the global one, which DBOS uses."""
    monkeypatch.setattr(
        trace, "_TRACER_PROVIDER", observed.provider
    )  # trace.set_tracer_provider() works once in a process
    return observed


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for the database, after the recorded calls of earlier tests were cleared."""
    workflows.seen.clear()
    workflows.gate.reached.clear()
    yield tmp_path
    DBOS.destroy()


@pytest.fixture
def launched(traced: Observed, folder: Path) -> Observed:
    """A pipeline with DBOS running on a new database."""
    DBOS(config=workflows.settings(folder))
    DBOS.launch()
    return traced


def run(workflow: Callable[[], object]) -> object:
    """Run *workflow* under the workflow id `flow`."""
    with SetWorkflowID("flow"):
        return workflow()


def seen() -> list[str]:
    """Return the step ids that the steps read from DBOS when they ran."""
    return sorted("/".join(pair) for pair in workflows.seen)


def test_steps_that_return_are_successes(launched: Observed) -> None:
    """Each step of a workflow is reported once, under its number; the workflow is not reported."""
    assert run(workflows.two_steps) == "onetwo"
    assert seen() == ["flow/1", "flow/2"]
    assert launched.reported() == [Reported("first", "flow/1", "success"), Reported("second", "flow/2", "success")]


def test_the_newer_attribute_names_give_the_same_webhooks(traced: Observed, folder: Path) -> None:
    """`otel_attribute_format="semconv"` changes the attributes of spans, and not the webhooks."""
    DBOS(config=workflows.settings(folder, "semconv"))
    DBOS.launch()
    run(workflows.two_steps)
    assert traced.reported() == [Reported("first", "flow/1", "success"), Reported("second", "flow/2", "success")]


def test_a_step_that_raises_has_failed(launched: Observed) -> None:
    """An exception that leaves the step and the workflow is reported as the failure of the step."""
    with pytest.raises(workflows.StepError):
        run(workflows.fails)
    assert launched.reported() == [Reported("broken", "flow/2", "failed"), Reported("first", "flow/1", "success")]


def test_a_step_whose_exception_is_handled_has_failed(launched: Observed) -> None:
    """If the workflow catches the exception and runs another step, only the first step has failed."""
    assert run(workflows.recovers) == "instead"
    assert launched.reported() == [Reported("broken", "flow/1", "failed"), Reported("first", "flow/2", "success")]


def test_a_step_that_succeeds_at_last_is_one_success(launched: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed attempts that are followed by another attempt are not reported."""
    monkeypatch.setattr(workflows, "errors", iter([workflows.StepError(), workflows.StepError()]))
    assert run(workflows.tries_again) == "at last"
    assert seen() == ["flow/1"] * 3
    assert launched.reported() == [Reported("flaky", "flow/1", "success")]


def test_a_step_that_fails_too_often_is_one_failure(launched: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure of the last attempt is reported as the failure of the step."""
    monkeypatch.setattr(workflows, "errors", (workflows.StepError() for _ in iter(int, 1)))
    with pytest.raises(DBOSMaxStepRetriesExceeded):
        run(workflows.tries_again)
    assert seen() == ["flow/1"] * 3
    assert launched.reported() == [Reported("flaky", "flow/1", "failed")]


@pytest.mark.anyio
async def test_concurrent_steps_have_different_ids(launched: Observed) -> None:
    """Each of three concurrent steps is reported under the number that DBOS gave it."""
    with SetWorkflowID("flow"):
        assert await workflows.at_once() == [1, 2, 3]
    assert seen() == ["flow/1", "flow/2", "flow/3"]
    assert launched.reported() == [Reported("slow", f"flow/{number}", "success") for number in (1, 2, 3)]


@pytest.mark.anyio
async def test_a_step_whose_workflow_task_is_cancelled_is_reported_as_cancelled(launched: Observed) -> None:
    """Cancelling the asyncio task of a workflow cancels its running step."""
    with SetWorkflowID("flow"):
        await cancel_inside(workflows.waits(), workflows.gate)
    assert launched.reported() == [Reported("endless", "flow/1", "cancelled")]


@pytest.mark.anyio
async def test_a_step_that_dbos_interrupts_is_reported_as_cancelled(launched: Observed) -> None:
    """Cancelling a workflow by its id, as DBOS's console does, cancels its running preemptible step."""
    with SetWorkflowID("flow"):
        handle = await DBOS.start_workflow_async(workflows.waits_preemptibly)
    assert await asyncio.to_thread(workflows.gate.reached.wait, LIMIT)
    await DBOS.cancel_workflow_async("flow")
    with pytest.raises(DBOSAwaitedWorkflowCancelledError):
        await handle.get_result()
    assert launched.reported() == [Reported("preemptible", "flow/1", "cancelled")]


@pytest.mark.anyio
async def test_a_step_that_takes_too_long_has_failed(launched: Observed) -> None:
    """DBOS cancels the function of a step whose timeout has expired; the step itself has failed."""
    with SetWorkflowID("flow"), pytest.raises(DBOSStepTimeoutError):
        await workflows.waits_too_long()
    assert launched.reported() == [Reported("late", "flow/1", "failed")]


def test_the_steps_of_a_child_workflow_have_its_workflow_id(launched: Observed) -> None:
    """A child workflow has its own workflow id, and its own step numbers."""
    run(workflows.calls_another)
    reported = launched.reported()
    assert sorted(each.step_id for each in reported) == seen()
    assert len({each.step_id for each in reported}) == 3
    assert {each.outcome for each in reported} == {"success"}


def test_dbos_own_operations_are_no_steps(launched: Observed) -> None:
    """Sleeping and setting an event take step numbers, and are not reported."""
    run(workflows.sleeps)
    assert launched.reported() == [Reported("first", "flow/1", "success"), Reported("second", seen()[1], "success")]


def test_a_step_outside_of_a_workflow_is_not_reported(launched: Observed) -> None:
    """DBOS runs such a step as a plain function, without a span."""
    assert workflows.first("alone") == "alone"
    assert launched.reported() == []


def test_the_steps_of_a_workflow_that_has_ended_are_not_reported_again(launched: Observed) -> None:
    """Running a workflow again under the same id returns its result, and runs no step."""
    assert run(workflows.two_steps) == run(workflows.two_steps)
    assert launched.reported() == [Reported("first", "flow/1", "success"), Reported("second", "flow/2", "success")]


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


def test_a_recovered_workflow_reports_its_steps_under_the_same_ids(traced: Observed, folder: Path) -> None:
    """After a crash in the second step, DBOS replays the first; no span shows that, so it is reported again."""
    _dies_in_its_second_step(folder)
    DBOS(config=workflows.settings(folder))
    DBOS.launch()
    received = traced.receiver.wait_for(2, LIMIT)
    (pending,) = DBOS.list_workflows()
    assert DBOS.retrieve_workflow(pending.workflow_id).get_result() == "onetwo"
    assert len(received) == 2
    assert seen() == [f"{pending.workflow_id}/2"]
    assert traced.reported() == [
        Reported("first", f"{pending.workflow_id}/1", "success"),
        Reported("second", f"{pending.workflow_id}/2", "success"),
    ]
