"""The commands of an outbox, in processes of their own, after that of the application."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from outboxes import die_with_journal, rows, wait_for_rows
from processes import LIMIT, Program, Start

from otel_step_hook.testing import Answer, ScriptedReceiver

pytestmark = pytest.mark.slow

_COMMAND = str(Path(sys.executable).with_name("otel-step-hook"))


def _run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [_COMMAND, "outbox", *arguments]
    return subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=LIMIT
    )


def test_what_a_killed_process_left_is_delivered_from_outside(
    start: Start, step_receiver: ScriptedReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the same webhook id, in the step's trace, with the resource of the process that was killed."""
    path = tmp_path / "steps.db"
    step_receiver.answers(503)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "application")
    settings = {"webhook": step_receiver.url, "outbox": path, "initial_backoff": 4}  # until then it is killed
    program = start("end_step('step-1'); wait_for_test()", **settings)
    wait_for_rows(path, lambda found: [row.attempts for row in found.values()] == [1])
    program.kill_group()
    (step,) = json.loads(_run("show", "step-1", "--json", "--outbox", str(path)).stdout)["deliveries"]
    assert (step["state"], step["last_error"], step["resource"]["service.name"]) == ("waiting", "503", "application")
    done = _run(
        "deliver",
        STEP_COMPLETE_OUTBOX=str(path),
        STEP_COMPLETE_WEBHOOK=step_receiver.url,
        OTEL_SERVICE_NAME="cron-job",
        OTEL_TRACES_EXPORTER="console",
        OTEL_METRICS_EXPORTER="console",
    )
    assert done.returncode == 0, done.stderr
    assert "1 delivered, 0 discarded, 0 left" in done.stdout
    refused, delivered = step_receiver.received
    assert (delivered.headers["webhook-id"], delivered.body) == (refused.headers["webhook-id"], refused.body)
    trace_id, span_id = f"0x{step['trace_id']}", f"0x{step['span_id']}"
    assert done.stdout.count(trace_id) == 2
    assert f'"parent_id": "{span_id}"' in done.stdout
    assert done.stdout.count('"service.name": "application"') == 2
    spans, _, metrics = done.stdout.partition('"resource_metrics"')
    assert ("cron-job" in spans, "cron-job" in metrics) == (False, True)
    assert '"step_hook.deliveries"' in metrics
    assert rows(path) == {}


def test_a_process_that_shares_the_file_goes_on(start: Start, step_receiver: ScriptedReceiver, tmp_path: Path) -> None:
    """`deliver` leaves alone what the other process has in flight, and delivers what a third one left."""
    path = tmp_path / "steps.db"
    step_receiver.answers(Answer(delay=5.0))
    program = start("end_step('in-flight'); wait_for_test()", webhook=step_receiver.url, outbox=path)
    step_receiver.wait_for(1)
    die_with_journal(path, "left")
    done = _run("deliver", STEP_COMPLETE_OUTBOX=str(path), STEP_COMPLETE_WEBHOOK=step_receiver.url)
    assert sorted(webhook.step_id for webhook in step_receiver.received) == ["in-flight", "left"]
    wait_for_rows(path, lambda found: not found)
    program.go_on()
    assert program.ended().code == 0
    assert done.stdout.startswith("1 delivered, 0 discarded, ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_makes_what_is_in_flight_due_again(
    step_receiver: ScriptedReceiver, tmp_path: Path, number: signal.Signals
) -> None:
    """The delivery is not leased any more; after SIGTERM, which ends a Kubernetes job, a line says what is left."""
    path = tmp_path / "steps.db"
    die_with_journal(path, "left")
    step_receiver.answers(Answer(delay=100.0))
    command = Program(
        *(_COMMAND, "outbox", "deliver", "--timeout", "90"),
        STEP_COMPLETE_OUTBOX=str(path),
        STEP_COMPLETE_WEBHOOK=step_receiver.url,
    )
    try:
        step_receiver.wait_for(1)
        command.send_signal(number)
        ended = command.ended()
    finally:
        command.kill_group()
    if number == signal.SIGTERM:
        assert (ended.code, ended.out) == (1, ["0 delivered, 0 discarded, 1 left; the next is due now"])
    assert ended.code != 0
    assert ended.noise == []
    (row,) = rows(path).values()
    assert (row.step_id, row.is_leased, row.is_discarded) == ("left", False, False)
    assert not list(tmp_path.glob("*.journal"))
