"""The rules, on every recorded span of real frameworks: each event is as the table of truths says."""

import re

import accuracy
import pytest
from accuracy import PAUSED, outcomes_of, score, verdicts
from corpus_replay import Record, records, replay, truths
from emitting import StepRecorder
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from otel_step_hook import StepHookProcessor, StepHookSettings, StepSampler
from otel_step_hook.steps.event import StepEvent
from otel_step_hook.testing import ScriptedReceiver

RECORDS = records()
TRUTHS, _ = truths()
# The outcomes to report, by record and span id; steps that have only paused are not reported.
EXPECTED: dict[str, dict[str, str]] = {record.case: {} for record in RECORDS}
for _truth in TRUTHS:
    if (_outcome := _truth.reported_as or _truth.truth) != PAUSED:
        EXPECTED[_truth.case][_truth.span_id] = _outcome

# Frameworks and records whose spans get the attributes that make them steps after their start.
_LATE = {
    "dbos",
    "langgraph_openinference",
    "langgraph_traceloop",
    "langsmith",
    "livekit",
    "otel_sdk-cancel-span-in-thread",
}


def test_each_record_has_the_events_of_the_table() -> None:
    """Every step of the table is reported once with its outcome, and no other span is."""
    assert {record.case: outcomes_of(record) for record in RECORDS} == EXPECTED


def test_each_record_has_the_same_events_under_a_sampler_that_drops_all() -> None:
    """`StepSampler` records the steps; with `record_all` also those whose attributes are set after their start."""
    found = {}
    for record in RECORDS:
        is_late = bool(_LATE & {record.framework, record.case})
        found[record.case] = outcomes_of(record, StepSampler(ALWAYS_OFF, record_all=is_late))
    assert found == EXPECTED


def test_all_records_arrive_as_webhooks(step_receiver: ScriptedReceiver) -> None:
    """The processor, its worker thread and a receiver together deliver exactly the steps of the table."""
    hook = StepHookProcessor(StepHookSettings(webhook=step_receiver.url, payload="full", shutdown_timeout=30))
    for record in RECORDS:
        replay(record, hook)
    assert hook.force_flush(120_000)
    hook.shutdown()
    arrived = [(str(webhook.data["span_id"]), webhook.data["outcome"]) for webhook in step_receiver.received]
    expected = [step for steps in EXPECTED.values() for step in steps.items()]
    assert dict(arrived) == dict(expected)
    assert len(arrived) == len(expected)


_IDS = {
    "dbos": r"step-[-0-9a-f]{36}",  # the number of the step is known only to the running process, and not recorded
    "fastmcp": r"call-1|step-[-0-9a-f]{36}",
    "google_adk": r"step-[-0-9a-f]{36}",
    "google_adk_openinference": r"call-\d|step-[-0-9a-f]{36}",
    "langgraph_openinference": r"\w+:[-0-9a-f]{36}(\|\w+:[-0-9a-f]{36})?",  # the second part: a node of a subgraph
    "langgraph_traceloop": r"\w+:[-0-9a-f]{36}(\|\w+:[-0-9a-f]{36})?",
    "langsmith": r"call-[-a-z]+|step-[-0-9a-f]{36}",
    "livekit": r"call-\w+",
    "mcp_sdk": r"step-[-0-9a-f]{36}",
    "openai_agents_openinference": r"step-[-0-9a-f]{36}",
    "otel_sdk": r"s\d",
    "pydantic_ai": r"pyd_ai_\w+|call_\d",
    "temporal_tracinginterceptor": "test-run/test",
}


def test_the_step_ids_are_those_of_the_frameworks() -> None:
    """A step has the id that its framework gives it; if there is none, one is generated from the span's ids."""
    ids = {record.case: [event.step_id for event in _events(record)] for record in RECORDS}
    other = {
        record.case: ids[record.case]
        for record in RECORDS
        if not all(re.fullmatch(_IDS[record.framework], step_id) for step_id in ids[record.case])
    }
    assert other == {}


@pytest.mark.parametrize("framework", ["langgraph_openinference", "langgraph_traceloop"])
def test_a_node_keeps_its_id_over_attempts_and_pauses(framework: str) -> None:
    """Two attempts of one node have the same step id, and different nodes have different ones."""
    (record,) = [record for record in RECORDS if record.case == f"{framework}-shapes"]
    ids = [event.step_id for event in _events(record)]
    assert len(ids) == len(set(ids)) + 1
    assert [str(event.outcome) for event in _events(record) if "flaky" in event.name] == ["failed", "success"]


def _events(record: Record) -> list[StepEvent]:
    recorder = StepRecorder()
    replay(record, recorder)
    return recorder.events


def test_the_rules_are_better_than_the_status_alone() -> None:
    """The table of truths explains each step that the rules report wrong; `make accuracy` counts them."""
    found = [verdict for record in RECORDS for verdict in verdicts(record, outcomes_of(record))]
    assert [truth for truth, outcome, _ in found if outcome != truth.truth and not truth.why] == []
    assert score(found) == (145, 142, 98)
    assert len(TRUTHS) == 145


def test_make_accuracy_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """The table has one line per framework and the sum, and a reason for each step that is reported wrong."""
    accuracy.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["framework", "steps", "reported", "right", "by", "status", "alone"]
    rows = [line.split() for line in lines]
    assert rows[1] == ["dbos", "7", "6", "4"]
    assert ["langgraph_openinference", "29", "29", "25"] in rows
    assert "97.9%" in lines[15]
    assert not [line for line in lines if "NOT EXPLAINED" in line]


def test_a_span_that_is_no_step_counts_as_reported_wrong() -> None:
    """A rule that recognises too many spans as steps lowers the score."""
    span = {**RECORDS[0].spans[0], "span_id": "00"}
    found = verdicts(Record(RECORDS[0].case, [*RECORDS[0].spans, span]), {"00": "success"})
    assert [verdict.truth.why for verdict in found if verdict.truth.span_id == "00"] == ["no step"]
    assert score([verdict for verdict in found if verdict.truth.span_id == "00"]) == (1, 0, 0)
