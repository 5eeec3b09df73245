"""OpenTelemetry's declarative configuration: a file sets up the SDK and the hook."""

import sys
from pathlib import Path

import pytest
from processes import INSTRUMENT, Program, StepReceiver

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


@pytest.mark.slow
@pytest.mark.parametrize("how", ["by the command", "by the application"])
@pytest.mark.parametrize(
    ("sampler", "exported"),
    [("{always_on: {}}", ["POST", "run", "step", "step_hook.deliver"]), ("{step_hook: {}}", [])],
)
def test_a_file_registers_the_hook(
    receiver: StepReceiver, how: str, sampler: str, exported: list[str], tmp_path: Path
) -> None:
    """A file registers the hook with its settings, and only once, although the command loads the instrumentor, too."""
    file = tmp_path / "otel.yaml"
    file.write_text(_FILE.format(url=receiver.url, sampler=sampler))
    environment = {"OTEL_TRACES_SAMPLER_ARG": "0"}
    if how == "by the application":
        program = Program(sys.executable, "-c", _CONFIGURED, str(file), "uninstrumented.py", **environment)
    else:
        program = Program(INSTRUMENT, sys.executable, "uninstrumented.py", OTEL_CONFIG_FILE=str(file), **environment)
    ended = program.ended()
    assert (ended.code, ended.spans, receiver.steps) == (0, exported, ["step-1"])
    assert [line for line in ended.err.splitlines() if "step_hook" in line or "step-hook" in line] == []
