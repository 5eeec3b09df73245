"""`Profile`, which describes the spans of one framework, and functions that make its rules.

Rules are called on the application's thread: each is a function of its arguments alone, takes no lock, and copes with
attributes of any type.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Protocol, TypeVar

from otel_step_hook.errors import ConfigurationError
from otel_step_hook.steps.event import Outcome, step_id_text
from otel_step_hook.steps.spans import StartedSpan

Attributes = Mapping[str, object]


class SpanView(Protocol):
    """A span, or what a sampler knows of a span that is about to begin."""

    @property
    def name(self) -> str:
        """The current name."""

    @property
    def attributes(self) -> Attributes:
        """The current attributes by their keys."""


class Verdict(Enum):
    """What an outcome rule may return besides an `Outcome`."""

    NOT_TERMINAL = "not terminal"  # the step waits for an answer, will be tried again, or has not been saved


NOT_TERMINAL = Verdict.NOT_TERMINAL
Rule = Callable[[SpanView], bool]
PartRule = Callable[[StartedSpan], bool]
StepIdRule = Callable[[StartedSpan], object]  # returns a step id of any type; None or blank text without one
# Called with a span that has ended, and the exception in flight unless it was in flight already when the span began.
# Returns None to leave the decision to the general rules.
OutcomeRule = Callable[[StartedSpan, BaseException | None], Outcome | Verdict | None]


def never(_span: SpanView) -> bool:
    """Match no span."""
    return False


def no_id(_span: StartedSpan) -> object:
    """Return no step id, so that one is made from trace id and span id."""
    return None


def no_outcome(_span: StartedSpan, _exception: BaseException | None) -> None:
    """Return no outcome, so that the general rules decide."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # compared by identity, which is fast
class Profile:
    """Describes the spans of one framework. Most profiles need *name*, *scopes*, *is_step* and *step_id*.

    *name* selects the profile in ``STEP_COMPLETE_PROFILES``. *scopes* are the names of the instrumentation scopes of
    its spans; a profile without scopes is asked about the spans of all scopes that no profile names.
    *required_attributes* are keys of attributes: every step has at least one of them, at the latest when it ends.
    Without them any span may be a step.

    *is_step* gets a span, with ``name`` and ``attributes``, and returns whether it is a step. It is called when the
    span begins, and again when it ends. *sampled_names* is a regular expression for the whole names of spans that may
    become steps, or by which steps are recognised: `StepSampler` records these, and spans that are steps already by
    the name and the attributes that they begin with.

    *step_id* returns the step id of a span, a value of any type; if that is None or blank text, an id is made from
    trace id and span id. *outcome* gets the span, with ``status``, ``events`` and ``end_time`` (unix nanoseconds), and
    the exception in flight, or None if that was in flight already when the span began. It returns an `Outcome`,
    `NOT_TERMINAL` when the step has not ended, or None to leave the decision to the general rules.

    Rules are called on the application's threads. Raises `ConfigurationError` for *scopes* or *required_attributes*
    that are no tuple of names, for rules that are no functions, and for *sampled_names* that is no regular expression.
    """

    name: str
    scopes: tuple[str, ...] = ()
    required_attributes: tuple[str, ...] = ()
    sampled_names: str = ""
    is_step: Rule = never
    step_id: StepIdRule = no_id
    outcome: OutcomeRule = no_outcome

    def __post_init__(self) -> None:
        for field in ("scopes", "required_attributes"):
            names = getattr(self, field)
            if isinstance(names, str) or not all(isinstance(name, str) for name in names):
                raise ConfigurationError(f"{field} of profile {self.name!r} is {names!r}; expected a tuple of names")
        for field in ("is_step", "step_id", "outcome"):
            rule = getattr(self, field)
            if not callable(rule):
                raise ConfigurationError(f"{field} of profile {self.name!r} is {rule!r}; expected a function")
        try:
            re.compile(self.sampled_names)
        except (re.error, TypeError) as error:
            raise ConfigurationError(
                f"sampled_names of profile {self.name!r} is {self.sampled_names!r} ({error}); "
                "expected a regular expression for names"
            ) from None

    def may_be_step(self, span: SpanView) -> bool:
        """Whether *span*, as it begins, may become a step, or is one by which steps are recognised."""
        return bool(self.sampled_names and name_matches(self.sampled_names)(span)) or self.is_step(span)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameworkProfile(Profile):
    """A `Profile` with what only built-in profiles need.

    *is_part* returns whether a span for which *is_step* is true is only a part of a step that another span reports; it
    gets the span and, through it, its ancestors. *calls* matches spans of any scope that do the same work as a step
    inside of them: the step is a part if such a span, or a step of its framework around it, is reported. *at_start*
    returns facts about the running code when a span begins. *ends_children* returns whether the steps directly below a
    span end with it if they have not ended before.
    *details* reads a span that is no step but describes one, and returns the step's id, and further values by name.
    With *report_once* a step is reported once with each outcome. With *exclusive* an attribute ``step_id`` alone does
    not make a span a step.
    """

    is_part: PartRule | None = None
    calls: PartRule | None = None
    at_start: Callable[[], Mapping[str, object]] | None = None
    ends_children: Rule | None = None
    details: Callable[[StartedSpan], tuple[str, Mapping[str, str]] | None] | None = None
    report_once: bool = False
    exclusive: bool = False

    @classmethod
    def of(cls, profile: Profile) -> "FrameworkProfile":
        """Return *profile* as a `FrameworkProfile`, the same object if it is one."""
        if isinstance(profile, cls):
            return profile
        return cls(**{field.name: getattr(profile, field.name) for field in fields(Profile)})


