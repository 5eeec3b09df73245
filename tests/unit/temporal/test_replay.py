"""Recorded histories of workflows, replayed without a server: `tests/servers/recording.py` has recorded them."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import temporal_workflow as example
from servers import thinking
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner, WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner
from temporalio.workflow import NondeterminismError

from otel_step_hook.temporal import StepHookPlugin

pytestmark = pytest.mark.anyio

HISTORIES = sorted((Path(__file__).parents[2] / "corpus" / "temporal-histories").glob("*.json"))


def _history(path: Path, change: Mapping[str, str] = MappingProxyType({})) -> WorkflowHistory:
    text = path.read_text()
    for old, new in change.items():
        text = text.replace(old, new)
    recorded = json.loads(text)
    return WorkflowHistory.from_json(recorded.pop("workflow"), recorded)


def _replayer(runner: WorkflowRunner) -> Replayer:
    return Replayer(
        build_id="tests",  # without one the SDK hashes all imported modules, which takes seconds
        workflows=[example.Agent, thinking.Impatient],
        workflow_runner=runner,
        plugins=[StepHookPlugin()],
    )


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
@pytest.mark.parametrize("runner", [SandboxedWorkflowRunner(), UnsandboxedWorkflowRunner()], ids=["sandbox", "plain"])
async def test_a_recorded_history_is_replayed(path: Path, runner: WorkflowRunner) -> None:
    """The workflows still do what they did: workflows that run during an upgrade go on."""
    await _replayer(runner).replay_workflow(_history(path))


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_another_history_is_not_replayed(path: Path) -> None:
    """Where the workflow had asked for another activity, the replay fails: it does compare."""
    other = {'"activityType":{"name":"send_step_complete_webhook"}': '"activityType":{"name":"another"}'}
    with pytest.raises(NondeterminismError):
        await _replayer(SandboxedWorkflowRunner()).replay_workflow(_history(path, other))


def test_both_servers_are_replayed() -> None:
    """There is a history of each scenario from each server."""
    scenarios = [path.stem.partition("-")[::2] for path in HISTORIES]
    assert {server for server, _ in scenarios} == {"1.29", "1.32"}
    assert len(scenarios) == 2 * len({scenario for _, scenario in scenarios}) == 12
