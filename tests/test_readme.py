"""README: its commands are run, its code is executed, its table is what the settings class says."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from otel_step_hook.settings import setting_rows
from otel_step_hook.steps.profiles import PROFILES

_ROOT = Path(__file__).resolve().parent.parent
_README = _ROOT / "README.md"
_LIMIT = 100.0  # seconds a block may take
_LISTENS = 8787  # the port of `otel-step-hook listen`


def _environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "STEP_COMPLETE_KEY": "the-key-of-this-test"}


def _run(example: Example) -> None:
    """Run a block as a person would paste it, at the top of the checkout."""
    script = example.parsed.replace("make test\n", "")  # which is what runs this test
    # Not published yet: what pip would fetch is this checkout, and this environment is not to change.
    script = script.replace("pip install otel-step-hook", "uv pip install --quiet --dry-run .")
    shell = ["bash", "-euo", "pipefail", "-c", f"trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{script}"]
    done = subprocess.run(
        shell, cwd=_ROOT, env=_environment(), capture_output=True, text=True, timeout=_LIMIT, check=False
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"


def _blocks() -> list[Example]:
    both = Sybil([PythonCodeBlockParser(), CodeBlockParser("bash", _run)], path=str(_ROOT))
    return list(both.parse(_README).examples())


def _is_for_servers(block: Example) -> bool:
    return "tests/servers/build.py" in block.parsed


def _is_listen(block: Example) -> bool:
    return str(block.parsed).startswith("otel-step-hook listen")


_BLOCKS = _blocks()


def _parameters(*, for_servers: bool) -> list[object]:
    return [
        pytest.param(block, id=f"line-{block.line}")
        for block in _BLOCKS
        if _is_for_servers(block) is for_servers and not _is_listen(block)
    ]


@pytest.fixture(scope="module")
def listening() -> Iterator[None]:
    """What README has in its other terminal."""
    (block,) = filter(_is_listen, _BLOCKS)
    # Not `bash -c`: the signal is for the command itself.
    command = [str(Path(sys.executable).parent / "otel-step-hook"), *block.parsed.split()[1:]]
    process = subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + _LIMIT
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", _LISTENS), timeout=1).close()
            break
        except ConnectionRefusedError:
            time.sleep(0.05)  # another process comes up: there is nothing to wait on
    yield
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=_LIMIT)
    assert process.returncode == 0, output.decode()


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("block", _parameters(for_servers=False))
def test_a_block_of_the_readme_runs(block: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command and each piece of code in README does what it says."""
    monkeypatch.setenv("STEP_COMPLETE_KEY", "the-key-of-this-test")
    block.evaluate()


@pytest.mark.servers
@pytest.mark.parametrize("block", _parameters(for_servers=True))
def test_a_block_of_the_readme_about_servers_runs(block: Example) -> None:
    """Each command in README about Jaeger and the Collector does what it says."""
    block.evaluate()


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


def test_the_picture_is_one_of_the_demo() -> None:
    """README's picture exists, and shows what the demo shows."""
    picture = (_ROOT / "tests/readme/trace.svg").read_text()
    for word in ("step_hook.deliver", "POST", "cancelled", "failed", "503"):
        assert word in picture


def test_the_table_of_frameworks_has_each_profile() -> None:
    """README has a row for each row of the table of profiles, and no other."""
    table = _README.read_text().partition("## Which spans are steps")[2].partition("¹ Cannot")[0]
    named = re.findall(r"^\| `([\w-]+)`", table, re.MULTILINE)
    assert sorted(named) == sorted(profile.name for profile in PROFILES)
