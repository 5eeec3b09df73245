"""The Temporal servers that other tests use: what each of them knows, and what a restart keeps."""

import json
import urllib.request
import uuid
from collections.abc import Iterator
from datetime import timedelta

import pytest
from servers.running import LIMIT, until
from servers.temporal import NAMESPACE, OlderTemporalServer, TemporalServer
from temporalio import activity
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import ActivityExecutionStatus, Client
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Worker

pytestmark = [pytest.mark.servers, pytest.mark.anyio]

Server = TemporalServer | OlderTemporalServer
pytest_plugins = ["servers.temporal_fixtures"]


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    """Temporal Server 1.32, for tests that look at its start and stop it."""
    with TemporalServer(tmp_path_factory.mktemp("restarted")) as server:
        yield server


@activity.defn(name="answer")
async def _answer() -> int:
    return 42


async def _start_activity(client: Client) -> str:
    """Start an activity that no worker takes, and return its id."""
    activity_id = str(uuid.uuid4())
    await client.start_activity(
        "nothing", id=activity_id, task_queue="nobody", schedule_to_close_timeout=timedelta(minutes=5)
    )
    return activity_id


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=LIMIT) as answer:
        text: str = answer.read().decode()
        return text


def _listed(server: Server) -> set[str]:
    """The ids of the activities that the web page asks the server for; they appear there some time after the start."""
    answer = json.loads(_get(f"{server.ui}/api/v1/namespaces/{NAMESPACE}/activities"))
    return {activity["activityId"] for activity in answer.get("executions", [])}


async def test_a_server_accepts_clients(temporal_server: Server) -> None:
    """A client connects, and the namespace is there."""
    client = await Client.connect(temporal_server.address)
    request = DescribeNamespaceRequest(namespace=NAMESPACE)
    described = await client.workflow_service.describe_namespace(request)
    assert described.namespace_info.name == NAMESPACE


def test_the_web_page_is_there(temporal_server: Server) -> None:
    """It answers its index, and its API knows the server behind it."""
    assert _get(temporal_server.ui).startswith("<!doctype html>")
    version = json.loads(_get(f"{temporal_server.ui}/api/v1/system-info"))["serverVersion"]
    assert version.rpartition(".")[0] == {TemporalServer: "1.32", OlderTemporalServer: "1.29"}[type(temporal_server)]


async def test_a_server_that_has_just_started_runs_activities(newer: TemporalServer) -> None:
    """A worker takes an activity as soon as the server is said to be ready."""
    client = await Client.connect(newer.address)
    async with Worker(client, task_queue="just started", activities=[_answer]):
        limit = timedelta(seconds=LIMIT)
        activity_id = str(uuid.uuid4())
        answer = await client.execute_activity(
            _answer, id=activity_id, task_queue="just started", schedule_to_close_timeout=limit
        )
    assert answer == 42


async def test_a_restart_keeps_activities(newer: TemporalServer) -> None:
    """An activity is known and listed after SIGTERM, and after SIGKILL, with the client that started it."""
    client = await Client.connect(newer.address)
    activity_id = await _start_activity(client)
    for end in (newer.stop, newer.kill):
        end()
        newer.start()
        described = await client.get_activity_handle(activity_id).describe()
        assert described.status is ActivityExecutionStatus.RUNNING
        until("the activity is listed", lambda: activity_id in _listed(newer))


async def test_the_older_server_has_no_activities_without_workflows(older_temporal: OlderTemporalServer) -> None:
    """It answers that it does not know how to start one."""
    client = await Client.connect(older_temporal.address)
    with pytest.raises(RPCError) as raised:
        await _start_activity(client)
    assert raised.value.status is RPCStatusCode.UNIMPLEMENTED
