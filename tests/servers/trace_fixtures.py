"""A fixture with the real Jaeger behind the real Collector."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from servers.build import binary
from servers.running import accepts, free_ports, running
from servers.traces import Servers

_ROOT = Path(__file__).resolve().parents[2]
_ENDPOINTS = (
    "JAEGER_QUERY_HTTP_ENDPOINT",
    "JAEGER_QUERY_GRPC_ENDPOINT",
    "JAEGER_OTLP_GRPC_ENDPOINT",
    "JAEGER_OTLP_HTTP_ENDPOINT",
    "COLLECTOR_OTLP_GRPC_ENDPOINT",
    "COLLECTOR_OTLP_HTTP_ENDPOINT",
)


def _free_endpoints() -> dict[str, str]:
    ports = free_ports(len(_ENDPOINTS))
    return {name: f"127.0.0.1:{port}" for name, port in zip(_ENDPOINTS, ports, strict=True)}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Jaeger and the Collector. Jaeger starts first: without it, the Collector logs warnings."""
    logs, endpoints = tmp_path_factory.mktemp("servers"), _free_endpoints()
    servers = Servers(
        otlp=f"http://{endpoints['COLLECTOR_OTLP_HTTP_ENDPOINT']}",
        jaeger=f"http://{endpoints['JAEGER_QUERY_HTTP_ENDPOINT']}",
        collector_log=logs / "collector.log",
    )
    jaeger: list[str | Path] = [binary("jaeger"), "--config", _ROOT / "tests/servers/jaeger.yaml"]
    collector: list[str | Path] = [binary("collector"), "--config", _ROOT / "collector-config.yaml"]
    with running(jaeger, logs / "jaeger.log", endpoints) as first:
        first.wait_until("Jaeger listens", lambda: accepts(endpoints["JAEGER_QUERY_HTTP_ENDPOINT"]))
        first.wait_until("Jaeger receives", lambda: accepts(endpoints["JAEGER_OTLP_GRPC_ENDPOINT"]))
        with running(collector, servers.collector_log, endpoints) as second:
            second.wait_until("the Collector listens", lambda: accepts(endpoints["COLLECTOR_OTLP_HTTP_ENDPOINT"]))
            yield servers
