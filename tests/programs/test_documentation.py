"""README: its commands are run, its code is executed, its table is what the settings class says."""

import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree as ET

import httpx
import pytest
from rich.console import Console
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from otel_step_hook.cli import listen
from otel_step_hook.demo import run
from otel_step_hook.settings import StepHookSettings, endpoints_of, setting_rows
from otel_step_hook.steps.frameworks import PROFILES

_ROOT = Path(__file__).resolve().parents[2]
_README = _ROOT / "README.md"
_LIMIT = 100.0  # seconds a block may take
_LISTENS = inspect.signature(listen).parameters["port"].default
_JAEGER = "http://127.0.0.1:16686/api/traces?service=travel-agent"
_SERVER_PORTS = (4317, 4318, 14317, 14318, 16685, 16686)  # README's commands name some, the files of servers the rest


def _environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "STEP_COMPLETE_KEY": "the-key-of-this-test"}


def _run(example: Example) -> None:
    """Run a block as a person would paste it, at the top of the checkout."""
    script = example.parsed.replace("make test\n", "")  # which is what runs this test
    # Not published yet: what pip would fetch is this checkout, and this environment is not to change.
    script = script.replace("pip install otel-step-hook", "uv pip install --quiet --dry-run .")
    script = script.replace(f"127.0.0.1:{_LISTENS}", f"127.0.0.1:{example.namespace.get('_listening')}")
    _bash(script)


def _bash(script: str) -> str:
    """What *script* says; it succeeds, and what it leaves in the background is ended."""
    shell = ["bash", "-euo", "pipefail", "-c", f"trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{script}"]
    done = subprocess.run(
        shell, cwd=_ROOT, env=_environment(), capture_output=True, text=True, timeout=_LIMIT, check=False
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _blocks() -> list[Example]:
    both = Sybil([PythonCodeBlockParser(), CodeBlockParser("bash", _run)], path=str(_ROOT))
    return list(both.parse(_README).examples())


def _is_for_servers(block: Example) -> bool:
    return "tests/servers/build.py" in block.parsed


def _is_listen(block: Example) -> bool:
    return str(block.parsed).startswith("otel-step-hook listen")


def _asks_listen(block: Example) -> bool:
    return f"http://127.0.0.1:{_LISTENS}" in block.parsed


_BLOCKS = _blocks()


def _parameters(*, for_servers: bool) -> list[object]:
    return [
        pytest.param(block, id=f"line-{block.line}", marks=[pytest.mark.slow] if _asks_listen(block) else [])
        for block in _BLOCKS
        if _is_for_servers(block) is for_servers and not _is_listen(block)
    ]


@pytest.fixture(scope="module")
def listening() -> Iterator[int]:
    """What README has in its other terminal, on a free port."""
    (block,) = filter(_is_listen, _BLOCKS)
    # Not `bash -c`: the signal is for the command itself.
    command = [str(Path(sys.executable).parent / "otel-step-hook"), *block.parsed.split()[1:], "--port", "0"]
    with subprocess.Popen(
        command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            said = next((line for line in process.stdout if "STEP_COMPLETE_WEBHOOK=" in line), None)
            assert said is not None, f"it has ended, with exit status {process.wait(_LIMIT)}"
            yield int(said.rpartition(":")[2].strip("/\n"))
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=_LIMIT)
            assert process.returncode == 0, output
        finally:
            process.kill()


@pytest.mark.parametrize("block", _parameters(for_servers=False))
def test_a_block_of_the_readme_runs(
    block: Example, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command and each piece of code in README does what it says."""
    if "STEP_COMPLETE_KEY" in block.parsed:  # not beside the endpoints, which have keys of their own
        monkeypatch.setenv("STEP_COMPLETE_KEY", "the-key-of-this-test")
    if _asks_listen(block):
        block.namespace["_listening"] = request.getfixturevalue("listening")
    block.evaluate()


@pytest.mark.servers
@pytest.mark.parametrize("block", _parameters(for_servers=True))
def test_a_block_of_the_readme_about_servers_runs(block: Example) -> None:
    """Each command in README about Jaeger and the Collector does what it says: the demo's trace arrives there."""
    for port in _SERVER_PORTS:
        _assert_free(port)
    is_jaeger = "--print jaeger" in block.parsed
    # While the servers are still there: they end with the block.
    asks = f"python -c 'import httpx; print(httpx.get(\"{_JAEGER}\").raise_for_status().text)'\n" if is_jaeger else ""
    output = _bash(f"{block.parsed}\n{asks}")
    exported = re.search(r"^Exported trace ([0-9a-f]{32}); ", output, re.MULTILINE)
    assert exported is not None, output
    if is_jaeger:
        traces = json.loads(output.splitlines()[-1])["data"]
        assert [trace["traceID"] for trace in traces] == [exported.group(1)]


def _assert_free(port: int) -> None:
    """Fail when somebody else's server would answer in place of README's."""
    with socket.socket() as trial:
        assert trial.connect_ex(("127.0.0.1", port)) != 0, f"something listens on port {port} already; end it first"


@pytest.mark.anyio
async def test_the_receiver_of_the_readme_checks_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """README's receiver answers 401 without the right key, 400 to what is no step, and success otherwise."""
    monkeypatch.setenv("STEP_COMPLETE_KEY", "the-key-of-this-test")
    (block,) = (block for block in _BLOCKS if "FastAPI()" in block.parsed)
    block.evaluate()
    transport = httpx.ASGITransport(block.namespace["app"])
    authorized = {"authorization": "Bearer the-key-of-this-test"}
    async with httpx.AsyncClient(transport=transport, base_url="http://receiver") as client:
        refused = await client.post("/hooks/steps", json={"step_id": "step-1"})
        malformed = await client.post("/hooks/steps", content=b"nothing", headers=authorized)
        accepted = await client.post("/hooks/steps", json={"step_id": "step-1"}, headers=authorized)
    assert [answer.status_code for answer in (refused, malformed, accepted)] == [401, 400, 200]
    assert accepted.json() == {"status": "success"}


def _table() -> str:
    rows = [f"| `{row.variable}` | `{row.default}` | {row.meaning} |" for row in setting_rows()]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])


