"""From spans to steps: owns what is noted of spans between their start and their end."""

import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from opentelemetry.sdk.trace import ReadableSpan, Span

from otel_step_hook.steps.event import (
    STEP_ID_KEYS,
    Outcome,
    StepEvent,
    attributes_of,
    generated_step_id,
    text_of,
)
from otel_step_hook.steps.notes import NOTHING, Note
from otel_step_hook.steps.outcome import outcome_of, users_outcome
from otel_step_hook.steps.profile import Attributes, Profile, first
from otel_step_hook.steps.runtime import is_in_workflow, is_replaying
from otel_step_hook.steps.table import Rows, table

_REMEMBERED = 10_000  # steps, of those that are told once, and of those that another span tells of; 5 MB with UUIDs
_FORGOTTEN = 100  # spans that have gone without an end, of which what was noted is kept for a while
_LOGFIRE_COPIES = ("pending_span", "log")  # spans that Logfire ends beside the real ones
_users_id = first(*STEP_ID_KEYS)
_K = TypeVar("_K")
_V = TypeVar("_V")


class StepReader:
    """Says of each span that ends which step has ended with it, and how.

    *profiles* are asked in their order. *is_step*, if given, replaces their rules for which spans are
    steps. *on_fault* is told what rules raise that cost no step. May be called from any thread, from a
    signal handler and by the garbage collector at any moment: it takes no lock.
    """

    def __init__(
        self,
        profiles: Iterable[Profile],
        is_step: Callable[[ReadableSpan], bool] | None = None,
        on_fault: Callable[[Exception], object] = lambda _: None,
    ) -> None:
        self._is_step = is_step
        self._on_fault = on_fault
        self._rows, self._others = table(tuple(profiles), is_asked=is_step is not None)
        self._notes: dict[int, Note] = {}  # by span id; only for the spans that need one
        self._forgotten: OrderedDict[int, Note] = OrderedDict()  # of spans that are gone; the last few
        self._has_enclosed = False  # whether any span has begun that encloses tools
        self.truncated = 0  # spans that were no steps, but have lost attributes to a limit: perhaps a step id
        self._told: OrderedDict[tuple[str, Outcome], object] = OrderedDict()
        self._details: OrderedDict[str, Mapping[str, str]] = OrderedDict()

    def _rows_of(self, span: ReadableSpan) -> Rows:
        scope = span.instrumentation_scope
        return self._others if scope is None else self._rows.get(scope.name, self._others)

    def begin(self, span: Span, exception: BaseException | None) -> bool:
        """Note what cannot be seen any more when *span* ends; *exception* is the one in flight.

        False where there is nothing to note: it will hardly become a step.
        """
        rows, attributes = self._rows_of(span), attributes_of(span)
        note = None if exception is None else Note(exception)
        try:
            if rows.placing or self._has_enclosed:
                note = self._placed(note, rows, span, attributes)
            if rows.numbering:
                note = note or Note()
                note.number = rows.numbering[0]()
        except Exception as error:  # noqa: BLE001 -- a rule of somebody else's must not cost what else is noted
            self._on_fault(error)
        if is_in_workflow():
            note = note or Note()
            note.is_in_workflow = True
        profile = rows.found(span.name, attributes, note or NOTHING, self._on_fault)
        if profile is not None:
            note = note or Note()
            note.profile = profile
            with suppress(Exception):  # an id is too long, or its source raises: told when the span ends
                note.users_id = text_of(_users_id(attributes))
                note.step_id = text_of(_id_in(attributes, profile, note))
        if note is None:
            return False
        self._keep(span, note)
        return True

    def _placed(self, note: Note | None, rows: Rows, span: Span, attributes: Attributes) -> Note | None:
        parent = self._notes.get(span.parent.span_id) if span.parent is not None else None
        if rows.placing:
            note = note or Note()
            note.place(rows.placing, span.name, attributes, parent)
            self._has_enclosed = self._has_enclosed or bool(note.encloses)
        if parent is not None and (parent.encloses or parent.inside):
            note = note or Note()
            note.inside = tuple({*parent.encloses, *parent.inside})
        return note

    def _keep(self, span: Span, note: Note) -> None:
        span_id = span.get_span_context().span_id
        self._notes[span_id] = note
        # A span that is never ended takes its note with it.
        note.alive = weakref.ref(span, functools.partial(_forget, self._notes, self._forgotten, span_id))
        if note.parent is not None and note.ender is not None and note.ender.may_start(note.name, attributes_of(span)):
            note.is_open = True
            note.parent.open[span_id] = span, note

    def end(self, span: ReadableSpan, exception: Callable[[], BaseException | None]) -> Iterable[StepEvent]:
        """The steps that have ended with *span*: none, its own, and those below it that have no end of their own.

        *exception* says which one is in flight. Raises ValueError for a step of which nothing can be
        told, when all others have been, and what rules of the user's raise.
        """
        # Most spans are no steps, and pay for these lines alone: private names, since each property is one more call.
        try:
            attributes, dropped = span._attributes._dict, span._attributes.dropped  # type: ignore[union-attr]  # noqa: SLF001
            rows = self._rows.get(span._instrumentation_scope._name, self._others)  # type: ignore[union-attr]  # noqa: SLF001
            note = self._taken(span._context[1]) if self._notes or self._forgotten else None  # type: ignore[index]  # noqa: SLF001
        except (AttributeError, TypeError):  # of a span that was made by hand
            attributes, dropped = attributes_of(span), 0
            rows = self._rows_of(span)
            note = self._taken(span.context.span_id) if span.context is not None else None
        # The keys' isdisjoint() walks the smaller side; a frozenset's would walk all attributes.
        if note is None and rows.skipped is not None and attributes.keys().isdisjoint(rows.skipped):
            if dropped:
                self.truncated += 1  # two threads at once may count one
            return ()
        note = note or NOTHING
        flying = exception()
        return self._ended(span, rows, attributes, note, None if note.has_seen(flying) else flying)

    def _taken(self, span_id: int) -> Note | None:
        note = self._notes.pop(span_id, None)
        return self._forgotten.pop(span_id, None) if note is None and self._forgotten else note

    def _ended(
        self, span: ReadableSpan, rows: Rows, attributes: Attributes, note: Note, exception: BaseException | None
    ) -> Iterator[StepEvent]:
        if note is not NOTHING:
            note.has_ended = True
        if note.is_open and note.parent is not None:
            # Whoever takes it out tells it: its parent may be ending at this moment, in another thread.
            note.is_over = note.parent.open.pop(span.context.span_id, None) is None
        for tells in rows.telling:
            try:
                if told := tells(span.name, attributes):
                    _remember(self._details, *told)
            except Exception as error:  # noqa: BLE001 -- as above: it costs a detail, and no step
                self._on_fault(error)
        below, unreadable = self._ended_below(span, attributes, note, exception) if note.open else ([], None)
        yield from below
        profile = self._profile_of(span, rows, attributes, note)
        if profile is not None and not note.is_over and not self._is_piece(profile, attributes, note):
            outcome = None if _is_copy(attributes) else outcome_of(span, attributes, exception, profile)
            own = self._event(span, attributes, note, profile, outcome)
            if own is not None:
                yield own
        elif profile is None and getattr(span._attributes, "dropped", False):  # noqa: SLF001 -- as in `end`
            self.truncated += 1
        if unreadable is not None:
            raise unreadable

    @staticmethod
    def _is_piece(profile: Profile, attributes: Attributes, note: Note) -> bool:
        """Whether a span is a piece of a node around it, which has its name; not one that the user has given an id."""
        if profile.nesting is None or text_of(_users_id(attributes)):
            return False
        # A node that is nested in others of its name has two spans of that name above it for each, the other's and
        # its graph's, or one where the graph has another name; a piece of it has its own besides.
        return note.running_namesakes() > 2 * (max(profile.nesting(attributes), 1) - 1)

    def _ended_below(
        self, parent: ReadableSpan, said: Attributes, note: Note, exception: BaseException | None
    ) -> tuple[list[StepEvent], Exception | None]:
        """The steps below *parent* that have no end of their own, and why the last that cannot be told is none."""
        events: list[StepEvent] = []
        unreadable: Exception | None = None
        while note.open:
            child, child_note = note.open.popitem()[1]
            try:
                event = self._event_below(parent, said, exception, child, child_note)
            except Exception as error:  # noqa: BLE001 -- raised again, when all have been asked
                unreadable = error
            else:
                events += [] if event is None else [event]
        return events, unreadable

    def _profile_of(self, span: ReadableSpan, rows: Rows, attributes: Attributes, note: Note) -> Profile | None:
        faults: list[Exception] = []
        profile = rows.found(span.name, attributes, note, faults.append) or note.profile
        if self._is_step is not None:
            profile = (profile or rows.own) if rows.is_asked and self._is_step(span) else None
        elif profile is None and faults:
            raise faults[-1]  # it may have been a step, which is lost
        for fault in faults:
            self._on_fault(fault)
        return profile

    def _event_below(
        self, parent: ReadableSpan, said: Attributes, exception: BaseException | None, span: Span, note: Note
    ) -> StepEvent | None:
        """The step of *span*, which has no end of its own, and has ended with *parent*, which has *said* how."""
        profile, attributes = note.ender, attributes_of(span)
        if profile is None or not profile.is_step(span.name, attributes):
            return None
        note.is_over = True
        outcome = users_outcome(attributes) or outcome_of(parent, said, exception, profile)
        event = self._event(span, attributes, note, profile, outcome)
        return event and replace(event, end_time=parent.end_time or 0)

    def _event(
        self,
        span: ReadableSpan,
        attributes: Attributes,
        note: Note,
        profile: Profile,
        outcome: Outcome | None,
    ) -> StepEvent | None:
        context = span.context
        if outcome is None or is_replaying() or (note.is_in_workflow and not is_in_workflow()):
            return None
        if not context.is_valid:
            raise ValueError("a span without ids")  # made by hand; no delivery could be recorded below it
        step_id = self._step_id(attributes, profile, note) or generated_step_id(context)
        if profile.is_once and not _is_new(self._told, (step_id, outcome)):
            return None
        return StepEvent(
            step_id=step_id,
            outcome=outcome,
            name=span.name,
            context=context,
            start_time=span.start_time or 0,
            end_time=span.end_time or 0,
            details=self._details.get(step_id, {}),
        )

    def _step_id(self, attributes: Attributes, profile: Profile, note: Note) -> str:
        users_id = "" if profile.is_strict else text_of(_users_id(attributes)) or note.users_id
        return users_id or text_of(_id_in(attributes, profile, note)) or note.step_id


