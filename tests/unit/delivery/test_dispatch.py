"""From the first attempt to the result of a delivery: retries, and when to give up."""

import itertools
import json
import socket
import threading
import time

import pytest
from delivering import DELIVERED, WAIT, NewRig, Script, event, failed, wait_until
from sending import OK
from standardwebhooks.webhooks import Webhook

from otel_step_hook.delivery.model import Delivery
from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.steps.event import Outcome
from otel_step_hook.testing import Answer, HostileReceiver, ScriptedReceiver, read_request

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_each_outcome_is_delivered_once(rigged: NewRig, step_receiver: ScriptedReceiver) -> None:
    """A step that succeeded, failed or was cancelled is one webhook, with exactly its step id."""
    rig = rigged(webhook=step_receiver.url, key="sekret")
    rig.deliver(*(event(f"step-{outcome}", outcome) for outcome in Outcome))
    assert sorted(webhook.body for webhook in step_receiver.received) == [
        b'{"step_id": "step-cancelled"}',
        b'{"step_id": "step-failed"}',
        b'{"step_id": "step-success"}',
    ]
    assert {webhook.headers["authorization"] for webhook in step_receiver.received} == {"Bearer sekret"}


def test_a_refused_step_is_sent_again_under_the_same_id(rigged: NewRig, step_receiver: ScriptedReceiver) -> None:
    """All attempts have the same webhook id and body, and each has a span of its own and a valid signature."""
    step_receiver.answers(503, 500, 204)
    rig = rigged(webhook=step_receiver.url, signing_secret=SECRET, payload="full")
    rig.deliver(event())
    webhooks = step_receiver.received
    assert len(webhooks) == 3
    assert len({webhook.headers["webhook-id"] for webhook in webhooks}) == 1
    assert len({webhook.body for webhook in webhooks}) == 1
    assert len({webhook.headers["traceparent"] for webhook in webhooks}) == 3
    for webhook in webhooks:
        Webhook(SECRET).verify(webhook.body, webhook.headers)


def test_timestamp_and_signature_are_those_of_the_attempt(rigged: NewRig) -> None:
    """An attempt in a later second has a later timestamp and another signature."""
    script = Script(lambda: failed(retry_after=1.01 - time.time() % 1), DELIVERED)  # until the next second
    rigged(script, signing_secret=SECRET, max_backoff=2.0).deliver()
    first, second = (post.headers for post in script.posts)
    assert int(second["webhook-timestamp"]) > int(first["webhook-timestamp"])
    assert second["webhook-signature"] != first["webhook-signature"]
    assert abs(int(second["webhook-timestamp"]) - time.time()) < 60


def test_waits_grow_and_are_never_cut_short(rigged: NewRig) -> None:
    """Each wait is at least half of its backoff, and the backoff doubles."""
    script = Script(failed(), failed(), failed(), DELIVERED)
    rigged(script, initial_backoff=0.08, max_backoff=10.0).deliver()
    waits = [later.at - sooner.at for sooner, later in itertools.pairwise(script.posts)]
    assert [wait >= least for wait, least in zip(waits, (0.04, 0.08, 0.16), strict=True)] == [True] * 3


