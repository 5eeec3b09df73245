"""Webhooks by way of Temporal: an application, a Temporal server, `otel-step-hook worker` and a receiver."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers.deployment import Deployment, Webhooks, handed_over, stopped
from servers.temporal import TemporalServer
from servers.temporal_workers import Server

from otel_step_hook.testing import Answer, ScriptedReceiver

pytest_plugins = ["servers.temporal_fixtures"]
pytestmark = [pytest.mark.servers, pytest.mark.anyio]

_GONE = 410
_RETRY_AFTER = 3  # seconds: more than the first backoff, which is at most one


@pytest.fixture
def deployment(temporal_server: Server, step_receiver: ScriptedReceiver) -> Iterator[Deployment]:
    """Programs with a task queue of their own."""
    with Deployment(temporal_server, step_receiver.url) as deployment:
        yield deployment


@pytest.fixture
async def webhooks(temporal_server: Server) -> Webhooks:
    """What the server knows of webhooks."""
    return await Webhooks.of(temporal_server)


async def test_a_step_is_delivered_once(
    deployment: Deployment, webhooks: Webhooks, step_receiver: ScriptedReceiver
) -> None:
    """The receiver gets one webhook, and Temporal shows step id, outcome and how it ended."""
    deployment.worker()
    webhook_id = deployment.hand_over()
    assert await webhooks.result(webhook_id) == {"result": "delivered", "status_code": 204, "attempts": 1}
    (received,) = step_receiver.received
    assert (received.step_id, received.headers["webhook-id"]) == (deployment.step_id, webhook_id)
    shown = await webhooks.shown(webhook_id)
    assert (shown.status, shown.summary) == ("COMPLETED", f"{deployment.step_id} success")


def test_an_older_server_is_logged(deployment: Deployment, temporal_server: Server) -> None:
    """A line says once that the server gets workflows, where it has no standalone activities."""
    ended = deployment.start(times=2).ended()
    handed_over(ended, 2)
    text = "the Temporal server has no standalone activities: each webhook for endpoint default is a workflow"
    expected = 0 if isinstance(temporal_server, TemporalServer) else 1
    assert ended.err.splitlines().count(text) == expected


async def test_a_refused_webhook_is_sent_again(
    deployment: Deployment, webhooks: Webhooks, step_receiver: ScriptedReceiver
) -> None:
    """After a 503 the same webhook is sent again, with its id."""
    step_receiver.answers(503)
    deployment.worker()
    webhook_id = deployment.hand_over()
    assert await webhooks.result(webhook_id) == {"result": "delivered", "status_code": 204, "attempts": 2}
    first, second = step_receiver.received
    assert first.body == second.body
    assert {first.headers["webhook-id"], second.headers["webhook-id"]} == {webhook_id}


async def test_retry_after_is_the_delay(
    deployment: Deployment, webhooks: Webhooks, step_receiver: ScriptedReceiver
) -> None:
    """Temporal shows the delay that the receiver asks for, and the next attempt is not before it has passed."""
    step_receiver.answers(Answer(503, {"retry-after": str(_RETRY_AFTER)}))
    deployment.worker()
    webhook_id = deployment.hand_over()
    assert int(await webhooks.retry_interval(webhook_id)) == _RETRY_AFTER  # the older server adds microseconds
    first, second = await asyncio.to_thread(step_receiver.wait_for, 2)
    assert second.at - first.at >= _RETRY_AFTER


async def test_a_refusal_for_good_fails(
    deployment: Deployment, webhooks: Webhooks, step_receiver: ScriptedReceiver
) -> None:
    """A 410 is not sent again: Temporal shows a failure with a sentence, and the worker logs that it is discarded."""
    step_receiver.answers(_GONE)
    worker = deployment.worker()
    webhook_id = deployment.hand_over()
    assert await webhooks.result(webhook_id) == f"{_GONE}: the receiver of endpoint default answered 410"
    assert (await webhooks.shown(webhook_id)).status == "FAILED"
    discarded = rf"discarded step {deployment.step_id}: the receiver \S+ answered 410 Gone \(success, endpoint default"
    assert re.search(discarded, stopped(worker).err)
    assert len(step_receiver.received) == 1


async def test_the_same_step_is_one_delivery(
    deployment: Deployment, webhooks: Webhooks, step_receiver: ScriptedReceiver
) -> None:
    """A step that one process ends twice and another one once is handed over three times, and sent once."""
    first, second = deployment.start(times=2), deployment.start()
    one = handed_over(first.ended(), 2)
    assert handed_over(second.ended()) == one
    run_id = (await webhooks.shown(one)).run_id
    deployment.worker()
    assert await webhooks.result(one) == {"result": "delivered", "status_code": 204, "attempts": 1}
    assert ((await webhooks.shown(one)).run_id, len(step_receiver.received)) == (run_id, 1)


async def test_a_delivered_step_is_not_sent_again(
    deployment: Deployment, webhooks: Webhooks, step_receiver: ScriptedReceiver
) -> None:
    """Another process that hands the same step over later starts nothing, and takes it for handed over."""
    deployment.worker()
    webhook_id = deployment.hand_over()
    await webhooks.result(webhook_id)
    before = await webhooks.shown(webhook_id)
    assert deployment.hand_over() == webhook_id
    assert await webhooks.shown(webhook_id) == before
    assert len(step_receiver.received) == 1


async def test_a_failed_step_is_sent_again(
    deployment: Deployment, webhooks: Webhooks, step_receiver: ScriptedReceiver
) -> None:
    """A step whose delivery has failed is delivered when it is handed over again."""
    step_receiver.answers(_GONE)
    deployment.worker()
    webhook_id = deployment.hand_over()
    assert isinstance(await webhooks.result(webhook_id), str)
    assert deployment.hand_over() == webhook_id
    assert await webhooks.result(webhook_id) == {"result": "delivered", "status_code": 204, "attempts": 1}
    assert [webhook.headers["webhook-id"] for webhook in step_receiver.received] == [webhook_id] * 2


async def test_an_unknown_endpoint_fails_at_once(
    temporal_server: Server, webhooks: Webhooks, step_receiver: ScriptedReceiver, tmp_path: Path
) -> None:
    """A worker that does not know the endpoint's name sends nothing, and says which names it knows."""
    file = tmp_path / "endpoints.toml"
    file.write_text(f'[[endpoint]]\nname = "billing"\nwebhook = "{step_receiver.url}"\n')
    with Deployment(temporal_server, step_receiver.url) as deployment:
        worker = deployment.worker()
        webhook_id = deployment.hand_over(webhook="", endpoints=file)
        failure = await webhooks.result(webhook_id, "billing")
        assert "unknown_endpoint: this worker knows no endpoint 'billing'; expected one of: default; " in str(failure)
        assert "attempts made: 0" in stopped(worker).err
    assert step_receiver.received == []
