"""One hook, several receivers: each gets its own webhooks, and none waits for another."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from delivering import AT_ONCE, WAIT, seconds, wait_until
from opentelemetry.sdk.trace import TracerProvider
from sending import silent
from support import NewPipeline, Pipeline, log_lines

from otel_step_hook import ConfigurationError, EndpointSettings, StepHookProcessor, StepHookSettings
from otel_step_hook.testing import Answer, HostileReceiver, ScriptedReceiver

KEY = "sekret-7f3a9c"


@pytest.fixture
def receivers() -> Iterator[list[ScriptedReceiver]]:
    """Three receivers that are running."""
    with ExitStack() as running:
        yield [running.enter_context(ScriptedReceiver()) for _ in range(3)]


def several(pipeline: NewPipeline, *endpoints: Mapping[str, object], **settings: object) -> Pipeline:
    """A pipeline whose hook has these endpoints."""
    return pipeline(None, endpoints=[EndpointSettings(**one) for one in endpoints], **settings)


def test_each_receiver_has_its_own_settings(pipeline: NewPipeline, receivers: list[ScriptedReceiver]) -> None:
    """Key, payload and outcomes are each receiver's own; the webhook id of a step is the same for all."""
    billing, audit, failures = receivers
    hooked = several(
        pipeline,
        {"name": "billing", "webhook": billing.url, "key": KEY},
        {"name": "audit", "webhook": audit.url, "payload": "full"},
        {"name": "failures", "webhook": failures.url, "outcomes": "failed"},
    )
    hooked.end_step("good")
    hooked.end_step("bad", **{"step.status": "failed"})
    assert [one.step_id for one in billing.received] == [one.step_id for one in audit.received] == ["good", "bad"]
    assert [one.step_id for one in failures.received] == ["bad"]
    assert {one.headers.get("authorization") for one in billing.received} == {f"Bearer {KEY}"}
    assert not any("authorization" in one.headers for one in (*audit.received, *failures.received))
    assert json.loads(billing.received[0].body) == {"step_id": "good"}
    assert json.loads(audit.received[1].body)["type"] == "step.failed"
    assert len({one.received[-1].headers["webhook-id"] for one in receivers}) == 1


def test_the_trace_names_the_endpoint_of_each_delivery(
    pipeline: NewPipeline, receivers: list[ScriptedReceiver]
) -> None:
    """A step has a delivery span for each endpoint, with the endpoint's name on it and on its attempts."""
    one, other, _ = receivers
    one.answers(503)
    hooked = several(pipeline, {"name": "one", "webhook": one.url}, {"name": "other", "webhook": other.url})
    hooked.end_step()
    (step,), deliveries = hooked.named("step"), hooked.named("step_hook.deliver")
    assert {span.parent and span.parent.span_id for span in deliveries} == {step.context.span_id}
    assert len({span.context.span_id for span in deliveries}) == 2
    attempts = [(span.attributes or {})["step_hook.endpoint"] for span in hooked.named("POST")]
    assert sorted(map(str, attempts)) == ["one", "one", "other"]
    by_name = {str((span.attributes or {})["step_hook.endpoint"]): span.context.span_id for span in deliveries}
    for span in hooked.named("POST"):
        name = str((span.attributes or {})["step_hook.endpoint"])
        assert span.parent is not None
        assert span.parent.span_id == by_name[name]


def test_no_receiver_waits_for_another(
    pipeline: NewPipeline, closed_port: int, receivers: list[ScriptedReceiver]
) -> None:
    """Endpoints that hang, are down or are disabled do not delay a healthy one."""
    off, healthy, _ = receivers
    off.answers(Answer(410, {"webhook-delivery": "disable"}))
    with HostileReceiver(silent) as hanging:
        hooked = several(
            pipeline,
            {"name": "hanging", "webhook": hanging.url, "timeout": 60},
            {"name": "down", "webhook": f"http://127.0.0.1:{closed_port}/"},
            {"name": "off", "webhook": off.url},
            {"name": "healthy", "webhook": healthy.url},
            concurrency=1,
            shutdown_timeout=3.0,
        )
        for number in range(50):
            hooked.tracer.start_span("step", attributes={"step_id": f"step-{number}"}).end()
        healthy.wait_for(50, WAIT)
        wait_until(lambda: len([one for one in hooked.named("step_hook.deliver") if named(one, "off")]) == 50)
        hooked.hook.shutdown()
        # A tenth of 3 s may be too short to record what is discarded.
        wait_until(lambda: len(hooked.named("step_hook.deliver")) == 200)
    assert len(off.received) == 1
    results = [(one.attributes or {})["step_hook.result"] for one in hooked.named("step_hook.deliver")]
    assert (results.count("delivered"), results.count("discarded")) == (50, 150)


def named(span: object, endpoint: str) -> bool:
    """Whether *span* belongs to a delivery to *endpoint*."""
    return bool(getattr(span, "attributes", {}).get("step_hook.endpoint") == endpoint)


