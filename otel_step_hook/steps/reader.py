"""`StepReader`, which recognises steps. Owns what is known of spans between their start and their end."""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanKind

from otel_step_hook import _sdk
from otel_step_hook.steps.event import STEP_ID_KEYS, Outcome, StepEvent, generated_step_id, step_id_text
from otel_step_hook.steps.outcome import outcome_of, step_status_outcome
from otel_step_hook.steps.profile import FrameworkProfile, Profile, first_attribute
from otel_step_hook.steps.runtime import is_in_workflow, is_replaying
from otel_step_hook.steps.scopes import Fault, ScopeProfiles, profiles_by_scope
from otel_step_hook.steps.spans import NO_ATTRIBUTES, REPORTED, Child, Recent, StartedSpan, StepAtStart

_NO_DETAILS: Mapping[str, str] = {}  # one for all: a million events may wait
_MAX_REMEMBERED = 10_000  # steps that are reported once, and as many with details; 5 MB if their ids are UUIDs
_MAX_COLLECTED = 100  # garbage collected spans that are remembered, because they may still end
_MAX_SCOPES = 1000  # instrumentation scopes whose profiles are known by the scope's name
_IN_WORKFLOW = "is_in_workflow"  # the name of a fact
_WORKFLOW = "temporalio.workflow"  # imported wherever a Temporal workflow runs
_LOGFIRE_COPIES = ("pending_span", "log")  # types of the spans that Logfire adds to the real ones
_user_step_id = first_attribute(*STEP_ID_KEYS)

EndedStep = tuple[StepEvent, SpanProcessor | None]  # and the SDK's holder of all processors of the step's provider


