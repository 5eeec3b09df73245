"""What the documentation says of settings: the table, the variables, the files."""

import re
from pathlib import Path

import pytest
from documentation import Block, bash, claim, page

from otel_step_hook import StepHookSettings
from otel_step_hook.settings import endpoints_of, setting_rows

_VARIABLES = [claim(page, "STEP_COMPLETE_KEY=the-secret") for page in ("README.md", "docs/start.md")]
_SAMPLERS = [claim("docs/sampling.md", f"OTEL_TRACES_SAMPLER_ARG=0.1{more}\n") for more in ("", ",all")]
_RECEIVERS = claim("docs/settings.md", "[[endpoint]]")
_LETTA = claim("docs/letta.md", "[[endpoint]]")


def _table() -> str:
    rows = [f"| `{row.variable}` | `{row.default}` | {row.meaning} |" for row in setting_rows()]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])


def test_the_table_is_that_of_the_class() -> None:
    """The table of settings is made from the settings class."""
    found = re.search(r"<!-- settings:.*?-->\n(.*?)\n?<!-- end of settings -->", page("docs/settings.md"), re.DOTALL)
    assert found is not None
    assert found.group(1) == _table(), f"put this between the two marks:\n{_table()}"


@pytest.mark.parametrize("block", _VARIABLES, ids=lambda block: block.page)
def test_the_variables_name_a_webhook_and_its_key(block: Block) -> None:
    """A program that starts after them sends there, with that key."""
    program = (
        "from otel_step_hook.settings import *; (one,) = endpoints_of(StepHookSettings()); print(one.url, *one.headers)"
    )
    shown = bash(f"{block.text}\npython -c '{program}'")
    assert shown.split(None, 1) == [
        "https://example.com/hooks/steps",
        "('authorization', 'Bearer the-secret-that-both-sides-know')\n",
    ]


_COUNT = """
from opentelemetry.trace import get_tracer
start = get_tracer("my.agent").start_span
print(sum(start("search").is_recording() for _ in range(100)))
print(sum(start("search", attributes={"step_id": "step-42"}).is_recording() for _ in range(100)))
"""
_NO_EXPORTERS = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}


@pytest.mark.slow
def test_the_sampler_of_the_environment_keeps_steps() -> None:
    """All steps are recorded, and of the other spans a tenth, or with ``all`` each."""
    (some, steps), (everything, others) = (
        map(int, bash(f"{block.text}\nopentelemetry-instrument python -c '{_COUNT}'", _NO_EXPORTERS).split())
        for block in _SAMPLERS
    )
    assert 0 < some < 60
    assert (steps, everything, others) == (100, 100, 100)


def test_the_file_of_receivers_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is, once its variables are set."""
    path = tmp_path / "receivers.toml"
    path.write_text(_RECEIVERS.text)
    monkeypatch.setenv("BILLING_KEY", "a key")
    monkeypatch.setenv("AUDIT_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    billing, audit = endpoints_of(StepHookSettings(endpoints=path))
    assert (billing.name, billing.headers) == ("billing", (("authorization", "Bearer a key"),))
    assert [str(outcome) for outcome in billing.outcomes] == ["success"]
    assert (audit.name, audit.payload, audit.timeout, len(audit.signing_keys)) == ("audit", "full", 5, 1)


def test_an_endpoint_may_take_the_key_of_lettas_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of the page on Letta can be used while the server's own variable is set."""
    path = tmp_path / "endpoints.toml"
    path.write_text(_LETTA.text)
    monkeypatch.setenv("STEP_COMPLETE_KEY", "a key")
    (steps,) = endpoints_of(StepHookSettings(endpoints=path))
    assert (steps.name, steps.headers) == ("steps", (("authorization", "Bearer a key"),))
