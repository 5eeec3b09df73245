"""The commands of the documentation, by what a receiver gets of them and what they print."""

import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from documentation import KEY, LIMIT, Block, bash, claim
from processes import PROGRAMS

from otel_step_hook import __version__
from otel_step_hook.cli.app import listen
from otel_step_hook.testing import ScriptedReceiver

_LISTENS = f"http://127.0.0.1:{inspect.signature(listen).parameters['port'].default}"
_INSTALL = [claim(page, "pip install '.[cli]'") for page in ("README.md", "docs/start.md")]
_INSTRUMENT = claim("docs/start.md", "opentelemetry-instrument python -c")
_DISTRO = claim("docs/start.md", "pip install opentelemetry-distro\n")
_FILE_CONFIGURATION = claim("docs/start.md", "opentelemetry-sdk[file-configuration]")
_FILE = claim("docs/start.md", "instrumentation/development:")
_RUN_WITH_FILE = claim("docs/start.md", "OTEL_CONFIG_FILE=otel.yaml")
_TRY = [
    (claim(page, "otel-step-hook listen"), claim(page, "otel-step-hook check"))
    for page in ("README.md", "docs/start.md")
]


class Listening:
    """The receiver of the other terminal, on a free port."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        self._process = process
        said = next((line for line in process.stdout if "STEP_COMPLETE_WEBHOOK=" in line), None)
        assert said is not None, f"it has ended, with exit status {process.wait(LIMIT)}"
        self.url = said.partition("=")[2].strip("/\n")

    def end(self) -> str:
        """End it with Ctrl-C, and return the rest of its output."""
        self._process.send_signal(signal.SIGINT)
        output, _ = self._process.communicate(timeout=LIMIT)
        assert self._process.returncode == 0, output
        return output


@pytest.fixture
def listening(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listening]:
    """The command of this block runs until it is ended; both terminals have the same key."""
    monkeypatch.setenv("STEP_COMPLETE_KEY", KEY)
    # Not by bash: the signal is for the command itself.
    command = [str(Path(sys.executable).with_name("otel-step-hook")), *request.param.text.split()[1:], "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield Listening(process)
        finally:
            process.kill()


def _answers(output: str) -> list[str]:
    """The status codes that `listen` says it has answered with, in their order."""
    rows = [line.split() for line in output.splitlines()]
    return [row[2] for row in rows if len(row) > 4 and row[0].count(":") == 2]


@pytest.mark.slow
@pytest.mark.parametrize(("listening", "commands"), _TRY, ids=["README", "start"], indirect=["listening"])
def test_check_and_send_reach_listen(listening: Listening, commands: Block) -> None:
    """`check` says that the endpoint answers; the first `send` is refused, and the second is delivered."""
    output = bash(commands.at({_LISTENS: listening.url}).text)
    checked, refused, delivered = output.partition("POST ")[0], *output.split("POST ")[1:]
    assert "The endpoint answers." in checked
    assert "503 Service Unavailable" in refused
    assert refused.rstrip().endswith("refused, as --fail 1 asks")
    assert "204 No Content" in delivered
    assert _answers(listening.end()) == ["503", "204"]


def _fresh(directory: Path, *blocks: Block) -> str:
    """The path of programs with a new environment, in which the commands of these blocks have installed something."""
    uv, python = str(Path(sys.executable).with_name("uv")), str(directory / "bin" / "python")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, directory], check=True)
    for block in blocks:
        bash(block.text.replace("pip install", f"{uv} pip install --quiet --python {python}"))
    return f"{directory / 'bin'}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.slow
@pytest.mark.parametrize("block", _INSTALL, ids=lambda block: block.page)
def test_what_is_installed_has_the_command(block: Block, tmp_path: Path) -> None:
    """In a new environment the package and its command are there after it."""
    assert bash("otel-step-hook --version", {"PATH": _fresh(tmp_path / "fresh", block)}) == f"{__version__}\n"


@pytest.mark.slow
def test_a_program_that_knows_nothing_sends_its_step(step_receiver: ScriptedReceiver, tmp_path: Path) -> None:
    """In an environment that has nothing but what the text says: no exporter that the distro would take by default."""
    path = _fresh(tmp_path / "fresh", _INSTALL[1], _DISTRO)
    output = bash(_INSTRUMENT.at({_LISTENS: step_receiver.url}).text, {"PATH": path})
    assert [webhook.step_id for webhook in step_receiver.received] == ["step-42"]
    assert sorted(re.findall(r'"name": "(.*)"', output)) == ["POST", "search", "step_hook.deliver"]


@pytest.mark.slow
def test_a_file_sets_up_the_sdk_and_the_hook(step_receiver: ScriptedReceiver, tmp_path: Path) -> None:
    """The file is whole: with the packages that the text says it sends the step and exports the spans."""
    path = _fresh(tmp_path / "fresh", _INSTALL[1], _FILE_CONFIGURATION)
    shutil.copy(PROGRAMS / "uninstrumented.py", tmp_path / "app.py")
    (tmp_path / "otel.yaml").write_text(_FILE.at({"https://example.com/hooks/steps": step_receiver.url}).text)
    output = bash(_RUN_WITH_FILE.text, {"PATH": path}, directory=tmp_path)
    assert [webhook.step_id for webhook in step_receiver.received] == ["step-1"]
    assert sorted(re.findall(r'"name": "(.*)"', output)) == ["POST", "run", "step", "step_hook.deliver"]