def has_attribute(key: str) -> Rule:
    """Match spans that have the attribute *key*."""
    return lambda span: key in span.attributes


def attribute_is(key: str, *values: str) -> Rule:
    """Match spans whose attribute *key* has one of *values*."""
    # In a tuple, not a set: an attribute's value may be unhashable. An enum member that is text equals its value.
    return lambda span: key in span.attributes and span.attributes[key] in values


def name_matches(pattern: str) -> Rule:
    """Match spans whose whole name matches the regular expression *pattern*."""
    matches = re.compile(pattern, re.DOTALL).fullmatch
    # The SDK accepts a name of any type.
    return lambda span: isinstance(span.name, str) and matches(span.name) is not None


_S = TypeVar("_S", bound=SpanView)


def both(one: Callable[[_S], bool], other: Callable[[_S], bool]) -> Callable[[_S], bool]:
    """Match spans that match both rules."""
    return lambda span: one(span) and other(span)


def either(one: Callable[[_S], bool], other: Callable[[_S], bool]) -> Callable[[_S], bool]:
    """Match spans that match at least one of the rules."""
    return lambda span: one(span) or other(span)


def but_not(rule: Rule, excluded: Rule) -> Rule:
    """Match spans that match *rule* and do not match *excluded*."""
    return lambda span: rule(span) and not excluded(span)


def inside(rule: Rule, *scopes: str) -> PartRule:
    """Match spans with an ancestor that matches *rule* and is of one of *scopes*, or of the span's own scope."""

    def is_inside(span: StartedSpan) -> bool:
        accepted_scopes = scopes or (span.scope,)
        return any(above.scope in accepted_scopes and rule(above) for above in span.ancestors())

    return is_inside


def not_below(rule: Rule) -> PartRule:
    """Match spans without a parent of the same scope that matches *rule*."""
    return lambda span: span.parent is None or span.parent.scope != span.scope or not rule(span.parent)


def first_attribute(*keys: str) -> Callable[[StartedSpan], str | None]:
    """Return a rule for the first attribute that is neither blank nor a placeholder such as ``<not specified>``."""

    def source(span: StartedSpan) -> str | None:
        for key in keys:
            if text := step_id_text(span.attributes.get(key)):
                return text
        return None

    return source


def joined_attributes(*keys: str) -> StepIdRule:
    """Return a rule for all of these attributes, with slashes between them; None without one of them.

    A blank attribute, or one that is a placeholder, counts as missing.
    """
    sources = tuple(map(first_attribute, keys))

    def source(span: StartedSpan) -> object:
        parts = [part(span) or "" for part in sources]
        return "/".join(parts) if all(parts) else None

    return source


def not_terminal_if(key: str) -> OutcomeRule:
    """Return a rule by which a step is not terminal if its span has the attribute *key*."""
    return lambda span, _: NOT_TERMINAL if key in span.attributes else None


def outcome_from(key: str, outcomes: Mapping[str, Outcome | Verdict]) -> OutcomeRule:
    """Return a rule that looks the attribute *key* up in *outcomes*, in lower case; None for a value not in there."""
    return lambda span, _: outcomes.get(as_text(span.attributes.get(key)).strip().lower())


def outcome_if_event(name: str, outcome: Outcome) -> OutcomeRule:
    """Return a rule for *outcome*, for spans that have an event called *name*."""
    return lambda span, _: outcome if any(event.name == name for event in span.events) else None


def as_text(value: object) -> str:
    """Return *value* if it is text (of an enum member that is text, its value), and empty text otherwise."""
    return str.__str__(value) if isinstance(value, str) else ""
