"""What is logged of deliveries, at which level; and what never shows, in logs or in spans."""

import base64
import logging
import re
import socket
import threading

import pytest
from dispatching import DELIVERED, ONE_ATTEMPT, Script, event, failed, rigged
from sending import SHORT, answering
from support import Pipeline, pipeline

from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.testing import Answer, HostileReceiver, ScriptedReceiver, read_request

KEY = "sekret-7f3a9c"


def ours(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Level and message of each line of ours."""
    return [(record.levelname, record.message) for record in caplog.records if record.name == "otel_step_hook"]


# Levels, as the specification's table has them


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("result", "level"),
    [
        (AttemptResult(status_code=200), "INFO"),
        (AttemptResult(status_code=299), "INFO"),
        (AttemptResult(error_type="timeout"), "WARNING"),
        (failed(302), "WARNING"),
        (failed(410), "WARNING"),
        (failed(503), "WARNING"),
        (failed(999), "WARNING"),
        (AttemptResult(error_type="ConnectionRefusedError"), "ERROR"),
        (AttemptResult(error_type="SSLCertVerificationError"), "ERROR"),
        (AttemptResult(error_type="gaierror"), "ERROR"),
    ],
)
async def test_every_line_has_the_level_of_the_table(
    result: AttemptResult, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    """2xx: info. Timeout and any other status: warning. Any other error: error. The last word too."""
    caplog.set_level(logging.DEBUG, "otel_step_hook")
    async with rigged(Script(result), **ONE_ATTEMPT) as rig:
        rig.submit(event("step-7"))
        await rig.done()
    lines = ours(caplog)
    assert {told for told, _ in lines} == {level}
    assert len(lines) == (1 if level == "INFO" else 2)  # the attempt, and that the step was discarded
    assert all("step-7" in message and "msg_" in message for _, message in lines)


@pytest.mark.anyio
async def test_the_levels_are_those_of_real_receivers_too(
    step_receiver: ScriptedReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """A receiver that is slow, refuses, and then accepts: two warnings and an info line."""
    caplog.set_level(logging.DEBUG, "otel_step_hook")
    step_receiver.answers(Answer(delay=5.0), 500, 200)
    async with rigged(webhook=step_receiver.url, timeout=SHORT) as rig:
        rig.submit(event("step-7"))
        await rig.done()
    (first, second, third) = ours(caplog)
    assert (first[0], second[0], third[0]) == ("WARNING", "WARNING", "INFO")
    assert re.search(r"the receiver did not answer within 0.3 s \(step step-7, webhook msg_\w+, attempt 1\)", first[1])
    assert re.search(r"the receiver answered 500 \(step step-7, webhook msg_\w+, attempt 2\)", second[1])
    assert re.search(r"delivered step step-7 \(success, webhook msg_\w+, attempt 3\)", third[1])


@pytest.mark.anyio
async def test_a_step_that_was_never_attempted_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """A step that expired in the queue is nobody's refusal: it is our own error."""
    async with rigged(Script(), give_up_after=1.0) as rig:
        rig.submit(event("step-7"), age=2.0)
        await rig.done()
    assert ours(caplog) == [("ERROR", ours(caplog)[0][1])]


@pytest.mark.anyio
async def test_trouble_that_repeats_is_told_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Fifty refusals are two lines, and two more that say how many there were."""
    async with rigged(Script(failed(503)), concurrency=1, **ONE_ATTEMPT) as rig:
        rig.submit(*(event(f"step-{number}") for number in range(50)))
        await rig.done()
        assert len(ours(caplog)) == 2  # refused, discarded
        rig.trouble.tell_rest(all_of_it=True)
    counts = [int(message.split()[0]) for _, message in ours(caplog) if "more like this" in message]
    assert counts == [49, 49]


# What never shows


def shown_of(hooked: Pipeline) -> str:
    """Everything that any exporter could show of the spans."""
    return "".join(span.to_json() for span in hooked.spans)


def test_an_answer_that_echoes_the_key_shows_it_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """Receivers' debug pages repeat the request: nothing of it gets into spans, or into anybody's log."""
    caplog.set_level(logging.DEBUG)
    echoed: list[bytes] = []

    def behave(connection: socket.socket, _: threading.Event) -> None:
        while request := read_request(connection):
            echoed.append(request)
            head = b"HTTP/1.1 %d No\r\ncontent-length: %d\r\n\r\n" % (500 if len(echoed) < 3 else 200, len(request))
            connection.sendall(head + request)

    with HostileReceiver(behave) as receiver, pipeline(receiver.url, key=KEY) as hooked:
        hooked.end_step()
    assert all(KEY.encode() in request for request in echoed)
    assert len(hooked.named("POST")) == 3
    assert KEY not in shown_of(hooked)
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 500 " + KEY.encode() + b"\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 500 No\r\nwebhook-delivery: " + KEY.encode() + b"\r\nretry-after: " + KEY.encode() + b"\r\n\r\n",
        b"HTTP/1.1 302 No\r\nlocation: http://" + KEY.encode() + b".test/\r\n\r\n",
        KEY.encode() + b" is no status line\r\n\r\n",
    ],
)
def test_a_key_anywhere_in_an_answer_shows_in_no_span_and_no_line_of_ours(
    answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither reasons nor headers nor what is no HTTP are repeated."""
    caplog.set_level(logging.DEBUG, "otel_step_hook")
    with (
        HostileReceiver(answering(answer, then_close=True)) as receiver,
        pipeline(receiver.url, is_step=None, key=KEY, **ONE_ATTEMPT) as hooked,
    ):
        hooked.end_step()
    assert hooked.named("step_hook.deliver")
    assert KEY not in shown_of(hooked)
    assert KEY not in str(ours(caplog))


def test_secrets_of_the_url_show_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """User information and query values of the endpoint get to the receiver, and to nobody else."""
    caplog.set_level(logging.DEBUG)
    requests: list[bytes] = []

    def behave(connection: socket.socket, _: threading.Event) -> None:
        while request := read_request(connection):
            requests.append(request)
            connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with HostileReceiver(behave) as receiver:
        url = receiver.url.replace("//", f"//user:{KEY}@") + f"?token={KEY}"
        with pipeline(url) as hooked:
            hooked.end_step()
    basic = base64.b64encode(f"user:{KEY}".encode())
    assert b"\r\nauthorization: Basic " + basic + b"\r\n" in requests[0]
    assert requests[0].startswith(b"POST /hook?token=" + KEY.encode())
    for told in (shown_of(hooked), caplog.text):
        assert KEY not in told
        assert basic.decode() not in told


@pytest.mark.anyio
async def test_a_result_does_not_show_what_the_receiver_said() -> None:
    """The repr of a result, which may end up anywhere, is free of the answer."""
    async with rigged(Script(AttemptResult(status_code=200, excerpt=KEY.encode()), DELIVERED)) as rig:
        rig.submit(event())
        await rig.done()
    assert KEY not in repr(AttemptResult(status_code=200, excerpt=KEY.encode()))
    assert KEY not in "".join(span.to_json() for span in rig.exporter.get_finished_spans())
