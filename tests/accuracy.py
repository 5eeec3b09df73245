"""How often the rules report the true outcome of a recorded step, and how often its status code alone would.

`make accuracy` prints the table.
"""

from itertools import groupby
from typing import NamedTuple

from corpus_replay import Record, Truth, records, replay, truths
from emitting import StepRecorder
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from opentelemetry.trace import format_span_id

_BY_STATUS = {"UNSET": "success", "OK": "success", "ERROR": "failed"}  # the usual reading of a status code
PAUSED = "paused"  # the step has not ended, and nothing is sent


class Verdict(NamedTuple):
    """The true outcome of one step, the outcome that is reported, and the outcome that its status code alone gives."""

    truth: Truth
    outcome: str
    by_status: str


def outcomes_of(record: Record, sampler: Sampler = ALWAYS_ON) -> dict[str, str]:
    """Return the reported outcome of each step of *record* by span id; AssertionError if a step is reported twice."""
    recorder = StepRecorder()
    replay(record, recorder, sampler=sampler)
    outcomes = {format_span_id(event.context.span_id): str(event.outcome) for event in recorder.events}
    assert len(outcomes) == len(recorder.events), f"{record.case}: a step is reported twice"
    return outcomes


def verdicts(record: Record, outcomes: dict[str, str]) -> list[Verdict]:
    """Return a verdict for each step of *record*.

    A span that is reported although it is no step counts as a step that is reported wrong.
    """
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
    """Count the steps, those that are reported right, and those whose status code alone gives the right outcome."""
    right = [verdict.outcome == verdict.truth.truth for verdict in found]
    return len(found), sum(right), sum(verdict.by_status == verdict.truth.truth for verdict in found)


def main() -> None:
    """Print the table, and each step that is reported wrong with the reason."""
    line = "{:<30} {:>6} {:>15} {:>18}"
    print(line.format("framework", "steps", "reported right", "by status alone"))
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
            print(f"  in truth {truth.truth}, reported as {outcome}: {truth.why or 'NOT EXPLAINED'}")


if __name__ == "__main__":
    main()
