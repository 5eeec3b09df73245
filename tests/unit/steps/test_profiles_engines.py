"""The rows of workflow engines: Temporal, DBOS, Prefect, Airflow, and CI/CD pipelines."""

import asyncio
import sys
from itertools import product
from types import SimpleNamespace

import pytest
from emitting import (
    CANCELLED,
    ERROR,
    FAILED,
    IS_OK,
    OK,
    RETURNED,
    SUCCESS,
    UNSET,
    Attributes,
    Ending,
    Framework,
    end,
    ended,
    endings,
    generated_id,
    in_flight,
    recorded,
)
from opentelemetry.trace import StatusCode

from otel_step_hook.steps.event import Outcome

_CANCELLED = "asyncio.exceptions.CancelledError"

# Temporal, outside of a running activity, where its SDK cannot be asked. The rest: test_frameworks_temporal.py

_ACTIVITY = {"temporalActivityID": "7", "temporalWorkflowID": "order-1", "temporalRunID": "run-1"}


class ApplicationError(Exception):
    """Temporal's own exception."""


@endings(
    returned=(RETURNED, SUCCESS),
    failed=(recorded("ValueError", ValueError, description="ValueError: activity broke"), FAILED),
    failed_benignly=(recorded("temporalio.exceptions.ApplicationError", ApplicationError, status=UNSET), FAILED),
    cancelled=(in_flight(asyncio.CancelledError), CANCELLED),
    cancelled_in_a_thread=(
        recorded("temporalio.exceptions.CancelledError", description="CancelledError: Cancelled"),
        CANCELLED,
    ),
)
@pytest.mark.parametrize("scope", ["temporalio.contrib.opentelemetry", "the.application", ""])
def test_temporal_reports_activities_under_run_and_activity_id(scope: str, ending: Ending, outcome: Outcome) -> None:
    """A running activity is a step under any scope; workflows, and spans that only start an activity, are none."""
    temporal = Framework(scope)
    workflow = {"temporalWorkflowID": "order-1", "temporalRunID": "run-1"}
    for name in ("RunWorkflow:Order", "StartActivity:charge", "CompleteWorkflow:Order", "RunActivity:charge"):
        temporal.emit(name, workflow, ending=ending)
    temporal.emit("StartActivity:charge", _ACTIVITY, ending=ending)
    temporal.emit("RunActivity:charge", _ACTIVITY, ending=ending)
    assert temporal.steps == ended("RunActivity:charge", "run-1/7", outcome)


@pytest.mark.parametrize("attributes", [{"temporalActivityID": "7"}, {"temporalActivityID": "7", "temporalRunID": ""}])
def test_temporal_reports_an_activity_without_a_run_id_under_a_generated_id(attributes: Attributes) -> None:
    """The activity id alone is not unique, so that the id is generated from the span's ids."""
    temporal = Framework("temporalio.contrib.opentelemetry")
    activity = temporal.emit("RunActivity:charge", attributes)
    assert temporal.steps == ended("RunActivity:charge", generated_id(activity), SUCCESS)


# DBOS

_DBOS_ATTRIBUTES = pytest.mark.parametrize(
    ("kind", "workflow_id"),
    [("operationType", "operationUUID"), ("dbos.operation.type", "dbos.operation.workflow_id")],
)


class _Dbos:
    """Stands for the module ``dbos``, whose class has the number of the running step."""

    def __init__(self) -> None:
        self.DBOS = SimpleNamespace(step_id=None)

    def begin_step(self, number: int | None) -> None:
        self.DBOS.step_id = number


@pytest.fixture
def dbos(monkeypatch: pytest.MonkeyPatch) -> _Dbos:
    """A replacement for the module ``dbos``, in an application that has imported it."""
    module = _Dbos()
    # DBOS itself needs a database to run a step; the row looks for the module in sys.modules.
    monkeypatch.setitem(sys.modules, "dbos", module)
    return module


