"""What a `Profile` is, and the combinators that its rules are written in.

Rules are asked on the application's thread: each is a function of its arguments, takes no lock,
and answers for any attributes whatever.
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
    """A span, or what a sampler sees of one: its name, and the attributes that it has by now."""

    @property
    def name(self) -> str:
        """As it is by now."""

    @property
    def attributes(self) -> Attributes:
        """By their keys."""


class Verdict(Enum):
    """What is said of a step's span that has ended, beside the outcomes."""

    NOT_TERMINAL = "not terminal"  # the step waits for somebody, will be tried again, or has not been saved


NOT_TERMINAL = Verdict.NOT_TERMINAL
Rule = Callable[[SpanView], bool]
PartRule = Callable[[StartedSpan], bool]
StepIdRule = Callable[[StartedSpan], object]  # a step id, of any type; None or blank where there is none
# Of a span that has ended, and the exception in flight that was not when it began; None: it says nothing.
OutcomeRule = Callable[[StartedSpan, BaseException | None], Outcome | Verdict | None]


def never(_span: SpanView) -> bool:
    """No span."""
    return False


def no_id(_span: StartedSpan) -> object:
    """No step id: one is made from trace id and span id."""
    return None


def no_outcome(_span: StartedSpan, _exception: BaseException | None) -> None:
    """Nothing on the outcome: the general rules decide."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # each is itself, and cheap to look for
class Profile:
    """What the spans of one framework look like. Most need *name*, *scopes*, *is_step* and *step_id*.

    *name* is what ``STEP_COMPLETE_PROFILES`` selects it by. *scopes* are the instrumentation scopes that its spans
    have; without scopes it is asked about the spans of all scopes that no profile names. *required_attributes* are
    attributes of which each of its steps has one, if not from its start; none: any span may be a step.

    *is_step* says of a span, by its ``name`` and ``attributes``, whether it is a step. It is asked when the span
    begins, and again when it ends. *sampled_names*, a regular expression, names the spans that may become steps, or
    are needed to know one: `StepSampler` keeps those, and those that are steps by what they begin with.

    *step_id* reads the step id off a span; without one it is made from trace id and span id. *outcome* is what the
    framework itself says of the outcome, given the span, with ``status``, ``events`` and ``end_time``, and the
    exception in flight, if it was not in flight when the span began.

    Rules are called on the application's thread. Raises `ConfigurationError` for scopes or attributes that are no
    names, for rules that are no functions, and for *sampled_names* that is no regular expression.
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
        """Whether a span that begins so may become a step, or is needed to know one."""
        return bool(self.sampled_names and name_matches(self.sampled_names)(span)) or self.is_step(span)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameworkProfile(Profile):
    """What only the table of frameworks needs beside a `Profile`.

    *is_part* says of a span that is a step whether it is only a part of a step that another span reports; by the span
    and those around it. *at_start* is asked for facts of the running code when a span begins. *ends_children* says of
    a span that the steps directly below it end with it, those that have no end of their own. *details* reads a span
    that is no step and knows more about one: its step id, and names with their values. With *report_once* a step is
    reported once with each outcome. With *exclusive* an attribute ``step_id`` alone makes no step.
    """

    is_part: PartRule | None = None
    at_start: Callable[[], Mapping[str, object]] | None = None
    ends_children: Rule | None = None
    details: Callable[[StartedSpan], tuple[str, Mapping[str, str]] | None] | None = None
    report_once: bool = False
    exclusive: bool = False

    @classmethod
    def of(cls, profile: Profile) -> "FrameworkProfile":
        """The same profile, with nothing besides; one that is from the table as it is."""
        if isinstance(profile, cls):
            return profile
        return cls(**{field.name: getattr(profile, field.name) for field in fields(Profile)})


def has_attribute(key: str) -> Rule:
    """Spans with this attribute."""
    return lambda span: key in span.attributes


def attribute_is(key: str, *values: str) -> Rule:
    """Spans with this attribute, of one of these values."""
    # In a tuple, not a set: a value may have no hash. An enum member that is text equals its value.
    return lambda span: key in span.attributes and span.attributes[key] in values


def name_matches(pattern: str) -> Rule:
    """Spans whose whole name this regular expression fits."""
    fits = re.compile(pattern, re.DOTALL).fullmatch
    return lambda span: isinstance(span.name, str) and fits(span.name) is not None  # the SDK takes anything for a name


_S = TypeVar("_S", bound=SpanView)


def both(one: Callable[[_S], bool], other: Callable[[_S], bool]) -> Callable[[_S], bool]:
    """Spans that both rules fit."""
    return lambda span: one(span) and other(span)


def either(one: Callable[[_S], bool], other: Callable[[_S], bool]) -> Callable[[_S], bool]:
    """Spans that one of the two rules fits."""
    return lambda span: one(span) or other(span)


def inside(rule: Rule, *scopes: str) -> PartRule:
    """Spans with one around them, however far above, that the rule fits: of these scopes, or of the span's own."""

    def is_inside(span: StartedSpan) -> bool:
        known = scopes or (span.scope,)
        return any(above.scope in known and rule(above) for above in span.ancestors())

    return is_inside


def not_below(rule: Rule) -> PartRule:
    """Spans whose parent, if it is of the same scope, does not fit the rule; and those without one."""
    return lambda span: span.parent is None or span.parent.scope != span.scope or not rule(span.parent)


def first_attribute(*keys: str, but_not: str = "") -> Callable[[StartedSpan], str | None]:
    """The first of these attributes that says anything, unless that is *but_not*, a framework's word for nothing."""

    def source(span: StartedSpan) -> str | None:
        for key in keys:
            if text := step_id_text(span.attributes.get(key)):
                return None if text == but_not else text
        return None

    return source


def joined_attributes(*keys: str) -> StepIdRule:
    """All of these attributes, with a slash between them; none where one is missing."""

    def source(span: StartedSpan) -> object:
        parts = [step_id_text(span.attributes.get(key)) for key in keys]
        return "/".join(parts) if all(parts) else None

    return source


def not_terminal_if(key: str) -> OutcomeRule:
    """A step whose span has this attribute is not terminal."""
    return lambda span, _: NOT_TERMINAL if key in span.attributes else None


def outcome_from(key: str, outcomes: Mapping[str, Outcome | Verdict]) -> OutcomeRule:
    """The outcome by the word in this attribute, whatever its case; any other word says nothing."""
    return lambda span, _: outcomes.get(as_text(span.attributes.get(key)).strip().lower())


def outcome_if_event(name: str, outcome: Outcome) -> OutcomeRule:
    """This outcome for a span with an event of this name."""
    return lambda span, _: outcome if any(event.name == name for event in span.events) else None


def as_text(value: object) -> str:
    """*value*, if it is text: of an enum member that is text its value. What is no text says nothing."""
    return str.__str__(value) if isinstance(value, str) else ""
