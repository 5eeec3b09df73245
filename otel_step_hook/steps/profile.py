"""What a `Profile` is, and the words that its rules are written in.

Rules are asked on the application's thread: each is a function of its arguments, takes no lock,
and answers for any attributes whatever.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from opentelemetry.sdk.trace import ReadableSpan

from otel_step_hook.errors import ConfigurationError
from otel_step_hook.steps.event import Outcome, text_of

Attributes = Mapping[str, object]
Rule = Callable[[str, Attributes], bool]  # of a span's name and attributes
Source = Callable[[Attributes], object]  # a step id, of any type; None or blank where there is none


class Verdict(Enum):
    """What is said of a step's span that has ended, beside the outcomes."""

    NOT_TERMINAL = "not terminal"  # the step waits for somebody, will be tried again, or has not been saved


NOT_TERMINAL = Verdict.NOT_TERMINAL
# Of an ended span, its attributes, and the exception in flight that was not when it began; None: it says nothing.
Word = Callable[[ReadableSpan, Attributes, BaseException | None], Outcome | Verdict | None]


def never(_name: str, _attributes: Attributes) -> bool:
    """No span."""
    return False


def no_id(_attributes: Attributes) -> object:
    """No step id: one is made from trace id and span id."""
    return None


def no_word(_span: ReadableSpan, _attributes: Attributes, _exception: BaseException | None) -> None:
    """No word on the outcome: the general rules decide."""


_OPTIONAL = frozenset({"encloses", "below", "nesting", "step_number", "ends", "tells"})
_RULES = ("is_step", "is_tool", "step_id", "word", *sorted(_OPTIONAL))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # each is itself, and cheap to look for
class Profile:
    """How the spans of one framework are read. Most frameworks need *name*, *scopes*, *is_step* and *step_id*.

    *name* is what ``STEP_COMPLETE_PROFILES`` selects it by. *scopes* are the instrumentation scopes
    that its spans have; without scopes it is asked about the spans of all scopes that no profile
    names. *marks* are attributes of which each of its steps has one, if not from its start; none: any
    span may be one. They keep it cheap to tell that a span is no step.

    *is_step* says, of a span's name and attributes, whether it is a step. It is asked when the span
    begins, and again when it ends. *is_tool* may name others: each is a step of its own, unless it
    is inside of a span that *encloses* (as it began), which is *is_step* if nothing else is said.
    *below*, if given, is what the name of the parent has to fit, which is of the same profile's
    scopes. *nesting*, if given, says of a span's attributes in how many nodes of its own name it is, the one
    that it is or belongs to included: by this and by the running spans of its name above it, it is a node or a piece.
    *starts*, a regular expression, names the spans that may become steps, or are needed to know one:
    `StepSampler` keeps those that it fits, and those that are steps by what they begin with, marks included.

    *step_id* is where the step id comes from; without one it is made from trace id and span id.
    *step_number* is asked when the span begins, and takes part in an id as attribute ``step_number``.

    *word* is what the framework itself says of the outcome. With *hides_failures*, status OK is no
    success while an exception is in flight. With *is_once*, a step is told once with each outcome.
    *ends* are spans with which the steps directly below them end, those that have no end of their own.

    *tells* reads a span that is no step and knows more about one: its step id, and names with their
    values, which ``STEP_COMPLETE_PAYLOAD=full`` sends. With *is_strict*, an attribute ``step_id`` alone
    makes no step of the spans of *scopes*.

    Raises `ConfigurationError` for scopes or marks that are no names, for rules that are no functions,
    and for *starts* that is no regular expression.
    """

    name: str
    scopes: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    is_step: Rule = never
    is_tool: Rule = never
    encloses: Rule | None = None
    below: Rule | None = None
    nesting: Callable[[Attributes], int] | None = None
    starts: str = ""
    step_id: Source = no_id
    step_number: Callable[[], object] | None = None
    word: Word = no_word
    hides_failures: bool = False
    is_once: bool = False
    ends: Rule | None = None
    tells: Callable[[str, Attributes], tuple[str, Mapping[str, str]] | None] | None = None
    is_strict: bool = False

    def __post_init__(self) -> None:
        for field in ("scopes", "marks"):
            names = getattr(self, field)
            if isinstance(names, str) or not all(isinstance(name, str) for name in names):
                raise ConfigurationError(f"{field} of profile {self.name!r} is {names!r}; expected a tuple of names")
        for field in _RULES:
            rule = getattr(self, field)
            if not (callable(rule) or (rule is None and field in _OPTIONAL)):
                raise ConfigurationError(f"{field} of profile {self.name!r} is {rule!r}; expected a function")
        try:
            re.compile(self.starts)
        except (re.error, TypeError) as error:
            raise ConfigurationError(
                f"starts of profile {self.name!r} is {self.starts!r} ({error}); expected a regular expression for names"
            ) from None

    @property
    def needs_places(self) -> bool:
        """Whether it matters what a span began below."""
        return self.is_tool is not never or self.below is not None or self.nesting is not None or self.ends is not None

    def may_start(self, name: str, attributes: Attributes) -> bool:
        """Whether a span that begins so may become a step, or is needed to know one."""
        if self.starts and named(self.starts)(name, attributes):
            return True
        return self.is_step(name, attributes) or self.is_tool(name, attributes)


def has(key: str) -> Rule:
    """Spans with this attribute."""
    return lambda _, attributes: key in attributes


def says(key: str, *values: str) -> Rule:
    """Spans with this attribute, of one of these values."""
    # In a tuple, not a set: a value may have no hash. An enum member that is text equals its value.
    return lambda _, attributes: key in attributes and attributes[key] in values


def named(pattern: str) -> Rule:
    """Spans whose whole name this regular expression fits."""
    fits = re.compile(pattern, re.DOTALL).fullmatch
    return lambda name, _: isinstance(name, str) and fits(name) is not None  # the SDK takes anything for a name


def both(one: Rule, other: Rule) -> Rule:
    """Spans that both rules fit."""
    return lambda name, attributes: one(name, attributes) and other(name, attributes)


def either(one: Rule, other: Rule) -> Rule:
    """Spans that one of the two rules fits."""
    return lambda name, attributes: one(name, attributes) or other(name, attributes)


def first(*keys: str, but_not: str = "") -> Source:
    """The first of these attributes that says anything, unless that is *but_not*, a framework's word for nothing."""

    def source(attributes: Attributes) -> object:
        text = next(filter(None, (text_of(attributes.get(key)) for key in keys)), "")
        return None if text == but_not else text

    return source


def joined(*keys: str) -> Source:
    """All of these attributes, with a slash between them; none where one is missing."""

    def source(attributes: Attributes) -> object:
        parts = [text_of(attributes.get(key)) for key in keys]
        return "/".join(parts) if all(parts) else None

    return source


def present(key: str) -> Word:
    """A step whose span has this attribute is not terminal."""
    return lambda _, attributes, __: NOT_TERMINAL if key in attributes else None


def word_in(key: str, words: Mapping[str, Outcome | Verdict]) -> Word:
    """The outcome by the word in this attribute, whatever its case; any other word says nothing."""
    return lambda _, attributes, __: words.get(plain(attributes.get(key)).strip().lower())


def event_named(name: str, outcome: Outcome) -> Word:
    """This outcome for a span with an event of this name."""
    return lambda span, _, __: outcome if any(event.name == name for event in span.events) else None


def plain(value: object) -> str:
    """*value*, if it is text: of an enum member that is text its value. What is no text says nothing."""
    return str.__str__(value) if isinstance(value, str) else ""