@_DBOS_ATTRIBUTES
@endings(
    returned=(IS_OK, SUCCESS),
    failed=(Ending(status=ERROR, description="step broke", in_flight=ValueError), FAILED),
    failed_outside=(Ending(status=ERROR, description="step broke"), FAILED),
    cancelled=(Ending(status=ERROR, description="", in_flight=asyncio.CancelledError), CANCELLED),
    retried=(
        Ending(status=OK, events=(("Step attempt 0 failed", {"error": "x"}), ("Step attempt 1 failed", {}))),
        SUCCESS,
    ),
)
def test_dbos_reports_steps_under_workflow_id_and_number(
    dbos: _Dbos, kind: str, workflow_id: str, ending: Ending, outcome: Outcome
) -> None:
    """A step's id is its workflow's id and its number at its start; workflows and transactions are no steps."""
    app = Framework("dbos-tracer")
    workflow = app.start("wf", later={kind: "workflow", workflow_id: "wf-1"})
    dbos.begin_step(3)
    step = app.start("charge", later={kind: "step", workflow_id: "wf-1"}, below=workflow)
    dbos.begin_step(None)
    app.emit("insert", later={kind: "transaction", workflow_id: "wf-1"}, below=workflow, ending=ending)
    end(step, ending)
    end(workflow, ending)
    assert app.steps == ended("charge", "wf-1/3", outcome)


@_DBOS_ATTRIBUTES
def test_dbos_counts_from_zero(dbos: _Dbos, kind: str, workflow_id: str) -> None:
    """Step number 0 is a number, and not a missing one."""
    app = Framework("dbos-tracer")
    dbos.begin_step(0)
    app.emit("charge", {kind: "step", workflow_id: "wf-1"})
    assert app.steps == ended("charge", "wf-1/0", SUCCESS)


@_DBOS_ATTRIBUTES
@pytest.mark.parametrize("number", [None, 1])
def test_dbos_reports_a_step_without_workflow_id_or_number_under_a_generated_id(
    dbos: _Dbos, kind: str, workflow_id: str, number: int | None
) -> None:
    """If one of the two is missing, the other alone is not used as the step id."""
    dbos.begin_step(number)
    app = Framework("dbos-tracer")
    step = app.emit("charge", later={kind: "step"} if number else {kind: "step", workflow_id: "wf-1"})
    assert app.steps == ended("charge", generated_id(step), SUCCESS)


class _OldDbos:
    @property
    def step_id(self) -> int:
        raise RuntimeError("not initialized")


@_DBOS_ATTRIBUTES
def test_dbos_that_raises_gives_steps_a_generated_id(dbos: _Dbos, kind: str, workflow_id: str) -> None:
    """If the number cannot be read, the step is reported under a generated id."""
    dbos.DBOS = _OldDbos()  # type: ignore[assignment]  # -- another class for the same attribute
    app = Framework("dbos-tracer")
    step = app.emit("charge", later={kind: "step", workflow_id: "wf-1"})
    assert app.steps == ended("charge", generated_id(step), SUCCESS)


@_DBOS_ATTRIBUTES
def test_dbos_that_has_not_been_imported_gives_steps_a_generated_id(kind: str, workflow_id: str) -> None:
    """Without the module ``dbos`` in the process, the number of a step is not known."""
    app = Framework("dbos-tracer")
    step = app.emit("charge", later={kind: "step", workflow_id: "wf-1"})
    assert app.steps == ended("charge", generated_id(step), SUCCESS)


# Prefect

_TASK_RUN = {"prefect.run.type": "task", "prefect.run.id": "run-1"}


def _state(kind: str) -> tuple[str, Attributes]:
    return (kind.capitalize(), {"prefect.state.type": kind, "prefect.state.name": kind.capitalize()})


def _ended_as(*kinds: str, status: StatusCode = OK) -> Ending:
    """Return an ending with one event for each of these states, in this order."""
    return Ending(status=status, events=tuple(_state(kind) for kind in kinds))


_STOPPED = ("exception", {"exception.type": _CANCELLED})
_RAISED = ("exception", {"exception.type": "ValueError"})


@endings(
    completed=(_ended_as("PENDING", "RUNNING", "COMPLETED"), SUCCESS),
    completed_after_retry=(
        Ending(status=OK, events=(_state("RUNNING"), _RAISED, _state("SCHEDULED"), _state("COMPLETED"))),
        SUCCESS,
    ),
    failed=(
        Ending(status=ERROR, description="broke", events=(_RAISED, _state("FAILED")), in_flight=ValueError),
        FAILED,
    ),
    returned_as_failed=(_ended_as("RUNNING", "FAILED"), FAILED),
    returned_as_cancelled=(_ended_as("RUNNING", "CANCELLED"), CANCELLED),
    cancelled_as_error=(_ended_as("RUNNING", "CANCELLED", status=ERROR), CANCELLED),
    crashed_by_cancellation=(
        Ending(status=ERROR, events=(_STOPPED, _state("CRASHED")), in_flight=asyncio.CancelledError),
        CANCELLED,
    ),
    crashed_by_cancellation_seen_in_the_event=(Ending(status=ERROR, events=(_state("CRASHED"), _STOPPED)), CANCELLED),
    crashed=(Ending(status=ERROR, events=(_state("RUNNING"), _RAISED, _state("CRASHED"))), FAILED),
    crashed_without_exception=(_ended_as("RUNNING", "CRASHED", status=ERROR), FAILED),
    paused=(_ended_as("RUNNING", "PAUSED"), None),
    suspended=(_ended_as("RUNNING", "SCHEDULED"), None),
    paused_as_error=(_ended_as("RUNNING", "PAUSED", status=ERROR), None),
    without_states=(IS_OK, SUCCESS),
    running=(_ended_as("RUNNING", status=ERROR), FAILED),
)
def test_prefect_reports_task_runs_by_their_last_state(ending: Ending, outcome: Outcome | None) -> None:
    """A task run is a step under its run id, and its last state decides the outcome; a flow run is none."""
    prefect = Framework("prefect")
    flow = prefect.start("my-flow", {"prefect.run.type": "flow", "prefect.run.id": "flow-1"})
    prefect.emit("charge-0", _TASK_RUN, below=flow, ending=ending)
    end(flow, ending)
    assert prefect.steps == ended("charge-0", "run-1", outcome)


