"""`StartedSpan`, which holds what is known of a span from its start to its end, and `Recent`, a bounded memory."""

import itertools
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeVar

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.trace import SpanKind, Status

from otel_step_hook import _sdk

if TYPE_CHECKING:
    from otel_step_hook.steps.profile import FrameworkProfile

_MAX_ANCESTORS = 100  # the least number of ancestors that a span keeps even if they have ended; at most twice as many
_SEEN_MARK = "_otel_step_hook_seen"  # attribute that marks an exception as in flight when a span began
NO_ATTRIBUTES: Mapping[str, object] = {}
_NOT_ENDED = ReadableSpan("", resource=Resource.get_empty())  # in place of the ended span, before the end
ANSWERED = "is_answered"  # the name of a fact: the span of the server below has reported the request of this client
REPORTED = ReadableSpan("", resource=Resource.get_empty())  # in place of the ended span, after its end was reported
_K = TypeVar("_K")
_V = TypeVar("_V")


class StartedSpan(weakref.ref[ReadableSpan]):
    """What is known of a span from its start to its end. The span is held weakly: it may never end, and be collected.

    *attributes* are those of the span that began, and change with it: the span that reaches `on_end` may be a copy
    that another processor has scrubbed. *parent* is the span around it, of any scope. *facts* are what `at_start` of
    the profiles has returned, and what `answer` has recorded.
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

    name: str  # the name at the start; after the end, the name at the end
    attributes: Mapping[str, Any]
    scope: str  # the name of its instrumentation scope
    span_id: int
    processor: SpanProcessor | None  # the SDK's holder of all processors of the span's provider
    parent: "StartedSpan | None"
    facts: Mapping[str, object]
    step_at_start: "StepAtStart | None"  # None if it was no step when it began
    children: "dict[int, Child] | None"  # by span id: spans that end with this one unless they end before
    ended: ReadableSpan  # the ended span while its end is reported; `_NOT_ENDED` before that, `REPORTED` afterwards
    is_listed: bool  # whether its parent has listed it in `children`
    _seen: weakref.ref[BaseException] | str | None  # the exception in flight at the start, or the mark on it
    _depth: int  # how many ancestors it has

    @classmethod
    def of(cls, span: ReadableSpan, forget: "OnCollected", spans: "Mapping[int, StartedSpan]") -> Self:
        """Return what is known of *span* when it begins. Its parent is looked up in *spans*, by span id.

        *forget* is called when the span is garbage collected without an end.
        """
        started = cls(span, forget)  # without an `__init__`, whose call every span would pay for
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
        """Drop the ended ancestors beyond the nearest: if each span began the next, the chain would grow for ever."""
        above = next(itertools.islice(self.ancestors(), _MAX_ANCESTORS - 1, None))
        while above.parent is not None:
            if above.parent.has_ended:
                above.parent = above.parent.parent
            else:
                above = above.parent
        self._depth = _MAX_ANCESTORS

    def see(self, exception: BaseException) -> None:
        """Record that *exception* was in flight already when the span began."""
        # By a weak reference: a strong one would keep every frame of the traceback. Exceptions that are written in C
        # do not support weak references, and CPython uses the id of a freed object again: these get a mark in their
        # `__dict__`.
        try:
            self._seen = weakref.ref(exception)
        except TypeError:
            self._seen = vars(exception).setdefault(_SEEN_MARK, uuid.uuid4().hex)

    def has_seen(self, exception: BaseException | None) -> bool:
        """Whether *exception* was in flight already when the span began: then it is not the span's own."""
        if exception is None or self._seen is None:
            return False
        if isinstance(self._seen, str):
            return bool(vars(exception).get(_SEEN_MARK) == self._seen)
        return self._seen() is exception

    def ancestors(self) -> "Iterator[StartedSpan]":
        """Yield the spans around it, the nearest first: the nearest hundred, and beyond them those that still run."""
        above = self.parent
        while above is not None:
            yield above
            above = above.parent

    def answer(self, is_request: "Callable[[StartedSpan], bool]") -> None:
        """Record on the client spans of a request, which are around this span of its server, that this one reports it.

        *is_request* is true for the spans of such requests. A server's span farther out has made the request.
        """
        for above in self.ancestors():
            if is_request(above):
                span = above()
                if span is not None and span.kind is SpanKind.SERVER:
                    return
                above.facts = {**above.facts, ANSWERED: True}

    @property
    def has_ended(self) -> bool:
        """Whether the span has ended, or was garbage collected without an end."""
        return self.ended is not _NOT_ENDED

    def end(self, ended: ReadableSpan) -> ReadableSpan:
        """Record the end, and return the original span; *ended*, perhaps another processor's copy, if that is gone."""
        span = self() or ended
        self.name = span.name
        self.ended = span
        return span

    def release(self, required: frozenset[str] | None) -> None:
        """Keep only what spans below it, which may outlive it, can ask for: *required* attributes; None keeps all."""
        self.ended = REPORTED
        if required is not None:
            self.attributes = {key: self.attributes[key] for key in required if key in self.attributes}

    @property
    def status(self) -> Status:
        """OpenTelemetry's status at the end."""
        return self.ended.status

    @property
    def events(self) -> Sequence[Event]:
        """OpenTelemetry's events at the end."""
        return _sdk.events(self.ended)

    @property
    def end_time(self) -> int:
        """Unix nanoseconds; 0 before the end."""
        return self.ended.end_time or 0

    def list_child(self, child: "Child") -> None:
        """Let *child* end with this span, unless it ends before."""
        if self.children is None:
            self.children = {}
        child.started.is_listed = True
        self.children[child.started.span_id] = child

    def take_children(self) -> "Iterator[Child]":
        """Remove and yield the children, except those that end meanwhile, on this thread or another."""
        children = self.children or {}
        while True:
            try:
                _, child = children.popitem()
            except KeyError:
                return
            yield child

    def claim(self) -> bool:
        """Whether this end counts. The parent may end the span, too, perhaps on another thread: the first end wins."""
        children = self.parent.children if self.parent is not None else None
        is_first = children is not None and children.pop(self.span_id, None) is not None
        return is_first or not self.is_listed  # the parent may have been garbage collected just now

    def forget_children(self) -> None:
        """Let the children end by themselves only: this span will never end."""
        for child in tuple((self.children or {}).values()):
            child.started.is_listed = False
        self.children = None


