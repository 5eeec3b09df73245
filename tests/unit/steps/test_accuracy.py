"""The rules, on every recorded span of real frameworks: what is told is what the table of truths says."""

import re

import accuracy
import pytest
from accuracy import NOTHING, scores, told
from corpus_replay import Record, records, replay, truths
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import format_span_id

from otel_step_hook import StepHookProcessor, StepHookSettings, StepSampler
from otel_step_hook.steps.event import StepEvent
from otel_step_hook.testing import ScriptedReceiver

RECORDS = records()
TRUTHS = truths().steps


# What makes these spans steps is set after their start.
_LATE = {"dbos", "langgraph_openinference", "langgraph_traceloop", "otel_sdk-cancel-span-in-thread"}


def expected(record: Record) -> dict[str, str]:
    """By span id, how the steps of *record* are to be told; those that have only paused are not."""
    table = {truth.span_id: truth.told_as or truth.truth for truth in TRUTHS if truth.case == record.case}
    return {span_id: outcome for span_id, outcome in table.items() if outcome != NOTHING}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.case)
def test_each_record_is_told_as_the_table_says(record: Record) -> None:
    """Every step of the table with its outcome, once; and no other span."""
    assert told(record) == expected(record)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.case)
def test_each_record_is_told_under_a_sampler_that_drops_all(record: Record) -> None:
    """`StepSampler` keeps the steps; of frameworks that give their spans their attributes late, with all spans."""
    is_late = bool(_LATE & {record.framework, record.case})
    assert told(record, StepSampler(ALWAYS_OFF, record_all=is_late)) == expected(record)


def test_all_records_arrive_as_webhooks(step_receiver: ScriptedReceiver) -> None:
    """The same by the whole way, with the processor, its thread and a receiver."""
    hook = StepHookProcessor(StepHookSettings(webhook=step_receiver.url, payload="full", shutdown_timeout=30))
    for record in RECORDS:
        replay(record, hook)
    assert hook.force_flush(120_000)
    hook.shutdown()
    arrived = sorted((str(webhook.data["span_id"]), webhook.data["outcome"]) for webhook in step_receiver.received)
    assert arrived == sorted(step for record in RECORDS for step in expected(record).items())


_IDS = {
    "dbos": r"step-[-0-9a-f]{36}",  # the number of the step is known to the process that runs it, and not recorded
    "langgraph_openinference": r"\w+:[-0-9a-f]{36}(\|\w+:[-0-9a-f]{36})?",  # the second: a node of a node
    "langgraph_traceloop": r"\w+:[-0-9a-f]{36}(\|\w+:[-0-9a-f]{36})?",
    "openai_agents_openinference": r"step-[-0-9a-f]{36}",
    "otel_sdk": r"s\d",
    "pydantic_ai": r"pyd_ai_\w+|call_\d",
    "temporal_tracinginterceptor": "test-run/test",
}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.case)
def test_the_step_ids_are_the_frameworks_own(record: Record) -> None:
    """Where it has one that a receiver could know; else they are made from the span's ids."""
    for event in _events(record):
        assert re.fullmatch(_IDS[record.framework], event.step_id)


@pytest.mark.parametrize("framework", ["langgraph_openinference", "langgraph_traceloop"])
def test_a_node_keeps_its_id_over_attempts_and_pauses(framework: str) -> None:
    """Two attempts at one node are told under one id, and any two nodes under two."""
    (record,) = [record for record in RECORDS if record.case == f"{framework}-shapes"]
    ids = [event.step_id for event in _events(record)]
    assert len(ids) == len(set(ids)) + 1
    assert [str(event.outcome) for event in _events(record) if "flaky" in event.name] == ["failed", "success"]


def _events(record: Record) -> list[StepEvent]:
    listening = accuracy.Listening()
    replay(record, listening)
    return listening.events


def test_the_rules_are_better_than_the_status_alone() -> None:
    """`make accuracy` counts the disagreements; each of the rules' own is explained in the table."""
    by_framework = scores()
    wrong = [truth for score in by_framework.values() for truth, _ in score.wrong]
    assert [truth.why for truth in wrong if not truth.why] == []
    steps = sum(score.steps for score in by_framework.values())
    assert steps == len(TRUTHS) == 114
    assert sum(score.right for score in by_framework.values()) == steps - 2
    assert sum(score.right_by_status for score in by_framework.values()) == 81


def test_make_accuracy_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """One line per framework, their sum, and the reason of each disagreement."""
    accuracy.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["framework", "steps", "told", "right", "by", "status", "alone"]
    assert [line.split() for line in lines[1:3]] == [
        ["dbos", "7", "6", "4"],
        ["langgraph_openinference", "26", "26", "22"],
    ]
    assert "98.2%" in lines[9]
    assert not [line for line in lines if "NOT EXPLAINED" in line]


def test_a_span_that_is_no_step_counts_as_told_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The score would notice a rule that takes too much for a step."""
    record = RECORDS[0]
    no_step = format_span_id(1)
    span = record.spans_in_end_order[0].model_copy(update={"span_id": no_step})
    too_many = record.model_copy(update={"spans_in_end_order": [*record.spans_in_end_order, span]})
    monkeypatch.setattr(accuracy, "records", lambda: [too_many])
    monkeypatch.setattr(accuracy, "told", lambda _: {no_step: "success"})
    (score,) = scores().values()
    assert [truth.why for truth, _ in score.wrong if truth.span_id == no_step] == ["it is no step"]
