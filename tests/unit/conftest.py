"""What the unit tests share: pipelines whose hooks send to `step_receiver`, a resolver, and an authority."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import support
from opentelemetry.trace import Tracer, format_trace_id
from sending import Names, authority
from support import NewPipeline, Pipeline

from otel_step_hook.cli.demo import AgentRun
from otel_step_hook.steps.event import Outcome
from otel_step_hook.testing import ScriptedReceiver

_IF_INET6 = Path("/proc/net/if_inet6")  # one line per address: address, interface's index, prefix, scope, flags, name
_LINK_SCOPE = "20"
_TENTATIVE = 0x40  # a flag: the kernel still asks whether another machine has the same address


@pytest.fixture
def pipeline(step_receiver: ScriptedReceiver) -> Iterator[NewPipeline]:
    """Makes pipelines with the given settings, and shuts them down at the end."""
    with ExitStack() as made:
        yield lambda url=step_receiver.url, **options: made.enter_context(support.pipeline(url, **options))


@pytest.fixture
def hooked(pipeline: NewPipeline) -> Pipeline:
    """A pipeline with the default settings."""
    return pipeline()


@pytest.fixture
def short_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the demo's agent, whose steps take two seconds, by one that ends one step at once."""

    async def agent(tracer: Tracer) -> AgentRun:
        with tracer.start_as_current_span("weekend in Lisbon") as workflow:
            tracer.start_span("plan", attributes={"step_id": "step-1-plan"}).end()
        return AgentRun(format_trace_id(workflow.get_span_context().trace_id), {"step-1-plan": Outcome.SUCCESS})

    monkeypatch.setattr("otel_step_hook.cli.demo.agent", agent)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """A scripted resolver in place of the system's, which cannot be made to ask a name server of this test."""
    known = Names()
    monkeypatch.setattr(socket, "getaddrinfo", known.getaddrinfo)
    return known


@pytest.fixture
def trusted(tmp_path: Path) -> str:
    """The path of a PEM file with the certificate of `authority`."""
    path = tmp_path / "authority.pem"
    authority().cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
def linked() -> tuple[str, str]:
    """A link-local address of this machine, and the name of its interface."""
    lines = _IF_INET6.read_text().splitlines() if _IF_INET6.exists() else []
    for address, _, _, scope, flags, interface in map(str.split, lines):
        if scope == _LINK_SCOPE and not int(flags, 16) & _TENTATIVE:
            return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(address)), interface
    pytest.skip("no interface of this machine has a link-local IPv6 address")
