"""How often the rules say of a recorded step what truly became of it, and how often its status code alone would.

`make accuracy` prints it.
"""

from itertools import groupby
from typing import NamedTuple

from corpus_replay import Record, Truth, records, replay, truths
from emitting import StepRecorder
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from opentelemetry.trace import format_span_id

_BY_STATUS = {"UNSET": "success", "OK": "success", "ERROR": "failed"}  # what everybody reads from a status
PAUSED = "paused"  # of such a step nothing is sent


class Verdict(NamedTuple):
    """What the rules say of one step, and what its status code alone says."""

    truth: Truth
    outcome: str
    by_status: str


def outcomes_of(record: Record, sampler: Sampler = ALWAYS_ON) -> dict[str, str]:
    """By span id, how the steps of *record* are reported; AssertionError where one is reported twice."""
    recorder = StepRecorder()
    replay(record, recorder, sampler=sampler)
    outcomes = {format_span_id(event.context.span_id): str(event.outcome) for event in recorder.events}
    assert len(outcomes) == len(recorder.events), f"{record.case}: a step is reported twice"
    return outcomes


def verdicts(record: Record, outcomes: dict[str, str]) -> list[Verdict]:
    """One for each step of *record*. A span that is reported and is no step counts as a step reported wrong."""
    table = {truth.span_id: truth for truth in truths()[0] if truth.case == record.case}
    return [
        Verdict(
            table.get(span["span_id"]) or Truth(record.case, span["name"], span["span_id"], PAUSED, why="no step"),
            outcomes.get(span["span_id"], PAUSED),
            _BY_STATUS[span["status"]["code"]],
        )
        for span in record.spans
        if span["span_id"] in table or span["span_id"] in outcomes
    ]


def score(found: list[Verdict]) -> tuple[int, int, int]:
    """Of how many steps, how many are reported right, and how many by their status alone."""
    right = [verdict.outcome == verdict.truth.truth for verdict in found]
    return len(found), sum(right), sum(verdict.by_status == verdict.truth.truth for verdict in found)


def main() -> None:
    """Print the table, and each disagreement with its reason."""
    line = "{:<30} {:>6} {:>12} {:>18}"
    print(line.format("framework", "steps", "told right", "by status alone"))
    everything: list[Verdict] = []
    for framework, group in groupby(records(), lambda record: record.framework):
        found = [verdict for record in group for verdict in verdicts(record, outcomes_of(record))]
        print(line.format(framework, *score(found)))
        everything += found
    steps, right, by_status = score(everything)
    print(line.format("all", steps, right, by_status))
    print(line.format("", "", f"{right / steps:.1%}", f"{by_status / steps:.1%}"))
    for truth, outcome, _ in everything:
        if outcome != truth.truth:
            print(f"\n{truth.case}: {truth.span_name} ({truth.span_id})")
            print(f"  in truth {truth.truth}, told as {outcome}: {truth.why or 'NOT EXPLAINED'}")


if __name__ == "__main__":
    main()
