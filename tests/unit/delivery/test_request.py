"""What goes over the wire: webhook id, body, headers."""

import base64
import dataclasses
import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from delivering import event
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import SpanContext
from sending import endpoint_to
from standardwebhooks.webhooks import Webhook

from otel_step_hook import __version__
from otel_step_hook.delivery.model import Headers
from otel_step_hook.delivery.request import attempt_headers, body, webhook_id
from otel_step_hook.steps.event import Outcome, StepEvent

SECRETS = ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")
STEP = StepEvent(
    step_id="step-01234567-89ab-cdef-0123-456789abcdef",
    outcome=Outcome.SUCCESS,
    name="agent_step",
    context=SpanContext(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, is_remote=False),
    start_time=1_700_000_000_123_456_789,
    end_time=1_700_000_001_999_999_999,
)


# The webhook id


def test_the_webhook_id_never_changes() -> None:
    """A step has the same webhook id in every version, process and machine: receivers deduplicate by it."""
    assert webhook_id(STEP) == "msg_n6oef2ufzkxnn7ymrwtdsc23xeak7eet"


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(STEP, step_id="step-2"),
        dataclasses.replace(STEP, outcome=Outcome.FAILED),
        dataclasses.replace(STEP, context=SpanContext(1, STEP.context.span_id, is_remote=False)),
        dataclasses.replace(STEP, context=SpanContext(STEP.context.trace_id, 1, is_remote=False)),
    ],
)
def test_another_step_span_or_outcome_has_another_id(other: StepEvent) -> None:
    """The webhook id depends on the step id, the outcome, the trace id and the span id."""
    assert webhook_id(other) != webhook_id(STEP)


def test_name_and_times_are_not_part_of_the_id() -> None:
    """A step that is reported again with another name and other times has the same webhook id."""
    again = dataclasses.replace(STEP, name="other", start_time=0, end_time=1)
    assert webhook_id(again) == webhook_id(STEP)


@given(st.text(st.characters(), max_size=50))
def test_any_step_id_makes_a_proper_webhook_id(step_id: str) -> None:
    """A webhook id has letters and digits and no dot, as Standard Webhooks asks, and nothing of the user's text."""
    assert re.fullmatch("msg_[a-z2-7]{32}", webhook_id(event(step_id)))


# The body


@pytest.mark.parametrize("outcome", list(Outcome))
def test_the_body_is_exactly_the_step_id(outcome: Outcome) -> None:
    """The specification's payload holds only the step id, and is the same for all outcomes."""
    content = body(dataclasses.replace(STEP, outcome=outcome), "step_id")
    assert content == b'{"step_id": "step-01234567-89ab-cdef-0123-456789abcdef"}'


def test_the_full_body_describes_the_step() -> None:
    """The full payload has the same step id, and type, timestamp and data as Standard Webhooks defines them."""
    assert json.loads(body(STEP, "full")) == {
        "step_id": STEP.step_id,
        "type": "step.success",
        "timestamp": "2023-11-14T22:13:21.999999Z",
        "data": {
            "step_id": STEP.step_id,
            "outcome": "success",
            "name": "agent_step",
            "trace_id": "0af7651916cd43dd8448eb211c80319c",
            "span_id": "b7ad6b7169203331",
            "started_at": "2023-11-14T22:13:20.123456Z",
            "ended_at": "2023-11-14T22:13:21.999999Z",
        },
    }


@given(st.text(st.characters(), max_size=50), st.sampled_from(["step_id", "full"]))
def test_any_step_id_survives_the_wire(step_id: str, payload: str) -> None:
    """A receiver reads back any step id from a body that is plain ASCII."""
    content = body(event(step_id, name=step_id), payload)
    assert content.isascii()
    assert json.loads(content)["step_id"] == step_id