class StepAtStart(NamedTuple):
    """A step as it was when its span began: beyond its limit, the SDK drops the oldest attributes first."""

    profile: "FrameworkProfile"
    user_step_id: str = ""
    framework_step_id: str = ""


class Child(NamedTuple):
    """A span that ends with its parent unless it ends before, and the profile that says so.

    The reference to the span is strong: a framework that was cancelled may have dropped its own.
    """

    span: ReadableSpan
    started: StartedSpan
    profile: "FrameworkProfile"


class Recent(Generic[_K, _V]):
    """The latest entries of a mapping, at most *max_size*. Any thread may use it; it takes no lock."""

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._entries: OrderedDict[_K, _V] = OrderedDict()

    def remember(self, key: _K, value: _V) -> _V:
        """Keep *value* under *key* unless there is one already; return the value that is kept."""
        found = self._entries.setdefault(key, value)
        while len(self._entries) > self._max_size:
            with suppress(KeyError):  # another thread has removed the last one
                self._entries.popitem(last=False)
        return found

    def replace(self, key: _K, value: _V) -> None:
        """Keep *value* under *key*, as the latest entry."""
        self._entries.pop(key, None)
        self.remember(key, value)

    def get(self, key: _K, default: _V) -> _V:
        """Return the value under *key*, or *default*."""
        return self._entries.get(key, default)

    def pop(self, key: _K) -> _V | None:
        """Remove the value under *key* and return it; None without one."""
        return self._entries.pop(key, None)


OnCollected = Callable[[StartedSpan], None]