def test_the_table_of_settings_is_that_of_the_class() -> None:
    """README's table of settings is made from the settings class."""
    found = re.search(r"<!-- settings:.*?-->\n(.*?)\n?<!-- end of settings -->", _README.read_text(), re.DOTALL)
    assert found is not None
    assert found.group(1) == _table(), f"put this between the two marks in README:\n{_table()}"


def test_the_file_of_endpoints_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """README's file of several receivers can be used as it is, once its variables are set."""
    found = re.search(r"```toml\n(.*?)```", _README.read_text(), re.DOTALL)
    assert found is not None
    path = tmp_path / "receivers.toml"
    path.write_text(found.group(1))
    monkeypatch.setenv("BILLING_KEY", "a key")
    monkeypatch.setenv("AUDIT_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    billing, audit = endpoints_of(StepHookSettings(endpoints=path))
    assert (billing.name, billing.headers) == ("billing", (("authorization", "Bearer a key"),))
    assert (audit.name, audit.payload, len(audit.signing_keys)) == ("audit", "full", 1)


def _lines(picture: Path) -> list[str]:
    """The lines of text of an SVG, without what differs from run to run: durations, in words and as bars."""
    lines: defaultdict[float, list[tuple[float, str]]] = defaultdict(list)
    for text in ET.parse(picture).iter("{http://www.w3.org/2000/svg}text"):  # noqa: S314 -- written by us
        lines[float(text.attrib["y"])].append((float(text.attrib["x"]), text.text or ""))
    whole = (" ".join(text for _, text in sorted(pieces)) for _, pieces in sorted(lines.items()))
    timeless = (re.sub(r"\d+\sms|\d+\.\d\d\ss", "…", re.sub(r"([━─])+", r"\1", line)) for line in whole)
    return [" ".join(line.split()) for line in timeless]


def test_the_picture_is_one_of_the_demo(tmp_path: Path) -> None:
    """README's picture shows the very spans and outcomes that the demo shows."""
    made = tmp_path / "trace.svg"
    assert run(Console(file=StringIO()), svg=made) == 0
    shown, expected = _lines(_ROOT / "tests/readme/trace.svg"), _lines(made)
    assert len(expected) > 20
    assert shown == expected, "make it again: otel-step-hook demo --svg tests/readme/trace.svg"


def test_the_table_of_frameworks_has_each_profile() -> None:
    """README has a row for each row of the table of profiles, and no other."""
    table = _README.read_text().partition("## Which spans are steps")[2].partition("¹ Cannot")[0]
    named = re.findall(r"^\| `([\w-]+)`", table, re.MULTILINE)
    assert sorted(named) == sorted(profile.name for profile in PROFILES)