def test_waits_are_jittered(rigged: NewRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliveries that failed together are not retried together."""
    rig = rigged(Script(failed(400)), concurrency=20, initial_backoff=1e3, max_backoff=1e3, give_up_after=1e4)
    store, waits = rig.worker._runner().store, list[float]()
    usual = store.retry

    def retry(delivery: Delivery, *, delay: float) -> None:
        waits.append(delay)
        usual(delivery, delay=delay)

    monkeypatch.setattr(store, "retry", retry)
    rig.submit(*(event() for _ in range(20)))
    wait_until(lambda: len(waits) == 20)
    assert max(waits) - min(waits) > 100.0


def test_a_retry_after_is_waited_for(rigged: NewRig) -> None:
    """No attempt is made before the time that the receiver has asked for."""
    script = Script(failed(429, retry_after=0.2), DELIVERED)
    rigged(script, max_backoff=10.0).deliver()
    first, second = script.posts
    assert second.at - first.at >= 0.2


def test_a_retry_after_is_capped_at_the_longest_backoff(rigged: NewRig) -> None:
    """A Retry-After of an hour is shortened to max_backoff, so that no receiver delays a delivery for long."""
    rig = rigged(Script(failed(retry_after=3600.0), DELIVERED), max_backoff=0.1)
    rig.deliver()
    assert [result for _, result, _ in rig.results] == ["delivered"]


def test_a_delivery_is_discarded_in_time(rigged: NewRig) -> None:
    """A delivery that is always refused is retried until the time to give up, and discarded with its last failure."""
    script = Script(failed())
    # The first wait is short, and the second ends after give_up_after.
    rig = rigged(script, give_up_after=30.0, initial_backoff=0.1, backoff_multiplier=1000.0, max_backoff=100.0)
    rig.deliver(event("step-1"))
    assert rig.results == [("step-1", "discarded", "503")]
    assert len(script.posts) == 2


def test_the_timeout_of_an_attempt_ends_with_the_time_to_give_up(
    rigged: NewRig, caplog: pytest.LogCaptureFixture
) -> None:
    """An attempt shortly before the time to give up has a shorter timeout, which the log shows."""
    script = Script(AttemptResult(error_type="timeout"))
    rig = rigged(script, timeout=15.0, give_up_after=100.0, initial_backoff=90.0, max_backoff=90.0)
    rig.deliver(event("step-1"), age=93.0)
    assert script.posts[0].timeout <= 7.0
    assert rig.results == [("step-1", "discarded", "timeout")]
    assert f"did not answer within {script.posts[0].timeout:.3g} s" in caplog.text


def test_a_step_that_has_waited_too_long_is_discarded_unsent(rigged: NewRig) -> None:
    """A step whose time to give up has passed in the queue is discarded as expired, without an attempt."""
    script = Script()
    rig = rigged(script, give_up_after=10.0)
    rig.deliver(event("step-1"), age=11.0)
    assert script.posts == []
    assert rig.results == [("step-1", "discarded", "expired")]


def test_a_delivery_that_expires_keeps_its_last_failure(rigged: NewRig) -> None:
    """A delivery that was refused, and then expires before its retry, is discarded with the refusal as its reason."""
    both_wait, release = threading.Event(), threading.Event()
    script = Script(both_wait, failed(503), release)
    rig = rigged(script, concurrency=1, give_up_after=100.0)
    rig.submit(event("refused"), event("slow"))  # which occupies the only transport until the other has expired
    both_wait.set()
    script.wait_for(2)
    rig.age_by(100.0)
    release.set()
    assert rig.worker.flush(WAIT)
    assert sorted(rig.results) == [("refused", "discarded", "503"), ("slow", "delivered", None)]


@pytest.mark.parametrize(
    "refusal",
    [Answer(410), Answer(500, {"webhook-delivery": "abort-message"})],
)
def test_a_receiver_can_refuse_a_step_for_good(
    rigged: NewRig, step_receiver: ScriptedReceiver, refusal: Answer
) -> None:
    """After a 410, or 'webhook-delivery: abort-message', a step is not sent again; the next step is."""
    step_receiver.answers(refusal)
    rig = rigged(webhook=step_receiver.url)
    rig.deliver(event("gone"))
    rig.deliver(event("next"))
    assert [webhook.step_id for webhook in step_receiver.received] == ["gone", "next"]
    assert rig.results == [("gone", "discarded", str(refusal.status)), ("next", "delivered", None)]


@pytest.mark.parametrize("status", [204, 500])
def test_a_receiver_can_disable_its_endpoint(
    rigged: NewRig, step_receiver: ScriptedReceiver, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """After 'webhook-delivery: disable' each waiting and each later delivery is discarded without an attempt."""
    step_receiver.answers(503, Answer(status, {"webhook-delivery": "disable"}))
    rig = rigged(webhook=step_receiver.url, initial_backoff=60.0, max_backoff=60.0, give_up_after=600)
    rig.submit(event("waiting"))
    step_receiver.wait_for(1)
    rig.deliver(event("last"))
    rig.deliver(event("later"))
    assert [webhook.step_id for webhook in step_receiver.received] == ["waiting", "last"]
    last = ("last", "delivered", None) if status == 204 else ("last", "discarded", "500")
    assert sorted(rig.results) == sorted(
        [last, ("waiting", "discarded", "endpoint_disabled"), ("later", "discarded", "endpoint_disabled")]
    )
    disabled = [record for record in caplog.records if "disable" in record.message and "settle it" in record.message]
    assert [record.levelname for record in disabled] == ["ERROR"]


def test_many_answers_that_disable_are_logged_once(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """Several attempts in flight that are all answered with 'disable' cause one log line."""
    together = threading.Event()
    script = Script(*[together] * 5, failed(directive="disable"))
    rig = rigged(script, concurrency=5)
    rig.submit(*(event() for _ in range(5)))
    script.wait_for(5)
    together.set()
    assert rig.worker.flush(WAIT)
    assert len(script.posts) == 5
    assert caplog.text.count("settle it with the receiver") == 1


def test_a_stale_connection_costs_no_wait(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """A request that is lost on a stale connection is sent again at once under the same id, without a log line."""
    requests: list[bytes] = []

    def behave(connection: socket.socket, _: threading.Event) -> None:
        # The first connection answers one request, reads another, and is closed.
        for answer in [OK, b""] if not requests else [OK]:
            if request := read_request(connection):
                requests.append(request)
                connection.sendall(answer)

    with HostileReceiver(behave) as receiver:
        rig = rigged(webhook=receiver.url, initial_backoff=3600.0, give_up_after=10_000)
        rig.deliver(event("one"))
        rig.deliver(event("two"))
    assert [json.loads(request.partition(b"\r\n\r\n")[2])["step_id"] for request in requests] == ["one", "two", "two"]
    ids = [request.partition(b"webhook-id: ")[2].partition(b"\r\n")[0] for request in requests]
    assert ids[1] == ids[2] != ids[0]
    assert [result for _, result, _ in rig.results] == ["delivered", "delivered"]
    delivered = [span.attributes or {} for span in rig.named("step_hook.deliver")]
    assert [attributes["step_hook.attempts"] for attributes in delivered] == [1, 2]
    assert "answer" not in caplog.text


def test_a_receiver_that_closes_after_each_answer_gets_every_step(rigged: NewRig) -> None:
    """A hundred steps are delivered, although no connection lives longer than one answer."""
    seen: set[bytes] = set()

    def behave(connection: socket.socket, _: threading.Event) -> None:
        if request := read_request(connection):
            seen.add(request.partition(b"\r\n\r\n")[2])
            connection.sendall(OK)

    with HostileReceiver(behave) as receiver:
        rig = rigged(webhook=receiver.url, initial_backoff=3600.0, give_up_after=10_000)
        rig.deliver(*(event() for _ in range(100)))
    assert len(seen) == 100
    assert {result for _, result, _ in rig.results} == {"delivered"}
    stale = {(span.attributes or {}).get("error.type") for span in rig.named("POST")} - {None}
    of_httpx = {"ReadError", "RemoteProtocolError"}
    of_aiohttp = {"ClientConnectionResetError", "ClientOSError", "ServerDisconnectedError"}
    assert stale <= {"BrokenPipeError", "ConnectionResetError"} | of_httpx | of_aiohttp


def test_a_disabled_endpoint_gets_nothing_more_from_a_busy_application(
    rigged: NewRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that ends just after the waiting deliveries were discarded is discarded, too."""
    script = Script(failed(410, directive="disable"), DELIVERED)
    rig = rigged(script)
    store = rig.worker._runner().store
    usual, late = store.claim_older, iter(["late"])

    def claim_older(age: float) -> list[Delivery]:
        found = usual(age)
        if script.posts and not script.in_flight:
            for step_id in late:
                store.put(event(step_id), rig.pipeline)
        return found

    monkeypatch.setattr(store, "claim_older", claim_older)
    rig.deliver(event("first"))
    wait_until(lambda: len(rig.results) == 2)
    assert rig.results == [("first", "discarded", "410"), ("late", "discarded", "endpoint_disabled")]
    assert len(script.posts) == 1


def test_another_system_takes_a_delivery_over(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """A success without a status is a handover: the span is left to the system that owns the delivery from then on."""
    caplog.set_level("INFO", "otel_step_hook")
    rig = rigged(Script(AttemptResult()))
    rig.deliver(event("step-1"))
    assert rig.results == []
    assert [line.split(" (")[0] for line in caplog.messages] == [
        "handed step step-1 over to the receiver http://receiver.test"
    ]
    caplog.clear()
    caplog.set_level("WARNING", "otel_step_hook")
    rig.deliver()
    assert caplog.messages == []


def test_a_process_in_which_no_attempt_can_succeed(rigged: NewRig) -> None:
    """After the first result that says so no attempt begins any more; what waits in memory is discarded."""
    script = Script(AttemptResult(error_type="ForkedError", is_hopeless=True))
    rig = rigged(script, concurrency=2)
    rig.deliver(*(event() for _ in range(20)))
    assert [result[1:] for result in rig.results] == [("discarded", "ForkedError")] * 20
    assert len(script.posts) == 2
    rig.deliver()
    assert len(script.posts) == 2