# Airflow

_AIRFLOW = "airflow.api_fastapi.execution_api.routes.task_instances"


@pytest.mark.parametrize(
    ("state", "status", "outcome"),
    [
        ("success", OK, SUCCESS),
        ("failed", ERROR, FAILED),
        ("upstream_failed", ERROR, FAILED),
        ("skipped", ERROR, CANCELLED),
        ("removed", ERROR, CANCELLED),
        ("up_for_retry", ERROR, None),
        ("up_for_reschedule", ERROR, None),
        ("deferred", ERROR, None),
        ("a_state_to_come", ERROR, FAILED),
        ("a_state_to_come", OK, SUCCESS),
    ],
)
def test_airflow_reports_task_instances_by_their_state(state: str, status: StatusCode, outcome: Outcome | None) -> None:
    """A task instance is a step, and its state decides the outcome; each state but success has the status ERROR."""
    airflow = Framework(_AIRFLOW)
    instance = {"airflow.task_instance.id": "ti-1", "airflow.task_instance.state": state}
    airflow.emit("task_run.extract", later=instance, ending=Ending(status=status))
    airflow.emit("PATCH /task-instances/ti-1/state", later=instance, ending=Ending(status=status))
    airflow.emit("task_run.extract", ending=Ending(status=status))
    airflow.emit("worker.extract", later=instance, scope="task_runner", ending=Ending(status=status))
    assert airflow.steps == ended("task_run.extract", "ti-1", outcome)


# The semantic conventions for CI/CD


_RESULTS = {
    "success": SUCCESS,
    "failure": FAILED,
    "error": FAILED,
    "timeout": FAILED,
    "cancellation": CANCELLED,
    "skip": CANCELLED,
}


def test_cicd_reports_tasks_by_their_result() -> None:
    """A task of a pipeline is a step under any scope, and its result overrules its status."""
    expected, found = {}, {}
    for case in product(("ci", "github.actions", ""), _RESULTS, StatusCode):
        scope, result, status = case
        pipeline = Framework(scope)
        run = pipeline.start("pipeline", {"cicd.pipeline.run.id": "pipeline-1"}, later={"cicd.pipeline.result": result})
        ending = Ending(status=status, attributes={"cicd.pipeline.task.run.result": result})
        pipeline.emit("build", {"cicd.pipeline.task.run.id": "task-1"}, below=run, ending=ending)
        without_id = pipeline.emit("build", below=run, ending=ending)
        end(run, ending=Ending(status=status))
        outcome = _RESULTS[result]
        expected[case] = [*ended("build", "task-1", outcome), *ended("build", generated_id(without_id), outcome)]
        found[case] = pipeline.steps
    assert found == expected


@endings(
    returned=(RETURNED, SUCCESS),
    unknown_result=(Ending(attributes={"cicd.pipeline.task.run.result": "neutral"}), SUCCESS),
    unknown_error=(Ending(status=ERROR, attributes={"cicd.pipeline.task.run.result": "neutral"}), FAILED),
    cancelled=(in_flight(asyncio.CancelledError), CANCELLED),
)
def test_cicd_without_a_known_result_is_reported_by_the_general_rules(ending: Ending, outcome: Outcome) -> None:
    """The outcome of a task run without a known result follows from its status and exception."""
    pipeline = Framework("ci")
    pipeline.emit("build", {"cicd.pipeline.task.run.id": "task-1"}, ending=ending)
    assert pipeline.steps == ended("build", "task-1", outcome)
