"""The commands about Jaeger and the Collector: the demo's trace arrives there."""

import json
import re
import socket

import pytest
from documentation import Block, bash, claim

_ASK = "http://127.0.0.1:16686/api/traces?service=travel-agent"
_PORTS = (4317, 4318, 14317, 14318, 16685, 16686)  # the commands name some, the files of servers the rest
_JAEGER = claim("docs/jaeger.md", "--print jaeger")
_COLLECTOR = claim("docs/jaeger.md", "--print collector")
_DOCKER = claim("docs/jaeger.md", "docker run")


@pytest.fixture
def _free_ports() -> None:
    """Somebody else's server would answer in place of ours."""
    for port in _PORTS:
        with socket.socket() as trial:
            assert trial.connect_ex(("127.0.0.1", port)) != 0, f"something listens on port {port} already; end it first"


def _exported(output: str) -> str:
    found = re.search(r"^Exported trace ([0-9a-f]{32}); ", output, re.MULTILINE)
    assert found is not None, output
    return found.group(1)


@pytest.mark.servers
@pytest.mark.usefixtures("_free_ports")
def test_the_demo_arrives_in_jaeger() -> None:
    """Jaeger shows the trace that the demo has exported."""
    # While the server is still there: it ends with the block.
    ask = f"python -c 'import httpx; print(httpx.get(\"{_ASK}\").raise_for_status().text)'\n"
    output = bash(f"{_JAEGER.text}\n{ask}")
    traces = json.loads(output.splitlines()[-1])["data"]
    assert [trace["traceID"] for trace in traces] == [_exported(output)]


@pytest.mark.servers
@pytest.mark.usefixtures("_free_ports")
def test_the_demo_arrives_in_the_collector() -> None:
    """The Collector of the repository takes the demo's trace."""
    _exported(bash(_COLLECTOR.text))


def test_the_container_has_the_ports_that_the_demo_uses() -> None:
    """No container engine is here: the port published for OTLP is the one of the endpoint below."""
    assert _is_consistent(_DOCKER)


def _is_consistent(block: Block) -> bool:
    published = re.findall(r"--publish (\d+):\d+", block.text)
    used = re.search(r"OTEL_EXPORTER_OTLP_ENDPOINT=http://127\.0\.0\.1:(\d+) make demo", block.text)
    return used is not None and used.group(1) in published and "16686" in published