@pytest.mark.parametrize(
    ("text", "arrived"),
    [
        ("\ud800", "\\ud800"),
        ("a\udfff\ud800b", "a\\udfff\\ud800b"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\ud83d\U0001f600", "\\ud83d\U0001f600"),
        ("\\ud800", "\\ud800"),
        ("\\\ud800", "\\\\ud800"),
        ("\ud800\\ude00", "\\ud800\\ude00"),
        ('\\\\ud83d\\ude00 \u00fc\n"\ue000', '\\\\ud83d\\ude00 \u00fc\n"\ue000'),
    ],
)
@pytest.mark.parametrize("payload", ["step_id", "full"])
def test_a_lone_surrogate_is_written_out(text: str, arrived: str, payload: str) -> None:
    """Half a character becomes its escape as text, in step id, name and details; all other text stays as it is."""
    content = json.loads(body(event(text, name=text, details={text: text}), payload))
    assert content["step_id"] == arrived
    if payload == "full":
        assert (content["data"]["name"], content["data"][arrived]) == (arrived, arrived)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@given(st.integers(0, 253_402_300_799_999_999_999))
def test_any_time_is_written_to_the_microsecond(nanoseconds: int) -> None:
    """No digit is lost to floats, up to the last time that can be written."""
    timestamp = json.loads(body(event(end_time=nanoseconds), "full"))["timestamp"]
    assert datetime.fromisoformat(timestamp) - _EPOCH == timedelta(microseconds=nanoseconds // 1000)


@pytest.mark.parametrize(
    ("end_time", "timestamp"),
    [
        (-1, "1970-01-01T00:00:00.000000Z"),
        (10**30, "9999-12-31T23:59:59.999999Z"),
        (1_700_000_000_000_000_000.0, "2023-11-14T22:13:20.000000Z"),
        (1_700_000_000.5, "1970-01-01T00:00:01.700000Z"),  # seconds, where nanoseconds were meant
    ],
)
def test_an_invalid_time_is_written_as_the_nearest_valid_one(end_time: float, timestamp: str) -> None:
    """The SDK accepts any number as the end of a span, and the webhook is sent all the same."""
    assert json.loads(body(event(end_time=end_time), "full"))["timestamp"] == timestamp


@pytest.mark.parametrize(("name", "text"), [(b"bytes", "b'bytes'"), (7, "7"), (None, "None")])
def test_a_name_of_any_type_is_written_as_text(name: object, text: str) -> None:
    """The SDK accepts any object as the name of a span."""
    assert json.loads(body(event(name=name), "full"))["data"]["name"] == text


# The headers


def headers_of(message_id: str = "msg_a", content: bytes = b"{}", timestamp: int = 1, **settings: object) -> Headers:
    """The headers of one attempt at an endpoint with these settings."""
    endpoint = endpoint_to(**({"url": "https://receiver.test/hook"} | settings))  # type: ignore[arg-type]  # -- a URL
    return attempt_headers(endpoint, message_id, content, timestamp=timestamp, trace=[("traceparent", "00-a-b-01")])


def test_every_webhook_has_these_headers() -> None:
    """Without key and secret the headers give the type, the sender, the webhook id, the time and the trace."""
    assert headers_of(timestamp=1_700_000_000) == [
        ("content-type", "application/json"),
        ("user-agent", f"otel-step-hook/{__version__}"),
        ("accept", "*/*"),
        ("accept-encoding", "identity"),
        ("webhook-id", "msg_a"),
        ("webhook-timestamp", "1700000000"),
        ("traceparent", "00-a-b-01"),
    ]


def test_the_key_is_sent_as_a_bearer_token() -> None:
    """STEP_COMPLETE_KEY is sent as the specification says."""
    assert ("authorization", "Bearer sekret") in headers_of(key="sekret")


@pytest.mark.parametrize(
    ("user_info", "pair"),
    [("user:pass", "user:pass"), ("user", "user:"), (":pass", ":pass"), ("a%40b:c%2F%C3%A9", "a@b:c/é")],
)
def test_user_information_is_sent_as_basic_authorization(user_info: str, pair: str) -> None:
    """The text before the @ of the URL is decoded, and sent as HTTP defines it."""
    headers = dict(headers_of(url=f"https://{user_info}@receiver.test/hook"))
    scheme, _, credentials = headers["authorization"].partition(" ")
    assert (scheme, base64.b64decode(credentials).decode()) == ("Basic", pair)


def test_extra_headers_are_sent() -> None:
    """STEP_COMPLETE_HEADERS come after our own headers, with their values decoded."""
    assert headers_of(headers="x-tenant=a%20b,x-other=c")[4:6] == [("x-tenant", "a b"), ("x-other", "c")]


def test_every_secret_of_a_rotation_signs() -> None:
    """A receiver that knows the old or the new secret verifies the same request; each timestamp is signed anew."""
    now, content, secrets = int(datetime.now(UTC).timestamp()), body(STEP, "step_id"), " ".join(SECRETS)
    headers = dict(headers_of(content=content, timestamp=now, signing_secret=secrets))
    for secret in SECRETS:
        Webhook(secret).verify(content, headers)
    later = dict(headers_of(content=content, timestamp=now + 1, signing_secret=secrets))
    assert later["webhook-signature"] != headers["webhook-signature"]
