"""LangSmith in its OpenTelemetry mode: a step is a tool call.

Each exception is recorded as one of the type ``Exception``, whose message begins with the `repr` of the real one. The
span of a run that takes longer than LangSmith's batches has been given the status OK before its end, and keeps it.
"""

from otel_step_hook.steps.event import Outcome
from otel_step_hook.steps.outcome import CANCELLATIONS, PAUSES, bare_name, leading_name
from otel_step_hook.steps.profile import NOT_TERMINAL, Profile, Verdict, as_text, attribute_is, first_attribute
from otel_step_hook.steps.spans import StartedSpan


def _outcome(span: StartedSpan, _: BaseException | None) -> Outcome | Verdict | None:
    """Return the outcome by the exception that the last recorded message begins with, or None."""
    last = next((event.attributes or {} for event in reversed(span.events) if event.name == "exception"), {})
    if last.get("exception.type") != "Exception":
        return None
    name = bare_name(leading_name(as_text(last.get("exception.message"))))
    if name in PAUSES:
        return NOT_TERMINAL
    if name == "GeneratorExit":  # a consumer that has got what it wanted
        return Outcome.SUCCESS
    return Outcome.CANCELLED if name in CANCELLATIONS else Outcome.FAILED


PROFILES = (
    Profile(
        name="langsmith",
        scopes=("langsmith",),
        required_attributes=("gen_ai.operation.name",),
        is_step=attribute_is("gen_ai.operation.name", "execute_tool"),
        step_id=first_attribute("gen_ai.tool.call.id"),
        outcome=_outcome,
    ),
)
