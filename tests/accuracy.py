"""How often the rules say of a recorded step what truly became of it, and how often its status code alone would.

`make accuracy` prints it.
"""

import sys
from collections import defaultdict
from dataclasses import dataclass, field

from corpus_replay import Record, RecordedSpan, Truth, records, replay, truths
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from opentelemetry.trace import format_span_id

from otel_step_hook.steps.event import StepEvent
from otel_step_hook.steps.profiles import PROFILES
from otel_step_hook.steps.reader import StepReader

_BY_STATUS = {"UNSET": "success", "OK": "success", "ERROR": "failed"}  # what everybody reads from a status
NOTHING = "paused"  # what a step is told as of which nothing is sent


class Listening(SpanProcessor):
    """Writes down which steps have ended, as the processor would tell them."""

    def __init__(self) -> None:
        self._reader = StepReader(PROFILES)
        self.events: list[StepEvent] = []

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """As the processor does."""
        del parent_context
        self._reader.begin(span, sys.exception())

    def on_end(self, span: ReadableSpan) -> None:
        """As the processor does."""
        self.events.extend(self._reader.end(span, sys.exception))


@dataclass
class Score:
    """Of how many steps, how many are told right; and each that is not."""

    steps: int = 0
    right: int = 0
    right_by_status: int = 0
    wrong: list[tuple[Truth, str]] = field(default_factory=list)


def told(record: Record, sampler: Sampler = ALWAYS_ON) -> dict[str, str]:
    """By span id, how the steps of *record* are told to have ended; AssertionError where one is told twice."""
    listening = Listening()
    replay(record, listening, sampler=sampler)
    outcomes = {format_span_id(event.context.span_id): str(event.outcome) for event in listening.events}
    assert len(outcomes) == len(listening.events), f"{record.case}: a step is told twice"
    return outcomes


def scores() -> dict[str, Score]:
    """The score of each framework. A span that is told and is no step counts as a step told wrong."""
    by_framework: dict[str, Score] = defaultdict(Score)
    table = {(truth.case, truth.span_id): truth for truth in truths().steps}
    for record in records():
        outcomes = told(record)
        score = by_framework[record.framework]
        for span in record.spans_in_end_order:
            outcome = outcomes.get(span.span_id, NOTHING)
            truth = table.get((record.case, span.span_id))
            if truth is not None:
                score.steps += 1
                score.right += outcome == truth.truth
                score.right_by_status += _BY_STATUS[span.status.code] == truth.truth
            elif span.span_id in outcomes:
                score.steps += 1
                truth = _no_step(record, span)
            if truth is not None and outcome != truth.truth:
                score.wrong.append((truth, outcome))
    return by_framework


def _no_step(record: Record, span: RecordedSpan) -> Truth:
    return Truth(record.case, span.name, span.span_id, "paused", why="it is no step")


def main() -> None:
    """Print the table, and each disagreement with its reason."""
    line = "{:<30} {:>6} {:>12} {:>18}"
    print(line.format("framework", "steps", "told right", "by status alone"))
    total = Score()
    for framework, score in sorted(scores().items()):
        print(line.format(framework, score.steps, score.right, score.right_by_status))
        total.steps += score.steps
        total.right += score.right
        total.right_by_status += score.right_by_status
        total.wrong += score.wrong
    print(line.format("all", total.steps, total.right, total.right_by_status))
    print(line.format("", "", f"{total.right / total.steps:.1%}", f"{total.right_by_status / total.steps:.1%}"))
    for truth, outcome in total.wrong:
        print(f"\n{truth.case}: {truth.span_name} ({truth.span_id})")
        print(f"  in truth {truth.truth}, told as {outcome}: {truth.why or 'NOT EXPLAINED'}")


if __name__ == "__main__":
    main()
