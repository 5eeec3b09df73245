"""The span processor: have a step recognised, submit it. Owns what is known of the providers it is registered with."""

import atexit
import functools
import itertools
import logging
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from otel_step_hook.delivery.memory import Submission
from otel_step_hook.delivery.telemetry import Pipeline
from otel_step_hook.errors import ConfigurationError
from otel_step_hook.settings import StepHookSettings, unknown_variables
from otel_step_hook.steps.event import StepEvent
from otel_step_hook.steps.plugins import selected_profiles
from otel_step_hook.steps.profile import Profile
from otel_step_hook.steps.reader import StepReader

if TYPE_CHECKING:
    from otel_step_hook.delivery.worker import Worker

_log = logging.getLogger("otel_step_hook")
_TOLD = "_otel_step_hook_told"  # attribute of what several hooks are handed: which webhooks were told of which steps
_FLUSH = 30_000  # milliseconds


class StepHookProcessor(SpanProcessor):
    """Tells a webhook of every step span that ends, asynchronously, and records the delivery in its trace.

    Register one with each `TracerProvider`, before or after the exporter's processor; two with the
    same webhook tell it once. Without *settings* they are read from ``STEP_COMPLETE_*``; without a
    webhook nothing happens.

    *profiles* are asked before those that the settings select. *is_step* replaces all of their rules for
    which spans are steps: it gets the ended span, on the thread that ends it.

    Raises `ConfigurationError` for settings or profiles that cannot be used; from then on nothing is raised, and
    nothing blocks but `shutdown` and `force_flush`, within their limits.
    """

    _worker: "Worker | None"

    def __init__(
        self,
        settings: StepHookSettings | None = None,
        *,
        profiles: Iterable[Profile] = (),
        is_step: Callable[[ReadableSpan], bool] | None = None,
    ) -> None:
        self._settings = StepHookSettings() if settings is None else settings
        own = _checked(profiles)
        self._processors: SpanProcessor | None = None  # of the provider met last, as the SDK holds them together
        self._placed: object = ()  # those processors, one by one, when this one was put before the others
        self._exit_hook = functools.partial(_shut_down, weakref.ref(self))
        self._worker = None
        for sentence in unknown_variables():
            _log.warning("%s", sentence)
        if self._settings.webhook is None:
            _log.debug("STEP_COMPLETE_WEBHOOK is not set: no webhook is sent")
            return
        # Not at the top: without a webhook nobody pays for the HTTP client.
        from otel_step_hook.delivery.worker import Worker  # noqa: PLC0415 -- see above

        chosen = (*own, *selected_profiles(self._settings.profiles))
        worker = Worker(self._settings)
        self._reader = StepReader(
            chosen, is_step, on_fault=worker.tell_fault, on_loss=functools.partial(worker.drop, "unreadable")
        )
        self._worker = worker
        # Now, not at the first span: what the application registers from now on runs before it, and may end steps.
        atexit.register(self._exit_hook)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002 -- the SDK's signature
        """Note what `on_end` cannot see any more."""
        if self._worker is None:
            return
        try:
            processors = getattr(span, "_span_processor", None)
            if processors is not None and getattr(processors, "_span_processors", None) is not self._placed:
                self._meet(processors)  # again, if somebody has registered more since, or this one twice
            self._reader.on_start(span, sys.exception())
        except Exception as error:  # noqa: BLE001 -- runs in the application's start_span(): nothing may escape
            self._worker.tell_fault(error)

    def on_end(self, span: ReadableSpan) -> None:
        """Submit the step that has ended, if it is one. Takes microseconds, and no lock."""
        if self._worker is None:
            return
        try:
            for event, processors in self._reader.on_end(span, sys.exception):
                self._submit(span, event, processors, self._worker)
        except Exception as error:  # noqa: BLE001 -- runs in the application's span.end(): nothing may escape
            self._worker.drop("unreadable", error)

    @property
    def spans_with_dropped_attributes(self) -> int:
        """How many spans that were no steps have lost attributes to the SDK's limit: a step id, perhaps."""
        return 0 if self._worker is None else self._reader.truncated

    def _submit(self, span: ReadableSpan, event: StepEvent, processors: SpanProcessor | None, worker: "Worker") -> None:
        if event.outcome in self._settings.outcomes and self._is_first(span, event, is_closed=worker.is_closed()):
            pipeline = Pipeline(processors or self._processors, span.resource)
            worker.submit(Submission(event, pipeline, time.monotonic()))

    def _is_first(self, span: ReadableSpan, event: StepEvent, *, is_closed: bool) -> bool:
        """Whether no other processor of this provider has told the same webhook: registered twice means once.

        One that has been shut down counts among its like: another may have taken its place.
        """
        # The SDK hands the same span to all of them, and to nobody after them.
        told, token = getattr(span, "__dict__", {}).setdefault(_TOLD, {}), object()
        return told.setdefault((self._settings.webhook, is_closed, event.context.span_id), token) is token

    def _meet(self, processors: SpanProcessor) -> None:
        """Put this one before the others of a provider; its spans' deliveries go the way of its spans."""
        self._processors = processors
        if _move_to_front(self, processors):
            self._placed = getattr(processors, "_span_processors", None)

    def shutdown(self) -> None:
        """Deliver for up to the shutdown timeout, discard the rest visibly. Idempotent, from any thread."""
        # The exit hook stays: a step may end after this, and has to be told of as dropped.
        if self._worker is not None:
            self._worker.shutdown(self._settings.shutdown_timeout)

    def force_flush(self, timeout_millis: int | None = _FLUSH) -> bool:
        """Whether everything submitted before is delivered or discarded now.

        Waits for at most half of *timeout_millis*: the SDK skips the next processor, which exports
        the delivery spans, when the time is used up.
        """
        if self._worker is None:
            return True
        return self._worker.flush((_FLUSH if timeout_millis is None else timeout_millis) / 2000)


