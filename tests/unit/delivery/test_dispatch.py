"""From the first attempt to the last word: retries, and when to give up."""

import asyncio
import itertools
import json
import re
import socket
import threading
import time

import pytest
from dispatching import DELIVERED, Script, event, failed, rigged
from sending import OK
from standardwebhooks.webhooks import Webhook

from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.steps.event import Outcome
from otel_step_hook.testing import Answer, HostileReceiver, ScriptedReceiver, read_request

pytestmark = pytest.mark.anyio

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


async def test_each_outcome_is_delivered_once(step_receiver: ScriptedReceiver) -> None:
    """A step that succeeded, failed or was cancelled is one webhook, with exactly its step id."""
    async with rigged(webhook=step_receiver.url, key="sekret") as rig:
        rig.submit(*(event(f"step-{outcome}", outcome) for outcome in Outcome))
        await rig.done()
    assert sorted(webhook.body for webhook in step_receiver.received) == [
        b'{"step_id": "step-cancelled"}',
        b'{"step_id": "step-failed"}',
        b'{"step_id": "step-success"}',
    ]
    assert {webhook.headers["authorization"] for webhook in step_receiver.received} == {"Bearer sekret"}
    assert rig.store.pending == 0


async def test_a_refused_step_is_sent_again_under_the_same_id(step_receiver: ScriptedReceiver) -> None:
    """Every attempt has the same id and the same bytes, a span of its own, and a signature that verifies."""
    step_receiver.answers(503, 500, 204)
    async with rigged(webhook=step_receiver.url, signing_secret=SECRET, payload="full") as rig:
        rig.submit(event())
        await rig.done()
    webhooks = step_receiver.received
    assert len(webhooks) == 3
    assert len({webhook.headers["webhook-id"] for webhook in webhooks}) == 1
    assert len({webhook.body for webhook in webhooks}) == 1
    assert len({webhook.headers["traceparent"] for webhook in webhooks}) == 3
    for webhook in webhooks:
        Webhook(SECRET).verify(webhook.body, webhook.headers)


async def test_timestamp_and_signature_are_those_of_the_attempt() -> None:
    """An attempt in another second is signed anew, under the time at which it is made."""
    script = Script(failed(retry_after=1.0), DELIVERED)
    async with rigged(script, signing_secret=SECRET, max_backoff=1.0) as rig:
        rig.submit(event())
        await rig.done()
    (_, first), (_, second) = script.posts
    assert int(second["webhook-timestamp"]) > int(first["webhook-timestamp"])
    assert second["webhook-signature"] != first["webhook-signature"]
    assert abs(int(second["webhook-timestamp"]) - time.time()) < 60


async def test_waits_grow_and_are_never_cut_short() -> None:
    """Each wait is at least half of its backoff, and the backoff doubles."""
    script = Script(failed(), failed(), failed(), DELIVERED)
    async with rigged(script, initial_backoff=0.08, max_backoff=10.0) as rig:
        rig.submit(event())
        await rig.done()
    waits = [later - sooner for sooner, later in itertools.pairwise(script.at)]
    assert [wait >= least for wait, least in zip(waits, (0.04, 0.08, 0.16), strict=True)] == [True] * 3


async def test_waits_are_jittered() -> None:
    """Steps that failed together do not come back together."""
    results = [failed()] * 20 + [DELIVERED]
    script = Script(*results)
    async with rigged(script, concurrency=20, initial_backoff=0.5, max_backoff=0.5) as rig:
        rig.submit(*(event(f"step-{number}") for number in range(20)))
        await rig.done()
    again = script.at[20:]
    assert max(again) - min(again) > 0.05


async def test_a_retry_after_is_waited_for() -> None:
    """The receiver is not asked before the time it has named."""
    script = Script(failed(429, retry_after=0.4), DELIVERED)
    async with rigged(script, max_backoff=10.0) as rig:
        rig.submit(event())
        await rig.done()
    assert script.at[1] - script.at[0] >= 0.4


async def test_a_retry_after_counts_for_no_more_than_the_longest_backoff() -> None:
    """A receiver cannot put a step off for a year."""
    script = Script(failed(retry_after=3600.0), DELIVERED)
    async with rigged(script, max_backoff=0.1) as rig:
        rig.submit(event())
        await rig.done()
    assert [result for _, result, _ in rig.results] == ["delivered"]


async def test_a_step_is_given_up_in_time(step_receiver: ScriptedReceiver) -> None:
    """A receiver that never accepts is asked again until the time to give up; the last failure is the reason."""
    step_receiver.answers(*[503] * 100)
    async with rigged(webhook=step_receiver.url, give_up_after=0.5, max_backoff=0.1) as rig:
        rig.submit(event())
        await rig.done()
    ((_, result, reason),) = rig.results
    assert result == "discarded"
    assert reason in {"503", "timeout"}  # there may be little time left for the last attempt
    assert len(step_receiver.received) >= 2


async def test_no_attempt_lasts_longer_than_there_is_time(caplog: pytest.LogCaptureFixture) -> None:
    """The limit of an attempt ends with the time to give up, and the log tells that limit."""
    script = Script(AttemptResult(error_type="timeout"))
    async with rigged(script, timeout=15.0, give_up_after=100.0, initial_backoff=90.0, max_backoff=90.0) as rig:
        rig.submit(event(), age=93.0)
        await rig.done()
    assert script.limits[0] <= 7.0
    assert rig.results == [("step-1", "discarded", "timeout")]
    assert re.search(r"did not answer within (7|6\.\d+) s", caplog.text)


