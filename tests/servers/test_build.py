"""What `make servers` prints while it builds, and when it cannot."""

import re
import sys
from pathlib import Path

import pytest
from servers import build

# Ends when the test has waited long enough for a line about it: nothing else ends a build that is under way.
_BUILDING = "import time; print('go: downloading example.org/module v1.0.0\\nexample.org/module/package', flush=True)"


def test_a_build_prints_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a command runs, lines say how long already, and what Go has fetched and compiled."""
    monkeypatch.setattr(build, "_INTERVAL", 0.1)
    commands = build._Commands("jaeger 2.13.0 (1 of 5)", tmp_path)
    commands.run([sys.executable, "-c", f"{_BUILDING}; time.sleep(2)"], tmp_path)
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"jaeger 2\.13\.0 \(1 of 5\): \d+ s, 1 modules fetched, 1 packages compiled", last)


def test_a_failed_build_shows_the_end_of_its_output(tmp_path: Path) -> None:
    """The error has the command, its status and its last lines, and says what to look at."""
    commands = build._Commands("jaeger", tmp_path)
    with pytest.raises(build.ServerError, match=r"(?s)ended with status 3:\nno such module\n.*GOPROXY"):
        commands.run(["sh", "-c", "echo no such module; exit 3"], tmp_path)


def test_a_missing_server_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for a server that is not built reads how to build it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(build.ServerError, match=r"temporal-server 1\.32\.0 is not built: .* `make servers`"):
        build.binary("temporal-server")


def test_an_unknown_server_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt name is no reason to build anything."""
    with pytest.raises(SystemExit):
        build.main(["jager"])
    assert "unknown: jager; expected some of jaeger, collector, temporal-server" in capsys.readouterr().err