class StepReader:
    """Returns the steps that end with a span, and their outcomes.

    *profiles* are asked in their order. *is_step*, if given, replaces their rules for which spans are steps: it gets
    the ended span. *on_fault* is called with an exception of a rule that has cost no step, *on_loss* with one that has
    cost a step. May be called from any thread, from a signal handler, and by the garbage collector at any moment: it
    takes no lock.
    """

    def __init__(
        self,
        profiles: Iterable[Profile],
        is_step: Callable[[ReadableSpan], bool] | None = None,
        *,
        on_fault: Fault = lambda _: None,
        on_loss: Fault = lambda _: None,
    ) -> None:
        self._is_step = is_step
        self._on_fault = on_fault
        self._on_loss = on_loss
        self._scope_profiles, self._other_scopes = profiles_by_scope(tuple(profiles), has_user_rule=is_step is not None)
        self._answering = tuple(one for one in self._other_scopes.profiles if one.calls is not None)
        self._started: dict[int, StartedSpan] = {}  # by span id
        self._collected: Recent[int, StartedSpan] = Recent(_MAX_COLLECTED)
        self._reported: Recent[tuple[str, Outcome], object] = Recent(_MAX_REMEMBERED)
        self._details: Recent[str, Mapping[str, str]] = Recent(_MAX_REMEMBERED)
        # Counters without a lock: two threads at once may lose a count.
        self.seen = 0  # spans that have begun
        self.recognised = 0  # steps that have ended
        self.truncated = 0  # spans that were no steps, and have lost attributes to a limit, perhaps a step id

    def on_start(self, span: Span, exception: BaseException | None) -> None:
        """Record what `on_end` cannot read from *span* any more; *exception* is the one in flight."""
        self.seen += 1
        # Every span pays for these lines.
        started = StartedSpan.of(span, self._forget, self._started)
        self._started[started.span_id] = started
        profiles = self._scope_profiles.get(started.scope) or self._add_scope(started.scope)
        if exception is not None:
            started.see(exception)
        if profiles.at_start or _WORKFLOW in sys.modules:
            self._read_runtime(started, profiles)
        if profiles.required is None or not started.attributes.keys().isdisjoint(profiles.required):
            started.step_at_start = self._step_at_start(started, profiles)
        if profiles.ends_children and started.parent is not None and started.parent.scope == started.scope:
            self._list_child(span, started, started.parent, profiles)

    def _step_at_start(self, started: StartedSpan, profiles: ScopeProfiles) -> StepAtStart | None:
        profile = profiles.matching(started, self._on_fault)
        if profile is None:
            return None
        try:
            return StepAtStart(profile, _user_step_id(started) or "", step_id_text(profile.step_id(started)))
        except Exception:  # noqa: BLE001 -- the id is too long, or its rule raises: `on_end` reports it
            return StepAtStart(profile)

    def _add_scope(self, scope: str) -> ScopeProfiles:
        """Return the profiles for a scope that no profile names, and know it by its name from now on."""
        if len(self._scope_profiles) < _MAX_SCOPES:
            self._scope_profiles[scope] = self._other_scopes
        return self._other_scopes

    def _read_runtime(self, started: StartedSpan, profiles: ScopeProfiles) -> None:
        facts: dict[str, object] = {_IN_WORKFLOW: is_in_workflow()}
        for at_start in profiles.at_start:
            try:
                facts |= at_start()
            except Exception as error:  # noqa: BLE001 -- a faulty rule must not cost the other facts
                self._on_fault(error)
        started.facts = facts

    def _list_child(self, span: Span, started: StartedSpan, parent: StartedSpan, profiles: ScopeProfiles) -> None:
        try:
            for profile in profiles.ends_children:
                if profile.ends_children is not None and profile.ends_children(parent) and profile.may_be_step(started):
                    parent.list_child(Child(span, started, profile))
                    return
        except Exception as error:  # noqa: BLE001 -- a faulty rule must not reach the application's start_span()
            self._on_fault(error)

    def _forget(self, started: StartedSpan) -> None:
        # If a span is garbage together with a generator, the garbage collector calls this first, and then closes the
        # generator, which may end the span: so what is known of the span is kept for a while.
        # Compared by identity: an id generator that is deterministic may repeat ids.
        if self._started.get(started.span_id) is started:
            del self._started[started.span_id]
            started.release(None)
            started.forget_children()
            self._collected.replace(started.span_id, started)

    def on_end(self, span: ReadableSpan, exception: Callable[[], BaseException | None]) -> Iterable[EndedStep]:
        """Return the steps that end with *span*: its own, if any, and those of children that have not ended before.

        *exception* returns the exception in flight.
        """
        # Most spans are no steps, and pay for these lines alone.
        span_id, dropped = _sdk.span_end(span)
        started = self._started.pop(span_id, None) or self._not_started_here(span)
        if dropped:
            # At the limit, some releases of the SDK replace the mapping that the span began with.
            started.attributes = _sdk.live_attributes(started() or span)
        profiles = self._scope_profiles.get(started.scope, self._other_scopes)
        if (
            started.step_at_start is None
            and profiles.skip_without is not None
            and started.attributes.keys().isdisjoint(profiles.skip_without)
            and started.children is None
            and not started.is_listed
        ):
            if dropped:
                self.truncated += 1
            # Spans below it may outlive it, and refer to it.
            started.ended, started.attributes = REPORTED, NO_ATTRIBUTES
            return ()
        events = self._ended(span, started, profiles, exception())
        started.release(profiles.required)
        return events

    def _not_started_here(self, span: ReadableSpan) -> StartedSpan:
        """Return what is known of a span that began before this reader existed, was collected, or was made by hand."""
        found = self._collected.pop(span.context.span_id) if span.context is not None else None
        return StartedSpan.of(span, lambda _: None, {}) if found is None else found

    def _ended(
        self, span: ReadableSpan, started: StartedSpan, profiles: ScopeProfiles, exception: BaseException | None
    ) -> list[EndedStep]:
        original, is_first = started.end(span), not started.is_listed or started.claim()
        for details in profiles.details:
            try:
                if found := details(started):
                    self._details.replace(*found)
            except Exception as error:  # noqa: BLE001 -- it costs a detail, and no step
                self._on_fault(error)
        in_flight = None if exception is None or started.has_seen(exception) else exception
        events = self._ended_below(started, in_flight) if started.children is not None else []
        try:
            attributes, profile = started.attributes, self._profile_of(span, started, profiles)
            if profile is None and span.dropped_attributes:
                self.truncated += 1
            if profile is not None and is_first and attributes.get("logfire.span_type") not in _LOGFIRE_COPIES:
                event = self._event(original, started, profile, outcome_of(started, in_flight, profile))
                events += [] if event is None else [(event, started.processor)]
        except Exception as error:  # noqa: BLE001 -- it costs this step, and not those of other spans
            self._on_loss(error)
        return events

    def _profile_of(self, span: ReadableSpan, started: StartedSpan, profiles: ScopeProfiles) -> FrameworkProfile | None:
        profile: FrameworkProfile | None = None
        faults: list[Exception] = []
        if profiles.required is None or not started.attributes.keys().isdisjoint(profiles.required):
            profile = profiles.matching(started, faults.append)
        if (
            profile is None
            and started.step_at_start is not None
            and not profiles.is_part(started.step_at_start.profile, started)
        ):
            profile = started.step_at_start.profile  # its name has changed since, or it has lost an attribute
        if self._is_step is not None:
            profile = (profile or profiles.framework) if profiles.has_user_rule and self._is_step(span) else None
        elif profile is None and faults:
            raise faults[-1]  # the span may have been a step, which is lost
        for fault in faults:
            self._on_fault(fault)
        return profile

    def _ended_below(self, started: StartedSpan, exception: BaseException | None) -> list[EndedStep]:
        """Return the steps directly below *started* that end with it because they have not ended before."""
        events: list[EndedStep] = []
        for child in started.take_children():
            try:
                event = self._ended_child(child, started, exception)
                if event is not None:
                    events.append((replace(event, end_time=started.end_time), child.started.processor))
            except Exception as error:  # noqa: BLE001 -- it costs this step, and not those of other spans
                self._on_loss(error)
        return events

    def _ended_child(self, child: Child, parent: StartedSpan, exception: BaseException | None) -> StepEvent | None:
        if not child.profile.is_step(child.started):
            return None
        outcome = step_status_outcome(child.started.attributes) or outcome_of(parent, exception, child.profile)
        return self._event(child.span, child.started, child.profile, outcome)

    def _event(
        self, span: ReadableSpan, started: StartedSpan, profile: FrameworkProfile, outcome: Outcome | None
    ) -> StepEvent | None:
        if outcome is None or (_WORKFLOW in sys.modules and _is_replay(started)):
            return None
        context, name, kind, start_time, end_time = _sdk.span_identity(span)
        if context is None or not context.is_valid:
            raise ValueError("a span without ids")  # made by hand: a delivery span could not be its child
        step_id = _step_id(started, profile) or generated_step_id(context)
        token = object()
        if profile.report_once and self._reported.remember((step_id, outcome), token) is not token:
            return None
        self.recognised += 1
        if kind is SpanKind.SERVER:
            self._answer(started)
        return StepEvent(
            step_id=step_id,
            outcome=outcome,
            name=name,
            context=context,
            start_time=start_time,
            end_time=end_time,
            details=self._details.get(step_id, _NO_DETAILS),
        )

    def _answer(self, server: StartedSpan) -> None:
        """Record on the client's spans that *server* has reported their request, by whichever profile."""
        for profile in self._answering:
            if profile.is_step(server):
                server.answer(profile.is_step)


def _is_replay(span: StartedSpan) -> bool:
    """Whether a Temporal workflow replays its history, or was evicted from the worker's cache during the span."""
    return is_replaying() or (bool(span.facts.get(_IN_WORKFLOW)) and not is_in_workflow())


def _step_id(span: StartedSpan, profile: FrameworkProfile) -> str:
    step_at_start = span.step_at_start or StepAtStart(profile)
    user_step_id = "" if profile.exclusive else _user_step_id(span) or step_at_start.user_step_id
    return user_step_id or step_id_text(profile.step_id(span)) or step_at_start.framework_step_id
