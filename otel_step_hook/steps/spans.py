"""What is known of a span from its start to its end, and what of steps outlives their spans."""

import itertools
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeVar

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.trace import Status

from otel_step_hook import _sdk

if TYPE_CHECKING:
    from otel_step_hook.steps.profile import FrameworkProfile

_MAX_ANCESTORS = 100  # ancestors, of those that have ended, that a span knows at least; at most twice as many
_SEEN_MARK = "_otel_step_hook_seen"  # attribute of an exception that was in flight when a span began
NO_ATTRIBUTES: Mapping[str, object] = {}
_NOT_ENDED = ReadableSpan("", resource=Resource.get_empty())  # in place of a span that has not ended
REPORTED = ReadableSpan("", resource=Resource.get_empty())  # in place of one whose end has been reported
_K = TypeVar("_K")
_V = TypeVar("_V")


class StartedSpan(weakref.ref[ReadableSpan]):
    """A span from its start to its end, and a weak reference to it: one that never ends takes it along.

    *attributes* are those of the span that began, while they change: what reaches the end may be somebody's scrubbed
    copy. *parent* is the span around it, of whatever scope. *facts* are what the profiles' `at_start` has found.
    """

    __slots__ = (
        "_depth",
        "_seen",
        "attributes",
        "children",
        "ended",
        "facts",
        "is_listed",
        "name",
        "parent",
        "processor",
        "scope",
        "span_id",
        "step_at_start",
    )

    name: str  # when it began, and from its end on when it ended
    attributes: Mapping[str, Any]
    scope: str  # the name of its instrumentation scope
    span_id: int
    processor: SpanProcessor | None  # of its own provider, as the SDK holds them together
    parent: "StartedSpan | None"
    facts: Mapping[str, object]
    step_at_start: "StepAtStart | None"  # the step that it was when it began
    children: "dict[int, Child] | None"  # that may end with it, by span id
    ended: ReadableSpan  # the span while its end is reported; before that `_RUNNING`, after it `OVER`
    is_listed: bool  # among the children of its parent
    _seen: weakref.ref[BaseException] | str | None
    _depth: int  # how many ancestors it knows

    @classmethod
    def of(cls, span: ReadableSpan, forget: "OnCollected", spans: "Mapping[int, StartedSpan]") -> Self:
        """What is known of *span* when it begins, with its parent if that is among *spans*, by span id.

        *forget* is called when the span is gone without an end.
        """
        started = cls(span, forget)  # no __init__: every span pays for this
        (
            started.span_id,
            parent_id,
            started.scope,
            started.name,
            started.attributes,
            started.processor,
        ) = _sdk.span_start(span)
        parent = started.parent = spans.get(parent_id) if parent_id else None
        started.facts = NO_ATTRIBUTES
        started.step_at_start = started.children = started._seen = None
        started.is_listed = False
        started.ended = _NOT_ENDED
        started._depth = 0
        if parent is not None:
            started._depth = parent._depth + 1  # noqa: SLF001 -- ours
            if started._depth > 2 * _MAX_ANCESTORS:
                started._drop_ended_ancestors()
        return started

    def _drop_ended_ancestors(self) -> None:
        """Forget, beyond the nearest ancestors, those that have ended: spans handed on would make an endless line."""
        above = next(itertools.islice(self.ancestors(), _MAX_ANCESTORS - 1, None))
        while above.parent is not None:
            if above.parent.has_ended:
                above.parent = above.parent.parent
            else:
                above = above.parent
        self._depth = _MAX_ANCESTORS

    def see(self, exception: BaseException) -> None:
        """Remember that *exception* was in flight already when the span began."""
        # Weakly: a strong reference would keep every frame of the traceback. Exceptions that are
        # written in C have no weak references, and the id of one is the next one's as soon as it is
        # freed: they get a mark, in a dict of their own that has room for it.
        try:
            self._seen = weakref.ref(exception)
        except TypeError:
            self._seen = vars(exception).setdefault(_SEEN_MARK, uuid.uuid4().hex)

    def has_seen(self, exception: BaseException | None) -> bool:
        """Whether *exception* was in flight already when the span began: then it says nothing about the span."""
        if exception is None or self._seen is None:
            return False
        if isinstance(self._seen, str):
            return bool(vars(exception).get(_SEEN_MARK) == self._seen)
        return self._seen() is exception

    def ancestors(self) -> "Iterator[StartedSpan]":
        """The spans around it, the nearest first: the hundred nearest, and beyond them those that are running."""
        above = self.parent
        while above is not None:
            yield above
            above = above.parent

    @property
    def has_ended(self) -> bool:
        """Whether it has ended, or is gone without an end."""
        return self.ended is not _NOT_ENDED

    def end(self, ended: ReadableSpan) -> ReadableSpan:
        """The span, now that it has ended: as it was, not the copy that others may have made, unless it is gone."""
        span = self() or ended
        self.name = span.name
        self.ended = span
        return span

    def release(self, required: frozenset[str] | None) -> None:
        """Hold no more than the spans below it, which may outlive it, could ask for: its *required* attributes."""
        self.ended = REPORTED
        if required is not None:
            self.attributes = {key: self.attributes[key] for key in required if key in self.attributes}

    @property
    def status(self) -> Status:
        """As OpenTelemetry has it, at the end."""
        return self.ended.status

    @property
    def events(self) -> Sequence[Event]:
        """As OpenTelemetry has them, at the end."""
        return _sdk.events(self.ended)

    @property
    def end_time(self) -> int:
        """Unix nanoseconds; 0 before the end."""
        return self.ended.end_time or 0

    def list_child(self, child: "Child") -> None:
        """Have *child* end with this span, unless it ends by itself before."""
        if self.children is None:
            self.children = {}
        child.started.is_listed = True
        self.children[child.started.span_id] = child

    def take_children(self) -> "Iterator[Child]":
        """Each child that has not ended by itself when its turn comes, in this thread or in another."""
        children = self.children or {}
        while True:
            try:
                _, child = children.popitem()
            except KeyError:
                return
            yield child

    def claim(self) -> bool:
        """Whether the parent that lists it has not ended it: of both ends, perhaps in two threads, the first counts."""
        children = self.parent.children if self.parent is not None else None
        is_mine = children is not None and children.pop(self.span_id, None) is not None
        return is_mine or not self.is_listed  # the parent may have gone just now

    def forget_children(self) -> None:
        """Leave the children to their own ends: nobody is going to end this span any more."""
        for child in tuple((self.children or {}).values()):
            child.started.is_listed = False
        self.children = None


