"""The commands of the page about the command line, by the rows and webhooks that follow."""

import re
from pathlib import Path

import typer
from documentation import bash, claim, page
from outboxes import ABORTED, Left, die_with_journal, leave, make_older, rows

from otel_step_hook.cli.app import app
from otel_step_hook.testing import ScriptedReceiver

_PAGE = "docs/commands.md"
_LOOK = claim(_PAGE, "otel-step-hook outbox show step-42")
_TABLE = claim(_PAGE, "endpoint  waiting  oldest  discarded")
_AGAIN = claim(_PAGE, "otel-step-hook outbox redeliver --error 503")
_DELIVER = claim(_PAGE, "otel-step-hook outbox deliver --timeout 300")
_DAY = 86_400  # seconds
_STEPS = (Left("step-42", "success", ABORTED), Left("step-43", "failed", 410), Left("step-44", "success", 503))


def _without_numbers(text: str) -> list[str]:
    """The lines of *text*, with single spaces, and N for each number that is no part of an id."""
    return [" ".join(re.sub(r"(?<!step-)\b\d+\b", "N", line).split()) for line in text.splitlines() if line.strip()]


def test_the_table_of_commands_has_each() -> None:
    """There is a row for each command, and no other."""
    named = re.findall(r"^\| `otel-step-hook (\w+)`", page(_PAGE), re.MULTILINE)
    assert sorted(named) == sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]  # -- a group


def test_an_outbox_is_looked_into(step_receiver: ScriptedReceiver, tmp_path: Path) -> None:
    """`list` prints what the page shows of it, then the one that the filters select; `show` prints the delivery."""
    path = tmp_path / "steps.db"
    leave(path, step_receiver, *_STEPS, backoff=60.0)
    make_older(path, "step-42", 3 * 3600)
    make_older(path, "step-43", 2 * 3600 + 600)
    _, listed, rest = bash(_LOOK.text, directory=tmp_path).split(f"{path}\n")
    selected, _, shown = rest.partition("webhook id")
    assert _without_numbers(listed) == _without_numbers(_TABLE.text)
    assert [line.split()[1] for line in selected.splitlines() if line.startswith("discarded")] == ["step-42"]
    assert re.search(r"^step id +step-42$", shown, re.MULTILINE)


def test_discarded_deliveries_are_sent_again_or_deleted(step_receiver: ScriptedReceiver, tmp_path: Path) -> None:
    """The first two commands make two of them due, the third deletes one; the delivery that waits stays."""
    path = tmp_path / "steps.db"
    before = leave(path, step_receiver, Left("step-41", "cancelled", ABORTED), *_STEPS)
    make_older(path, "step-41", 4 * _DAY)
    bash(_AGAIN.text, {"STEP_COMPLETE_OUTBOX": str(path)}, directory=tmp_path)
    assert {row.step_id: (row.attempts, row.is_discarded) for row in rows(path).values()} == {
        "step-42": (0, False),
        "step-43": (0, False),
        "step-44": (1, False),
    }
    assert rows(path)["step-44"] == before["step-44"]


def test_what_waits_is_delivered_from_outside(step_receiver: ScriptedReceiver, tmp_path: Path) -> None:
    """The webhook arrives, and its spans get to the collector."""
    path = tmp_path / "steps.db"
    die_with_journal(path, "step-44")
    with ScriptedReceiver() as collector:
        addresses = {"https://example.com/hooks/steps": step_receiver.url}
        # The exporter's own variable is stronger than the general one, which the receiver's path does not fit.
        own = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.url}
        output = bash(_DELIVER.at(addresses).text, own, directory=tmp_path)
    assert output == "1 delivered, 0 discarded, 0 left\n"
    assert [webhook.step_id for webhook in step_receiver.received] == ["step-44"]
    assert b"step_hook.deliver" in b"".join(got.body for got in collector.received)
