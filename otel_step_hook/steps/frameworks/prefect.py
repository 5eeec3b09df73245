"""Prefect: a step is a run of a task, and its outcome is the last state of the run."""

from otel_step_hook.steps.event import Outcome
from otel_step_hook.steps.profile import NOT_TERMINAL, Profile, Verdict, as_text, attribute_is, first_attribute
from otel_step_hook.steps.spans import StartedSpan

_STATES: dict[str, Outcome | Verdict] = {
    "COMPLETED": Outcome.SUCCESS,
    "FAILED": Outcome.FAILED,
    "CANCELLED": Outcome.CANCELLED,
    "PAUSED": NOT_TERMINAL,
    "SCHEDULED": NOT_TERMINAL,  # suspended
}


def _outcome(span: StartedSpan, _: BaseException | None) -> Outcome | Verdict | None:
    """Return the outcome of the last state. CRASHED decides nothing: a task that is cancelled crashes, too."""
    for event in reversed(span.events):
        state = as_text((event.attributes or {}).get("prefect.state.type"))
        if state:
            return _STATES.get(state)
    return None


PROFILES = (
    Profile(
        name="prefect",
        scopes=("prefect",),
        required_attributes=("prefect.run.type",),
        is_step=attribute_is("prefect.run.type", "task"),
        step_id=first_attribute("prefect.run.id"),
        outcome=_outcome,
    ),
)