def test_flush_and_shutdown_wait_for_all_endpoints_at_once(
    pipeline: NewPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    """Six receivers that hang cost one timeout, not six; the endpoints that are late are logged."""
    caplog.set_level(logging.DEBUG, "otel_step_hook")
    with ExitStack() as running, ScriptedReceiver() as quick:
        hanging = [running.enter_context(HostileReceiver(silent)) for _ in range(6)]
        hooked = several(
            pipeline,
            *({"name": f"hanging-{number}", "webhook": one.url} for number, one in enumerate(hanging)),
            {"name": "quick", "webhook": quick.url},
            shutdown_timeout=2.0,
        )
        hooked.tracer.start_span("step", attributes={"step_id": "step-1"}).end()
        quick.wait_for(1, WAIT)
        assert not hooked.hook.force_flush(4000)  # of which it takes half
        late = [line for line in log_lines(caplog) if "force_flush" in line]
        assert late == [
            "DEBUG force_flush: deliveries to hanging-0, hanging-1, hanging-2, hanging-3, hanging-4, hanging-5 go on"
        ]
        assert seconds(hooked.hook.shutdown) < 2.0 + AT_ONCE < 6 * 2.0
    wait_until(lambda: len(hooked.named("step_hook.deliver")) == 7)


def test_two_receivers_may_have_one_url(pipeline: NewPipeline, step_receiver: ScriptedReceiver) -> None:
    """Endpoints of different names and the same URL each have their webhook, key and span."""
    hooked = several(
        pipeline,
        {"name": "tenant-a", "webhook": step_receiver.url, "key": "a"},
        {"name": "tenant-b", "webhook": step_receiver.url, "key": "b"},
    )
    hooked.end_step()
    assert sorted(one.headers["authorization"] for one in step_receiver.received) == ["Bearer a", "Bearer b"]
    assert len({span.context.span_id for span in hooked.named("step_hook.deliver")}) == 2


def test_no_path_of_a_url_is_in_a_span_or_a_log_line(
    pipeline: NewPipeline, closed_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A URL's path may hold a secret, like Slack's, so that spans and log lines have the endpoint's name."""
    caplog.set_level(logging.DEBUG)
    urls = f"http://127.0.0.1:{closed_port}/{KEY}/a http://127.0.0.1:{closed_port}/{KEY}/b?token={KEY}"
    hooked = pipeline(urls, give_up_after=0.1)
    hooked.end_step()
    names = {str((one.attributes or {})["step_hook.endpoint"]) for one in hooked.named("step_hook.deliver")}
    assert len(names) == 2
    assert all(name.startswith("127.0.0.1-") for name in names)
    assert all(any(name in line for line in log_lines(caplog)) for name in names)
    shown = "".join(span.to_json() for span in hooked.spans)
    assert KEY not in shown
    assert KEY not in caplog.text


def test_endpoints_are_read_from_a_file(
    step_receiver: ScriptedReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STEP_COMPLETE_ENDPOINTS alone configures an endpoint for each table, with the key that it names."""
    path = tmp_path / "steps.toml"
    path.write_text(
        f'[[endpoint]]\nname = "one"\nwebhook = "{step_receiver.url}"\nkey_env = "ONES_KEY"\n'
        f'[[endpoint]]\nname = "two"\nwebhook = "{step_receiver.url}?two"\n',
        encoding="utf-8",
    )
    monkeypatch.setenv("STEP_COMPLETE_ENDPOINTS", str(path))
    monkeypatch.setenv("ONES_KEY", KEY)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(StepHookProcessor())
    provider.get_tracer("tests").start_span("step", attributes={"step_id": "step-1"}).end()
    provider.shutdown()
    assert [one.headers.get("authorization") for one in step_receiver.received].count(f"Bearer {KEY}") == 1
    assert len(step_receiver.received) == 2


# The constructor


def test_settings_may_be_given_by_name(step_receiver: ScriptedReceiver) -> None:
    """A URL, settings by their names, and a StepHookSettings make the same hook."""
    for hook in (
        StepHookProcessor(step_receiver.url, key=KEY),
        StepHookProcessor(webhook=step_receiver.url, key=KEY),
        StepHookProcessor(StepHookSettings(webhook=step_receiver.url, key=KEY)),
    ):
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(hook)
        provider.get_tracer("tests").start_span("step", attributes={"step_id": "step-1"}).end()
        provider.shutdown()
    assert [one.headers["authorization"] for one in step_receiver.received] == [f"Bearer {KEY}"] * 3


@pytest.mark.parametrize(
    ("given", "settings", "sentence"),
    [
        ("https://receiver.test/", {"webhook": "https://receiver.test/"}, "webhook is given twice"),
        ("https://receiver.test/", {"kye": KEY}, "kye is not a setting; did you mean key?"),
        ("receiver.test", {}, "STEP_COMPLETE_WEBHOOK has no scheme; expected"),
        (StepHookSettings(), {"key": KEY}, "a StepHookSettings, and beside it key; put all into one"),
    ],
)
def test_contradictory_arguments_are_refused(given: object, settings: dict[str, object], sentence: str) -> None:
    """The error says what to do, and shows no secret."""
    with pytest.raises(ConfigurationError, match=sentence) as refused:
        StepHookProcessor(given, **settings)  # type: ignore[arg-type]  # -- refused
    assert KEY not in str(refused.value)
