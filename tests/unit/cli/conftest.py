"""The command line, run in this process."""

from pathlib import Path

import pytest
from outboxes import fill
from support import Cli, CliResult

from otel_step_hook.cli.app import main
from otel_step_hook.testing import ScriptedReceiver


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs the command line here; returns exit status, stdout and stderr. Keywords are STEP_COMPLETE_… variables."""

    def run(*arguments: str, **variables: str) -> CliResult:
        monkeypatch.setenv("COLUMNS", "100")
        for name, value in variables.items():
            monkeypatch.setenv(f"STEP_COMPLETE_{name}", value)
        with pytest.raises(SystemExit) as exited:
            main(arguments)
        return exited.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An outbox that a hook has left, see `fill`."""
    path = tmp_path_factory.mktemp("written") / "steps.db"
    with ScriptedReceiver() as receiver:
        fill(path, receiver)
    return path
