"""The Python code of the documentation, by what a receiver gets when a step ends."""

import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from documentation import KEY, Block, claim
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

from otel_step_hook import StepHookProcessor
from otel_step_hook.testing import ScriptedReceiver

_ONE_LINE = [
    (claim(page, "provider.add_span_processor(StepHookProcessor())"), claim(page, 'start_as_current_span("search"'))
    for page in ("README.md", "docs/start.md")
]
_ENDPOINTS = claim("docs/settings.md", 'EndpointSettings(name="billing"')
_OWN_RULE = claim("docs/frameworks.md", "is_step=lambda span:")
_OWN_PROFILE = claim("docs/frameworks.md", "PROFILE = Profile(")
_ENTRY_POINT = claim("docs/frameworks.md", "[project.entry-points.otel_step_hook_profiles]")
_SAMPLER = claim("docs/sampling.md", "TracerProvider(sampler=StepSampler(")
_FASTAPI = claim("docs/receivers.md", "FastAPI()")
_SCRIPTED = claim("docs/receivers.md", "with ScriptedReceiver() as receiver")


@pytest.fixture
def webhook(step_receiver: ScriptedReceiver, monkeypatch: pytest.MonkeyPatch) -> ScriptedReceiver:
    """A receiver that ``STEP_COMPLETE_WEBHOOK`` names, with a key."""
    monkeypatch.setenv("STEP_COMPLETE_WEBHOOK", step_receiver.url)
    monkeypatch.setenv("STEP_COMPLETE_KEY", KEY)
    return step_receiver


@pytest.fixture
def provider_with() -> Iterator[Callable[[object], TracerProvider]]:
    """Makes a provider with this hook, which is shut down at the end."""
    with ExitStack() as stack:

        def make(hook: object) -> TracerProvider:
            assert isinstance(hook, StepHookProcessor)
            provider = TracerProvider(shutdown_on_exit=False)
            provider.add_span_processor(hook)
            stack.callback(provider.shutdown)
            return provider

        yield make


NewProvider = Callable[[object], TracerProvider]


@pytest.mark.parametrize(("register", "work"), _ONE_LINE, ids=["README", "start"])
def test_the_one_line_sends_a_step(register: Block, work: Block, webhook: ScriptedReceiver) -> None:
    """The span of the loop reaches the webhook of the environment, with the body and the key that the text names."""
    names = work.execute(register.execute())
    provider = names["provider"]
    assert isinstance(provider, TracerProvider)
    provider.shutdown()
    (received,) = webhook.received
    assert received.body == b'{"step_id": "step-42"}'
    assert received.headers["authorization"] == f"Bearer {KEY}"


def test_endpoints_of_a_program_get_each_its_own(provider_with: NewProvider) -> None:
    """One receiver gets its key and the step id, the other no key and the full body."""
    with ScriptedReceiver() as billing, ScriptedReceiver() as audit:
        names = _ENDPOINTS.at(
            {"https://billing.example.com/hooks/steps": billing.url, "https://audit.example.com/hooks": audit.url}
        ).execute()
        provider = provider_with(names["hook"])
        provider.get_tracer("my.agent").start_span("search", attributes={"step_id": "step-42"}).end()
        assert provider.force_flush()
        (billed,), (audited,) = billing.received, audit.received
    assert (billed.headers["authorization"], billed.body) == ("Bearer the-key-of-billing", b'{"step_id": "step-42"}')
    assert "authorization" not in audited.headers
    assert (audited.step_id, audited.data["outcome"]) == ("step-42", "success")


def test_an_own_rule_replaces_all_others(webhook: ScriptedReceiver, provider_with: NewProvider) -> None:
    """Spans of that name are sent; one with a step id and another name is not."""
    provider = provider_with(_OWN_RULE.execute()["hook"])
    tracer = provider.get_tracer("my.agent")
    tracer.start_span("search", attributes={"step_id": "step-42"}).end()
    tracer.start_span("running tool", attributes={"step_id": "step-43"}).end()
    assert provider.force_flush()
    assert [one.step_id for one in webhook.received] == ["step-43"]


