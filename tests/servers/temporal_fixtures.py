"""Fixtures of tests with workflows: the servers, which they share, and what traces the workflows."""

from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from servers.temporal import OlderTemporalServer, TemporalServer
from servers.temporal_workers import Server, Tracing
from temporalio.contrib.opentelemetry import ReplaySafeTracerProvider, create_tracer_provider


@pytest.fixture(scope="session")
def newer_temporal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TemporalServer]:
    """Temporal Server 1.32, shared by all tests that do not stop it."""
    with TemporalServer(tmp_path_factory.mktemp("newer")) as server:
        yield server


@pytest.fixture(scope="session")
def older_temporal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OlderTemporalServer]:
    """Temporal Server 1.29, shared by all tests that do not stop it."""
    with OlderTemporalServer(tmp_path_factory.mktemp("older")) as server:
        yield server


@pytest.fixture(params=["newer_temporal", "older_temporal"])
def temporal_server(request: pytest.FixtureRequest) -> Server:
    """Each of both servers."""
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["interceptor", "plugin", "none"])
def tracing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracing]:
    """Each of both instrumentations of Temporal's SDK, and none; the provider is the global one."""
    provider = TracerProvider(resource=Resource({"service.name": "tests"}), shutdown_on_exit=False)
    shown: trace.TracerProvider = provider
    if request.param == "plugin":
        ids = create_tracer_provider(shutdown_on_exit=False).id_generator()
        provider.id_generator = ids  # type: ignore[assignment]  # -- the constructor takes any
        shown = ReplaySafeTracerProvider(provider, ids)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", shown)  # trace.set_tracer_provider() works once in a process
    found = Tracing(request.param, provider)
    provider.add_span_processor(SimpleSpanProcessor(found.exporter))
    yield found
    provider.shutdown()
