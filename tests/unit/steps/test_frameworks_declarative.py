"""OpenTelemetry's declarative configuration: a file sets up the SDK and the hook, with no code and no variables."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import PROGRAMS, Ledger

_FILE = """
file_format: "1.0"
tracer_provider:
  sampler: {sampler}
  processors:
    - simple:
        exporter:
          console: {{}}
instrumentation/development:
  python:
    step_hook:
      webhook: {url}
      key: a key
      outcomes: success,failed
      timeout: 5
"""

_CONFIGURED = """
import runpy, sys
from opentelemetry.configuration.file import load_config_file
from opentelemetry.configuration import configure_sdk
configure_sdk(load_config_file(sys.argv[1]))
runpy.run_path(sys.argv[2])
"""


@pytest.mark.parametrize("how", ["by the command", "by the application"])
@pytest.mark.parametrize(
    ("sampler", "exported"),
    [("{always_on: {}}", ["POST", "run", "step", "step_hook.deliver"]), ("{step_hook: {}}", [])],
)
def test_a_file_registers_the_hook(how: str, sampler: str, exported: list[str], tmp_path: Path) -> None:
    """With the settings that stand in it; once, although the command loads the instrumentor again."""
    program, file = str(PROGRAMS / "uninstrumented.py"), tmp_path / "otel.yaml"
    command = [str(Path(sys.executable).with_name("opentelemetry-instrument")), sys.executable, program]
    environment = os.environ | {"OTEL_TRACES_SAMPLER_ARG": "0"}
    if how == "by the application":
        command = [sys.executable, "-c", _CONFIGURED, str(file), program]
    else:
        environment["OTEL_CONFIG_FILE"] = str(file)
    with Ledger() as ledger:
        file.write_text(_FILE.format(url=ledger.url, sampler=sampler))
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, ledger.steps) == (0, ["step-1"])
    assert [line for line in done.stderr.splitlines() if "step_hook" in line or "step-hook" in line] == []
    names = sorted(line.partition(": ")[2].strip('",') for line in done.stdout.splitlines() if '  "name": ' in line)
    assert names == exported