def _checked(profiles: Iterable[Profile]) -> tuple[Profile, ...]:
    try:
        given = tuple(profiles)
    except TypeError:
        given = (profiles,)  # type: ignore[assignment]  # -- refused below
    for one in given:
        if not isinstance(one, Profile):
            raise ConfigurationError(
                f"profiles holds {one!r}; expected Profile values; names of profiles go into STEP_COMPLETE_PROFILES"
            )
    return given


def _shut_down(processor: "weakref.ref[StepHookProcessor]") -> None:
    alive = processor()
    if alive is not None:
        alive.shutdown()


def _move_to_front(processor: SpanProcessor, processors: SpanProcessor) -> bool:
    """Put *processor* before all others of its provider, and there once; False where that has to be tried again.

    Processors are shut down in their order: an exporter's that comes first would never see the
    spans of the deliveries that our own shutdown waits for.
    """
    registered = getattr(processors, "_span_processors", None)
    lock = getattr(processors, "_lock", None)
    if not isinstance(registered, tuple) or lock is None:  # not the SDK's own
        return True
    # Not among the others: it comes first, or is part of another one, which passes on what it is told.
    # Behind nothing but other hooks it stays: two would change places for ever.
    others = tuple(itertools.dropwhile(lambda one: isinstance(one, StepHookProcessor), registered))
    if processor not in others and registered.count(processor) < 2:  # noqa: PLR2004 -- registered twice
        return True
    # Only tried: a signal handler may have interrupted its own thread in add_span_processor().
    if not lock.acquire(blocking=False):
        return False
    try:
        others = tuple(other for other in processors._span_processors if other is not processor)  # type: ignore[attr-defined]  # noqa: SLF001 -- see above
        processors._span_processors = (processor, *others)  # type: ignore[attr-defined]  # noqa: SLF001 -- see above
    finally:
        lock.release()
    return True
