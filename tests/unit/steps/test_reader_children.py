"""A span whose end reports its open children, while other threads end these children."""

import sys
from collections.abc import Callable
from threading import Thread
from types import FrameType

from emitting import CANCELLED, IS_OK, SUCCESS, Framework, Step, end, in_flight
from opentelemetry.trace import Span

from otel_step_hook.steps.profile import FrameworkProfile, Rule, SpanView, name_matches

_SCOPE = "their.scope"


def _is_unit(span: SpanView) -> bool:
    return span.name.startswith("unit")


def _framework(is_step: Rule = _is_unit) -> Framework:
    """Return a framework in which the end of a ``group`` reports the open units directly below it."""
    profile = FrameworkProfile(name="theirs", scopes=(_SCOPE,), is_step=is_step, ends_children=name_matches("group"))
    return Framework(_SCOPE, [profile])


def _end_elsewhere(span: Span) -> None:
    """End *span* in another thread, and wait for that thread."""
    thread = Thread(target=end, args=(span, IS_OK))
    thread.start()
    thread.join()


def _at_popitem(call: Callable[[], None]) -> Callable[[FrameType, str, object], None]:
    """Return a function for `sys.setprofile` that calls *call* right before the next ``popitem()``."""

    def profile(_: FrameType, event: str, callee: object) -> None:
        if event == "c_call" and getattr(callee, "__name__", "") == "popitem":
            sys.setprofile(None)
            call()

    return profile


def _outcomes(framework: Framework) -> dict[str, object]:
    assert len({step.name for step in framework.steps}) == len(framework.steps), "a step was reported twice"
    return {step.name: step.outcome for step in framework.steps}


def _ended_during_the_loop(which: int) -> dict[str, object]:
    """Return the outcomes of two units; *which* one ends elsewhere while the group's end asks about the last one."""

    def is_step(span: SpanView) -> bool:
        if ending:
            _end_elsewhere(ending.pop())
        return _is_unit(span)

    ending: list[Span] = []
    framework = _framework(is_step)
    group = framework.start("group")
    units = [framework.start(f"unit {number}", below=group) for number in range(2)]
    ending.append(units[which])
    end(group, in_flight(KeyboardInterrupt))
    return _outcomes(framework)


def test_a_child_that_ends_while_its_parent_reports_others_keeps_its_own_outcome() -> None:
    """A child that the parent has not reported yet is reported by its own end."""
    assert _ended_during_the_loop(0) == {"unit 0": SUCCESS, "unit 1": CANCELLED}


def test_a_child_that_ends_while_its_parent_reports_it_is_reported_once() -> None:
    """A child that the parent has already taken is reported by the parent, and its own end is ignored."""
    assert _ended_during_the_loop(1) == {"unit 0": CANCELLED, "unit 1": CANCELLED}


def test_the_last_child_may_end_right_before_its_parent_takes_it() -> None:
    """If the list of children becomes empty before the parent takes one, nothing is lost, and nothing raises."""
    framework = _framework()
    group = framework.start("group")
    unit = framework.start("unit", below=group)
    usual = sys.getprofile()
    sys.setprofile(_at_popitem(lambda: _end_elsewhere(unit)))
    try:
        end(group, in_flight(KeyboardInterrupt))
    finally:
        sys.setprofile(usual)
    assert framework.recorder.losses == []
    assert [Step(step.name, "", step.outcome) for step in framework.steps] == [Step("unit", "", SUCCESS)]