async def test_a_step_that_has_waited_too_long_is_discarded_unsent() -> None:
    """A step whose time is up while it is queued is not sent any more, and that is told."""
    script = Script()
    async with rigged(script, give_up_after=10.0) as rig:
        rig.submit(event(), age=11.0)
        await rig.done()
    assert script.posts == []
    assert rig.results == [("step-1", "discarded", "expired")]


async def test_a_step_whose_time_is_over_keeps_its_reason() -> None:
    """A step that was refused, and could not be sent again in time, is discarded because it was refused."""
    release = asyncio.Event()
    async with rigged(Script(failed(503), release, DELIVERED), concurrency=1, give_up_after=10.0) as rig:
        rig.submit(event("refused"), age=9.5)
        rig.submit(event("slow"))  # has the only lane until the other's time is over
        asyncio.get_running_loop().call_later(0.8, release.set)
        await rig.done()
    assert rig.results == [("slow", "delivered", None), ("refused", "discarded", "503")]


@pytest.mark.parametrize(
    "refusal",
    [Answer(410), Answer(500, {"webhook-delivery": "abort-message"})],
)
async def test_a_receiver_can_refuse_a_step_for_good(step_receiver: ScriptedReceiver, refusal: Answer) -> None:
    """After a 410, or 'webhook-delivery: abort-message', a step is not sent again; the next step is."""
    step_receiver.answers(refusal)
    async with rigged(webhook=step_receiver.url) as rig:
        rig.submit(event("gone"))
        await rig.done()
        rig.submit(event("next"))
        await rig.done()
    assert [webhook.step_id for webhook in step_receiver.received] == ["gone", "next"]
    assert rig.results == [("gone", "discarded", str(refusal.status)), ("next", "delivered", None)]


@pytest.mark.parametrize("status", [204, 500])
async def test_a_receiver_can_refuse_everything(
    step_receiver: ScriptedReceiver, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """After 'webhook-delivery: disable' nothing is sent any more: what waits, and what comes, is discarded at once."""
    step_receiver.answers(503, Answer(status, {"webhook-delivery": "disable"}))
    async with rigged(webhook=step_receiver.url, initial_backoff=60.0, max_backoff=60.0, give_up_after=600) as rig:
        rig.submit(event("waiting"))
        await asyncio.to_thread(step_receiver.wait_for, 1)
        rig.submit(event("last"))
        await rig.done()
        rig.submit(event("later"))
        await rig.done()
    assert [webhook.step_id for webhook in step_receiver.received] == ["waiting", "last"]
    last = ("last", "delivered", None) if status == 204 else ("last", "discarded", "500")
    assert sorted(rig.results) == sorted(
        [last, ("waiting", "discarded", "endpoint_disabled"), ("later", "discarded", "endpoint_disabled")]
    )
    told = [record for record in caplog.records if "disable" in record.message and "settle it" in record.message]
    assert [record.levelname for record in told] == ["ERROR"]


async def test_many_answers_that_disable_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Attempts that were in flight together may all be answered so."""
    script = Script(failed(directive="disable"))
    async with rigged(script, concurrency=5) as rig:
        rig.submit(*(event(f"step-{number}") for number in range(5)))
        await rig.done()
    assert len(script.posts) == 5
    assert caplog.text.count("settle it with the receiver") == 1


async def test_a_stale_connection_costs_no_wait(caplog: pytest.LogCaptureFixture) -> None:
    """A request that a kept connection swallowed is sent again at once, under the same id, and nothing is logged."""
    requests: list[bytes] = []

    def behave(connection: socket.socket, _: threading.Event) -> None:
        # The first connection answers one request, reads another, and hangs up.
        for answer in [OK, b""] if not requests else [OK]:
            if request := read_request(connection):
                requests.append(request)
                connection.sendall(answer)

    with HostileReceiver(behave) as receiver:
        async with rigged(webhook=receiver.url, initial_backoff=3600.0, give_up_after=10_000) as rig:
            rig.submit(event("one"))
            await rig.done()
            rig.submit(event("two"))
            await rig.done()
    assert [json.loads(request.partition(b"\r\n\r\n")[2])["step_id"] for request in requests] == ["one", "two", "two"]
    ids = [request.partition(b"webhook-id: ")[2].partition(b"\r\n")[0] for request in requests]
    assert ids[1] == ids[2] != ids[0]
    assert [result for _, result, _ in rig.results] == ["delivered", "delivered"]
    assert [span.attributes["step_hook.attempts"] for span in rig.deliveries if span.attributes] == [1, 2]
    assert "could not be reached" not in caplog.text


async def test_a_receiver_that_hangs_up_after_each_answer_gets_every_step() -> None:
    """Of 300 steps none fails, although no connection lives longer than one answer."""
    seen: set[bytes] = set()

    def behave(connection: socket.socket, _: threading.Event) -> None:
        if request := read_request(connection):
            seen.add(request.partition(b"\r\n\r\n")[2])
            connection.sendall(OK)

    with HostileReceiver(behave) as receiver:
        async with rigged(webhook=receiver.url, initial_backoff=3600.0, give_up_after=10_000) as rig:
            rig.submit(*(event(f"step-{number}") for number in range(300)))
            await rig.done()
    assert len(seen) == 300
    assert {result for _, result, _ in rig.results} == {"delivered"}
    stale = {(span.attributes or {}).get("error.type") for span in rig.attempts} - {None}
    assert stale <= {"BrokenPipeError", "ConnectionResetError", "ReadError", "RemoteProtocolError"}
