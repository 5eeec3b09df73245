"""The span processor: recognise a step, classify how it ended, submit. Owns what is noted between start and end."""

import atexit
import functools
import logging
import sys
import time
import uuid
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from otel_step_hook.delivery.memory import Submission
from otel_step_hook.delivery.telemetry import SCOPE, Pipeline
from otel_step_hook.settings import StepHookSettings, unknown_variables
from otel_step_hook.steps.event import StepEvent, attributes_of, generated_step_id, text_of
from otel_step_hook.steps.outcome import outcome_of
from otel_step_hook.steps.profiles import GENERIC

if TYPE_CHECKING:
    from otel_step_hook.delivery.worker import Worker

_log = logging.getLogger("otel_step_hook")
_MARK = "_otel_step_hook_seen"  # attribute of an exception that was in flight when a span began


class StepHookProcessor(SpanProcessor):
    """Tells a webhook of every step span that ends, asynchronously, and records the delivery in its trace.

    Register one with each `TracerProvider`, before or after the exporter's processor. Without
    *settings* they are read from ``STEP_COMPLETE_*``; without a webhook nothing happens. *is_step*
    replaces the rule for which spans are steps: it gets the ended span, on the thread that ends it.
    Raises `ConfigurationError` for settings that cannot be used; from then on nothing is raised, and
    nothing blocks but `shutdown` and `force_flush`, within their limits.
    """

    _worker: "Worker | None"

    def __init__(
        self,
        settings: StepHookSettings | None = None,
        *,
        is_step: Callable[[ReadableSpan], bool] | None = None,
    ) -> None:
        self._settings = StepHookSettings() if settings is None else settings
        self._is_step = is_step
        self._processors: SpanProcessor | None = None  # of the provider met first, as the SDK holds them together
        self._notes: dict[int, _Note] = {}  # by span id; only for the few spans that need one
        self._exit_hook = functools.partial(_shut_down, weakref.ref(self))
        self._worker = None
        for sentence in unknown_variables():
            _log.warning("%s", sentence)
        if self._settings.webhook is None:
            _log.debug("STEP_COMPLETE_WEBHOOK is not set: no webhook is sent")
            return
        # Not at the top: without a webhook nobody pays for the HTTP client.
        from otel_step_hook.delivery.worker import Worker  # noqa: PLC0415 -- see above

        self._worker = Worker(self._settings)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002 -- the SDK's signature
        """Note what `on_end` cannot see any more; for most spans there is nothing to note."""
        if self._worker is None:
            return
        try:
            exception = sys.exception()
            attributes = attributes_of(span)
            processors = getattr(span, "_span_processor", None)
            if (
                exception is not None
                or processors is not self._processors
                or "step_id" in attributes
                or "step.id" in attributes
            ):
                self._note(span, processors, attributes, exception)
        except Exception as error:  # noqa: BLE001 -- runs in the application's start_span(): nothing may escape
            self._worker.tell_fault(error)

    def on_end(self, span: ReadableSpan) -> None:
        """Submit the step that has ended, if it is one. Takes microseconds, and no lock."""
        if self._worker is None:
            return
        try:
            attributes = attributes_of(span)
            note = self._notes.pop(span.context.span_id, _NOTHING) if self._notes else _NOTHING
            if self._is_step is None:
                if not ("step_id" in attributes or "step.id" in attributes or note.has_step_id):
                    return
            elif _is_own(span) or not self._is_step(span):
                return
            self._submit(span, attributes, note, sys.exception())
        except Exception as error:  # noqa: BLE001 -- runs in the application's span.end(): nothing may escape
            self._worker.drop("unreadable", error)

    def _submit(
        self,
        span: ReadableSpan,
        attributes: Mapping[str, object],
        note: "_Note",
        exception: BaseException | None,
    ) -> None:
        if _is_own(span) or self._worker is None:
            return
        if not span.context.is_valid:
            raise ValueError("a span without ids")  # made by hand; no delivery could be recorded below it
        outcome = outcome_of(span, attributes, None if note.has_seen(exception) else exception)
        if outcome is None or outcome not in self._settings.outcomes:
            return
        event = StepEvent(
            step_id=self._step_id(span, attributes, note),
            outcome=outcome,
            name=span.name,
            context=span.context,
            start_time=span.start_time or 0,
            end_time=span.end_time or 0,
        )
        pipeline = Pipeline(note.processors or self._processors, span.resource)
        self._worker.submit(Submission(event, pipeline, time.monotonic()))

    def _step_id(self, span: ReadableSpan, attributes: Mapping[str, object], note: "_Note") -> str:
        for source in (attributes, note.attributes):
            for key in GENERIC.step_id_keys:
                if text := text_of(source.get(key)):
                    return text
        return generated_step_id(span.context)

    def _note(
        self,
        span: Span,
        processors: SpanProcessor | None,
        attributes: Mapping[str, object],
        exception: BaseException | None,
    ) -> None:
        if self._processors is None and processors is not None:
            self._processors = processors
            # Registered now, at the first span, it runs before the provider's own exit handler,
            # which was registered when the provider was made.
            atexit.register(self._exit_hook)
        if processors is not None:
            _move_to_front(self, processors)
        others = processors if processors is not self._processors else None
        ids = {key: attributes[key] for key in GENERIC.step_id_keys if key in attributes}
        if others is not None or ids or exception is not None:
            span_id, notes = span.get_span_context().span_id, self._notes
            # A span that is never ended takes its note with it.
            alive = weakref.ref(span, lambda _: notes.pop(span_id, None))
            notes[span_id] = _Note(others, ids, exception, alive)

    def shutdown(self) -> None:
        """Deliver for up to the shutdown timeout, discard the rest visibly. Idempotent, from any thread."""
        # The exit hook stays: a step may end after this, and has to be told of as dropped.
        if self._worker is not None:
            self._worker.shutdown(self._settings.shutdown_timeout)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Whether everything submitted before is delivered or discarded now.

        Waits for at most half of *timeout_millis*: the SDK skips the next processor, which exports
        the delivery spans, when the time is used up.
        """
        return self._worker is None or self._worker.flush(timeout_millis / 2000)


class _Note:
    """What was known when a span began and is not when it ends."""

    __slots__ = ("_alive", "_seen", "attributes", "processors")

    def __init__(
        self,
        processors: SpanProcessor | None,
        attributes: Mapping[str, object],
        exception: BaseException | None,
        alive: "weakref.ref[Span] | None",
    ) -> None:
        self.processors = processors  # None: those of the provider met first
        self.attributes = attributes  # the step id's: the SDK evicts the oldest attributes first
        self._alive = alive
        # Weakly: a strong reference would keep every frame of the traceback. Exceptions that are
        # written in C have no weak references, and the id of one is the next one's as soon as it is
        # freed: they get a mark, in a dict of their own that has room for it.
        self._seen: weakref.ref[BaseException] | str | None = None
        if exception is not None:
            try:
                self._seen = weakref.ref(exception)
            except TypeError:
                self._seen = vars(exception).setdefault(_MARK, uuid.uuid4().hex)

    @property
    def has_step_id(self) -> bool:
        """Whether the span began with a step id."""
        return bool(self.attributes)

    def has_seen(self, exception: BaseException | None) -> bool:
        """Whether *exception* was in flight already when the span began: then it says nothing about the span."""
        if exception is None or self._seen is None:
            return False
        if isinstance(self._seen, str):
            return bool(vars(exception).get(_MARK) == self._seen)
        return self._seen() is exception


_NOTHING = _Note(None, {}, None, None)


def _is_own(span: ReadableSpan) -> bool:
    return span.instrumentation_scope is not None and span.instrumentation_scope.name == SCOPE


def _shut_down(processor: "weakref.ref[StepHookProcessor]") -> None:
    alive = processor()
    if alive is not None:
        alive.shutdown()


def _move_to_front(processor: SpanProcessor, processors: SpanProcessor) -> None:
    """Put *processor* before all others of its provider, and there once, where the SDK lets us.

    Processors are shut down in their order: an exporter's that comes first would never see the
    spans of the deliveries that our own shutdown waits for.
    """
    registered = getattr(processors, "_span_processors", None)
    lock = getattr(processors, "_lock", None)
    # Not among them: it is part of another one, which passes on what it is told.
    if not isinstance(registered, tuple) or lock is None or processor not in registered[1:]:
        return
    # Only tried: a signal handler may have interrupted its own thread in add_span_processor().
    if lock.acquire(blocking=False):
        try:
            others = tuple(other for other in processors._span_processors if other is not processor)  # type: ignore[attr-defined]  # noqa: SLF001 -- see above
            processors._span_processors = (processor, *others)  # type: ignore[attr-defined]  # noqa: SLF001 -- see above
        finally:
            lock.release()