def _forget(notes: dict[int, Note], forgotten: OrderedDict[int, Note], span_id: int, _: object) -> None:
    note = notes.pop(span_id, None)
    if note is not None:
        # The garbage collector comes here first, and then closes the generator that is garbage with
        # the span, and ends the span.
        _remember(forgotten, span_id, note, _FORGOTTEN)
        note.has_ended = True
        for _, child in note.open.values():
            child.is_open = False
        note.open.clear()  # which would hold spans that nobody is going to tell of any more


def _is_copy(attributes: Attributes) -> bool:
    return attributes.get("logfire.span_type") in _LOGFIRE_COPIES


def _id_in(attributes: Attributes, profile: Profile, note: Note) -> object:
    return profile.step_id(attributes if note.number is None else {**attributes, "step_number": note.number})


def _is_new(memory: OrderedDict[_K, object], key: _K) -> bool:
    """Whether *key* is not among those seen last."""
    token = object()
    is_new = memory.setdefault(key, token) is token
    if is_new:
        _remember(memory, key, token)
    return is_new


def _remember(memory: OrderedDict[_K, _V], key: _K, value: _V, most: int | None = None) -> None:
    memory[key] = value
    while len(memory) > (_REMEMBERED if most is None else most):
        with suppress(KeyError):  # another thread has taken the last
            memory.popitem(last=False)
