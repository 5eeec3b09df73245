"""The log lines of deliveries and their levels; and that neither log lines nor spans show a secret."""

import base64
import logging
import re
import socket
import threading

import pytest
from delivering import DELIVERED, ONE_ATTEMPT, WAIT, NewRig, Script, counts, event, failed
from sending import answering
from support import Pipeline, pipeline

from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.testing import Answer, HostileReceiver, ScriptedReceiver, read_request

KEY = "sekret-7f3a9c"


def library_lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Level and message of each line that the library has logged."""
    return [(record.levelname, record.message) for record in caplog.records if record.name == "otel_step_hook"]


# Levels, as the specification's table has them


def test_every_line_has_the_level_of_the_table(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """A 2xx is info, a timeout or another status a warning, another error an error; the same if it is discarded."""
    caplog.set_level(logging.DEBUG, "otel_step_hook")
    levels = {AttemptResult(status_code=status): "INFO" for status in (200, 299)}
    levels |= {failed(status): "WARNING" for status in (302, 410, 503, 999)}
    levels |= {AttemptResult(error_type="timeout"): "WARNING"}
    errors = ("ConnectionRefusedError", "SSLCertVerificationError", "gaierror")
    levels |= {AttemptResult(error_type=error_type): "ERROR" for error_type in errors}
    wrong = {}
    for result, level in levels.items():
        rigged(Script(result), **ONE_ATTEMPT).deliver(event("step-7"))
        lines = library_lines(caplog)
        caplog.clear()
        expected = [level] * (1 if level == "INFO" else 2)  # one for the attempt, one for the discarded step
        if [found for found, _ in lines] != expected or not all(
            "step-7" in line and "msg_" in line for _, line in lines
        ):
            wrong[result] = lines
    assert wrong == {}


@pytest.mark.parametrize("client", ["httpx", pytest.param("aiohttp", marks=pytest.mark.slow)])
def test_a_receiver_that_sends_nonsense_was_reached(
    rigged: NewRig, caplog: pytest.LogCaptureFixture, client: str
) -> None:
    """The line says that the receiver has answered, and shows nothing of its bytes, which may echo the key."""
    with HostileReceiver(answering(b"SSH-2.0-" + KEY.encode() + b"\r\n", then_close=True)) as receiver:
        rigged(webhook=receiver.url, http_client=client, **ONE_ATTEMPT).deliver(event("step-7"))
    (level, line), _ = library_lines(caplog)
    assert level == "ERROR"
    assert " answered, but not with a status of HTTP/1.1: " in line
    assert KEY not in caplog.text


def test_the_answers_of_a_real_receiver_have_these_levels(
    rigged: NewRig, step_receiver: ScriptedReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """A receiver that is slow, refuses, and then accepts causes two warnings and an info line."""
    caplog.set_level(logging.DEBUG, "otel_step_hook")
    step_receiver.answers(Answer(delay=60.0), 500, 200)
    rig = rigged(webhook=step_receiver.url, timeout=1.0)
    rig.deliver(event("step-7"))
    (first, second, third) = library_lines(caplog)
    assert (first[0], second[0], third[0]) == ("WARNING", "WARNING", "INFO")
    ids = r"endpoint default, webhook msg_\w+"
    receiver = f"the receiver {step_receiver.url.removesuffix('/hook')}"
    slow = rf"{receiver} did not answer within 1 s; to find out why, run: otel-step-hook check"
    assert re.search(rf"{slow} \(step step-7, {ids}, attempt 1\)", first[1])
    assert re.search(rf"{receiver} answered 500 Internal Server Error \(step step-7, {ids}, attempt 2\)", second[1])
    assert re.search(rf"delivered step step-7 \(success, {ids}, attempt 3\)", third[1])


def test_a_step_that_was_never_attempted_is_an_error(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """A step that expires in the queue is logged as an error, because no receiver has refused it."""
    rig = rigged(Script(), give_up_after=1.0)
    rig.deliver(event("step-7"), age=2.0)
    assert [level for level, _ in library_lines(caplog)] == ["ERROR"]


def test_failures_that_repeat_are_logged_once_and_counted(rigged: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    """Fifty refusals are two lines, and two more with their counts."""
    rig = rigged(Script(failed(400)), concurrency=1, **ONE_ATTEMPT)
    rig.deliver(*(event() for _ in range(50)))
    assert len(library_lines(caplog)) == 2  # refused, discarded
    rig.worker.shutdown(WAIT)
    assert len(library_lines(caplog)) == 4
    assert sum(counts(caplog).values()) == 100


# Secrets


def shown_of(hooked: Pipeline) -> str:
    """The spans as JSON, with everything that an exporter could show."""
    return "".join(span.to_json() for span in hooked.spans)


def test_a_key_that_a_receiver_echoes_is_in_no_span_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """An answer that repeats the request, like a debug page, gets into no span and into no logger's lines."""
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
def test_a_key_anywhere_in_an_answer_is_in_no_span_and_no_log_line(
    answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the reason and the headers of an answer nor an answer that is no HTTP are repeated."""
    caplog.set_level(logging.DEBUG, "otel_step_hook")
    with (
        HostileReceiver(answering(answer, then_close=True)) as receiver,
        pipeline(receiver.url, is_step=None, key=KEY, **ONE_ATTEMPT) as hooked,
    ):
        hooked.end_step()
    assert hooked.named("step_hook.deliver")
    assert KEY not in shown_of(hooked)
    assert KEY not in str(library_lines(caplog))


def test_secrets_of_the_url_are_in_no_span_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """User information and query of the URL reach the receiver, and nothing else."""
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
    for text in (shown_of(hooked), caplog.text):
        assert KEY not in text
        assert basic.decode() not in text


def test_a_result_does_not_show_the_answer(rigged: NewRig) -> None:
    """Neither the repr of a result nor its spans show the receiver's answer."""
    rig = rigged(Script(AttemptResult(status_code=200, excerpt=KEY.encode()), DELIVERED))
    rig.deliver()
    assert KEY not in repr(AttemptResult(status_code=200, excerpt=KEY.encode()))
    assert KEY not in "".join(span.to_json() for span in rig.exporter.get_finished_spans())