class StepAtStart(NamedTuple):
    """A step as it was when its span began: the SDK evicts the oldest attributes first."""

    profile: "FrameworkProfile"
    user_step_id: str = ""
    framework_step_id: str = ""  # the framework's


class Child(NamedTuple):
    """A span that ends with its parent unless it ends by itself before, and the profile that says so.

    It holds the span: a framework may hold one no more when it has been cancelled.
    """

    span: ReadableSpan
    started: StartedSpan
    profile: "FrameworkProfile"


class Recent(Generic[_K, _V]):
    """The last few of what has been remembered, from any thread and without a lock."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._memory: OrderedDict[_K, _V] = OrderedDict()

    def remember(self, key: _K, value: _V) -> _V:
        """Remember *value* under *key*, unless there is one; return the one that is there."""
        found = self._memory.setdefault(key, value)
        while len(self._memory) > self._most:
            with suppress(KeyError):  # another thread has taken the last
                self._memory.popitem(last=False)
        return found

    def replace(self, key: _K, value: _V) -> None:
        """Remember *value* under *key*, whatever was there."""
        self._memory.pop(key, None)
        self.remember(key, value)

    def get(self, key: _K, default: _V) -> _V:
        """What is remembered under *key*."""
        return self._memory.get(key, default)

    def pop(self, key: _K) -> _V | None:
        """What was remembered under *key*, and is not any more."""
        return self._memory.pop(key, None)


OnCollected = Callable[[StartedSpan], None]
