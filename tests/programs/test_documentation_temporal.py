"""The page about Temporal: its commands and programs, with a real server."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from documentation import Block, bash, claim
from servers.running import LIMIT, until
from servers.temporal import TemporalServer
from temporalio import activity
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from otel_step_hook.temporal import StepHookPlugin
from otel_step_hook.testing import ScriptedReceiver

pytestmark = pytest.mark.servers
_PAGE = "docs/temporal.md"
_APPLICATION = claim(_PAGE, "python application.py")
_WORKER = claim(_PAGE, "\notel-step-hook worker\n")
_OPTIONS = claim(_PAGE, "--health-file")
_PROBE = claim(_PAGE, "livenessProbe")
_PLUGIN = claim(_PAGE, "async def run_worker")
_WORKFLOW = claim(_PAGE, "class AgentWorkflow")
_TRACE = claim(_PAGE, "another worker: http")
_PROGRAM = """
from opentelemetry.sdk.trace import TracerProvider
from otel_step_hook import StepHookProcessor
provider = TracerProvider()
provider.add_span_processor(StepHookProcessor())
provider.get_tracer("application").start_span("step", attributes={"step_id": "step-1"}).end()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    """Temporal Server 1.32."""
    with TemporalServer(tmp_path_factory.mktemp("temporal")) as server:
        yield server


@pytest.fixture
def addresses(server: TemporalServer, step_receiver: ScriptedReceiver) -> dict[str, str]:
    """What stands on the page, and what is here in its place."""
    return {"https://example.com/hooks/steps": step_receiver.url, "127.0.0.1:7233": server.address}


def _start(script: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.Popen(
        ["bash", "-c", script], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def _command_of(block: Block) -> list[str]:
    (line,) = [line for line in block.text.splitlines() if "command:" in line]
    shell, option, command = line.partition("[")[2].rstrip("]").split(", ", 2)
    return [shell, option, command.strip("'")]


def test_application_and_worker(addresses: dict[str, str], step_receiver: ScriptedReceiver, tmp_path: Path) -> None:
    """The application hands its step over, and the worker, which a probe finds alive, sends it, until SIGTERM."""
    alive = tmp_path / "worker.alive"
    options = _OPTIONS.at({"worker.alive": str(alive)})
    probe = [part.replace("worker.alive", str(alive)) for part in _command_of(_PROBE)]
    settings = _WORKER.at(addresses).text.replace("otel-step-hook worker\n", "")
    worker = _start(f"{settings}exec {options.text}")
    try:
        until("the worker is ready", alive.exists)
        assert subprocess.run(probe, check=False).returncode == 0
        (tmp_path / "application.py").write_text(_PROGRAM)
        bash(_APPLICATION.at(addresses).text, directory=tmp_path)
        assert [received.step_id for received in step_receiver.wait_for(1)] == ["step-1"]
    finally:
        os.killpg(worker.pid, signal.SIGTERM)
        output, _ = worker.communicate(timeout=LIMIT)
    assert (worker.returncode, output.splitlines()[-1]) == (0, "stopped")
    assert output.startswith("ready: task queue step-webhooks of namespace default at ")
    assert subprocess.run(probe, check=False, capture_output=True).returncode != 0


@pytest.mark.anyio
async def test_a_worker_of_one_s_own(
    server: TemporalServer,
    step_receiver: ScriptedReceiver,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    addresses: dict[str, str],
) -> None:
    """The worker of the page, with the plugin, sends what the application hands over."""
    monkeypatch.setenv("STEP_COMPLETE_WEBHOOK", step_receiver.url)
    run_worker = _PLUGIN.execute()["run_worker"]
    assert callable(run_worker)
    working = asyncio.ensure_future(run_worker(await Client.connect(server.address)))
    (tmp_path / "application.py").write_text(_PROGRAM)
    await asyncio.to_thread(bash, _APPLICATION.at(addresses).text, directory=tmp_path)
    received = await asyncio.to_thread(step_receiver.wait_for, 1)
    assert [one.step_id for one in received] == ["step-1"]
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


@pytest.mark.anyio
async def test_the_workflow(server: TemporalServer, step_receiver: ScriptedReceiver) -> None:
    """The workflow of the page notifies of the step that its activity has created."""

    @activity.defn
    async def create_step(prompt: str) -> str:
        return f"step of {prompt}"

    found = _WORKFLOW.execute()["AgentWorkflow"]
    assert isinstance(found, type)
    client = await Client.connect(server.address)
    async with Worker(
        client,
        task_queue="agents",
        workflows=[found],
        activities=[create_step],
        plugins=[StepHookPlugin(step_receiver.url)],
        workflow_runner=UnsandboxedWorkflowRunner(),  # a sandbox would import the page
    ):
        result = await client.execute_workflow(
            "AgentWorkflow", "a question", id="agent", task_queue="agents", execution_timeout=timedelta(seconds=LIMIT)
        )
    assert result == "step of a question"
    assert [received.step_id for received in step_receiver.received] == ["step of a question"]


def test_the_trace_has_the_names_of_the_spans() -> None:
    """What the page shows of a trace is what `test_temporal_trace.py` finds in Jaeger."""
    assert [line.split()[1] for line in _TRACE.text.splitlines()[1:]] == ["step_hook.deliver", "POST", "POST"]