def test_an_own_profile_recognises_its_spans(
    webhook: ScriptedReceiver, provider_with: NewProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By kind, with id and outcome from the attributes; what waits is not sent, and other profiles still count."""
    monkeypatch.setenv("STEP_COMPLETE_PAYLOAD", "full")
    provider = provider_with(_OWN_PROFILE.execute()["hook"])
    tracer = provider.get_tracer("my_framework.tracing")
    for number, state in enumerate(("done", "stopped", "waiting")):
        unit: dict[str, str] = {"my.kind": "unit", "my.unit.id": f"unit-{number}", "my.state": state}
        tracer.start_span("run", attributes=unit).end()
    tracer.start_span("run", attributes={"my.kind": "other"}).end()
    provider.get_tracer("elsewhere").start_span("search", attributes={"step_id": "step-42"}).end()
    assert provider.force_flush()
    assert sorted((one.step_id, one.data["outcome"]) for one in webhook.received) == [
        ("step-42", "success"),
        ("unit-0", "success"),
        ("unit-1", "cancelled"),
    ]


def test_a_package_ships_its_profile(
    webhook: ScriptedReceiver, provider_with: NewProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is installed its spans are recognised, and its name selects it."""
    groups = tomllib.loads(_ENTRY_POINT.text)["project"]["entry-points"]
    ((name, target),) = groups["otel_step_hook_profiles"].items()
    module = tmp_path.joinpath(*target.partition(":")[0].split(".")).with_suffix(".py")
    module.parent.mkdir()
    module.write_text(_OWN_PROFILE.text.partition("hook = ")[0])
    metadata = tmp_path / "my_framework-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-framework\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[otel_step_hook_profiles]\n{name} = {target}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    provider = provider_with(StepHookProcessor(profiles=name))
    unit: dict[str, str] = {"my.kind": "unit", "my.unit.id": "unit-1"}
    provider.get_tracer("my_framework.tracing").start_span("run", attributes=unit).end()
    assert provider.force_flush()
    assert [one.step_id for one in webhook.received] == ["unit-1"]


class _SpreadIds(RandomIdGenerator):
    """Trace ids at equal distances, one of ten in the lowest tenth, which `TraceIdRatioBased` samples."""

    def __init__(self) -> None:
        self._count = 0

    def generate_trace_id(self) -> int:
        self._count += 1
        return (1 << 64) + (2 * (self._count % 10) + 1) * (1 << 64) // 20


def test_the_sampler_exports_a_tenth_and_sends_every_step(webhook: ScriptedReceiver) -> None:
    """Of 20 traces 2 are exported; the webhook gets all 20 steps."""
    names = _SAMPLER.execute()
    provider, exporter = names["provider"], InMemorySpanExporter()
    assert isinstance(provider, TracerProvider)
    provider.id_generator = _SpreadIds()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.add_span_processor(StepHookProcessor())
    tracer = provider.get_tracer("my.agent")
    for number in range(20):
        tracer.start_span("search", attributes={"step_id": f"step-{number}"}).end()
    provider.shutdown()
    assert len(webhook.received) == 20
    assert [span.name for span in exporter.get_finished_spans()].count("search") == 2


@pytest.mark.anyio
async def test_the_receiver_checks_the_key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It answers 401 without the right key, 400 to what is no step, and success otherwise."""
    monkeypatch.setenv("STEP_COMPLETE_KEY", KEY)
    transport = httpx.ASGITransport(_FASTAPI.execute()["app"])  # type: ignore[arg-type]  # -- an application it is
    authorized = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://receiver") as client:
        refused = await client.post("/hooks/steps", json={"step_id": "step-1"})
        malformed = await client.post("/hooks/steps", content=b"nothing", headers=authorized)
        accepted = await client.post("/hooks/steps", json={"step_id": "step-1"}, headers=authorized)
    assert [answer.status_code for answer in (refused, malformed, accepted)] == [401, 400, 200]
    assert accepted.json() == {"status": "success"}
    assert capsys.readouterr().out == "step step-1 has ended; webhook None\n"


def test_the_test_of_an_application_passes() -> None:
    """It sends a step, which is refused and sent again."""
    test = _SCRIPTED.execute()["test_a_refused_step_is_sent_again"]
    assert callable(test)
    test()
