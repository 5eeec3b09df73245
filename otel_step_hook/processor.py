"""The span processor: it recognises steps, and submits each to the worker of each endpoint.

Owns its place among the processors of the providers that it is registered with.
"""

import atexit
import functools
import itertools
import logging
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from otel_step_hook import _sdk
from otel_step_hook.delivery.model import Pipeline
from otel_step_hook.errors import ConfigurationError, hide_arguments
from otel_step_hook.settings import StepHookSettings, endpoints_of, settings_of, unknown_variables
from otel_step_hook.steps.event import SCOPE, StepEvent
from otel_step_hook.steps.plugins import selected_profiles
from otel_step_hook.steps.profile import Profile
from otel_step_hook.steps.reader import StepReader
from otel_step_hook.workers import new_workers

if TYPE_CHECKING:
    from otel_step_hook.delivery.worker import Worker

_log = logging.getLogger("otel_step_hook")
_SUBMITTED = "_otel_step_hook_submitted"  # attribute of an ended span: the endpoints that its steps were submitted to
_FLUSH_MILLIS = 30_000  # milliseconds, the default of OpenTelemetry's SDK


class StepHookProcessor(SpanProcessor):
    """Sends a webhook for every step span that ends, asynchronously, and records the delivery in the step's trace.

    Register one with each `TracerProvider`, before or after the exporter's processor; two with the same webhook send
    it once. ``StepHookProcessor("https://…", key="…")`` takes settings by name, or one `StepHookSettings`; settings
    that are not given are read from ``STEP_COMPLETE_*`` variables. Without a webhook nothing happens.

    *extra_profiles* are asked before the profiles that the settings select. *is_step* replaces the rules of all
    profiles for which spans are steps: it is called with each ended span, on the thread that ends it.

    Raises `ConfigurationError` for settings or profiles that cannot be used. After that nothing raises, and only
    `shutdown` and `force_flush` block, within their limits. All methods may be called from any thread.
    """

    _workers: "tuple[Worker, ...]" = ()
    _durable: "tuple[Worker, ...]" = ()

    @hide_arguments
    def __init__(
        self,
        webhook: str | StepHookSettings | None = None,
        /,
        *,
        extra_profiles: Iterable[Profile] = (),
        is_step: Callable[[ReadableSpan], bool] | None = None,
        **settings: Any,
    ) -> None:
        self._settings = settings_of("StepHookProcessor", webhook, settings)
        own = _checked(extra_profiles)
        self._processors: SpanProcessor | None = None  # the SDK's holder of all processors of the last seen provider
        self._pipeline: Pipeline | None = None  # of the last step: one object for all that wait
        self._first_among: object = ()  # the processors in that holder when this one was last made their first
        for sentence in unknown_variables():
            _log.warning("%s", sentence)
        endpoints = endpoints_of(self._settings)
        if not endpoints:
            _log.debug("STEP_COMPLETE_WEBHOOK is not set: no webhook is sent")
            return
        chosen = (*own, *selected_profiles(self._settings.profiles))
        workers = new_workers(endpoints, self._settings)
        self._reader = StepReader(
            chosen, is_step, on_fault=workers[0].add_fault, on_loss=functools.partial(_drop, workers)
        )
        alive = [weakref.ref(worker) for worker in workers]  # a worker lives as long as this processor or its thread
        self._exit_hook = functools.partial(_shut_down_at_exit, alive, self._settings.shutdown_timeout)
        # Here, not at the first span: exit functions that are registered later run earlier, and may still end steps.
        atexit.register(self._exit_hook)
        self._workers = workers
        self._durable = workers if self._settings.outbox else ()
        if self._settings.drain_on_sigterm:
            from otel_step_hook.delivery.sigterm import drain_on_sigterm  # noqa: PLC0415 -- see `workers`

            drain_on_sigterm()

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # A default argument: a module's names may be gone when the interpreter ends. The exit hook has run by then.
        if is_finalizing():
            for worker in self._workers:
                worker.report_rest()
            return
        if not self._workers:
            return
        for worker in self._workers:
            worker.abandon()
        atexit.unregister(self._exit_hook)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002 -- the SDK's signature
        """Record what `on_end` cannot read from *span* any more."""
        if not self._workers:
            return
        try:
            processors, registered = _sdk.registered(span)
            # Done again when processors have been registered since, perhaps this one a second time.
            if processors is not None and registered is not self._first_among:
                self._register_first(span, processors)
            self._reader.on_start(span, sys.exception())
            for worker in self._durable:
                if worker.starts_early:
                    worker.start(Pipeline(self._processors, span.resource))
        except Exception as error:  # noqa: BLE001 -- runs in the application's start_span(): nothing may escape
            self._workers[0].add_fault(error)

    def on_end(self, span: ReadableSpan) -> None:
        """Submit the steps that end with *span*, if any. Takes microseconds, and no lock."""
        if not self._workers:
            return
        try:
            for event, processors in self._reader.on_end(span, sys.exception):
                self._submit(span, event, processors)
        except Exception as error:  # noqa: BLE001 -- runs in the application's span.end(): nothing may escape
            _drop(self._workers, error)

    @property
    def spans_with_dropped_attributes(self) -> int:
        """How many spans that were not steps have lost attributes to the SDK's limit, perhaps a step id."""
        return self._reader.truncated if self._workers else 0

    def _submit(self, span: ReadableSpan, event: StepEvent, processors: SpanProcessor | None) -> None:
        found = processors or self._processors
        pipeline = self._pipeline
        if pipeline is None or pipeline.processor is not found or pipeline.resource is not span.resource:
            pipeline = self._pipeline = Pipeline(found, span.resource)
        for worker in self._workers:
            if event.outcome in worker.endpoint.outcomes and self._is_first(span, event, worker):
                worker.submit(event, pipeline)

    def _is_first(self, span: ReadableSpan, event: StepEvent, worker: "Worker") -> bool:
        """Whether no other processor of this provider has submitted the step to the same endpoint.

        So a hook that is registered twice sends one webhook. A hook that has been shut down does not keep a second
        hook from submitting the step.
        """
        # The SDK makes one `ReadableSpan` for this end, and passes it to all processors.
        submitted, token = getattr(span, "__dict__", {}).setdefault(_SUBMITTED, {}), object()
        key = (worker.endpoint.name, worker.endpoint.url, worker.is_closed, event.context.span_id)
        return submitted.setdefault(key, token) is token

    def _register_first(self, span: Span, processors: SpanProcessor) -> None:
        """Make this the first processor of the provider of *span*, through which delivery spans are exported, too."""
        if span.instrumentation_scope is not None and span.instrumentation_scope.name == SCOPE:
            return  # a delivery span, whose provider is ours
        self._processors = processors
        registered = _sdk.movable(processors)
        if registered is None or _is_first(self, registered) or _sdk.register_first(self, processors):
            self._first_among = _sdk.registered(span)[1]

    def shutdown(self) -> None:
        """Deliver for up to the shutdown timeout, and discard the rest, with span, metric and log line. Idempotent."""
        # The exit hook stays registered: a step may end after this, and has to be reported as dropped.
        if self._workers:
            _shut_down(self._workers, self._settings.shutdown_timeout)

    def force_flush(self, timeout_millis: int | None = _FLUSH_MILLIS) -> bool:
        """Wait until all steps submitted before are delivered or discarded, at every endpoint. False if some are not.

        Waits for at most half of *timeout_millis*, or of the default if it is None. If it used all of it, the SDK
        would skip the next processors, one of which exports the delivery spans; SDKs without
        open-telemetry/opentelemetry-python#5179 skip them whenever this returns False. A debug line names the
        endpoints whose deliveries go on.
        """
        if not self._workers:
            return True
        from otel_step_hook.delivery.worker import flush_all  # noqa: PLC0415 -- see `workers`

        late = flush_all(self._workers, (_FLUSH_MILLIS if timeout_millis is None else timeout_millis) / 2000)
        if late:
            _log.debug("force_flush: deliveries to %s go on", ", ".join(worker.endpoint.name for worker in late))
        return not late


def _drop(workers: "tuple[Worker, ...]", error: Exception) -> None:
    for worker in workers:
        worker.drop("unreadable", error)


def _checked(profiles: Iterable[Profile]) -> tuple[Profile, ...]:
    try:
        given = tuple(profiles)
    except TypeError:
        given = (profiles,)  # type: ignore[assignment]  # -- refused below
    for one in given:
        if not isinstance(one, Profile):
            raise ConfigurationError(
                f"extra_profiles holds {one!r}; expected Profile values; their names go into STEP_COMPLETE_PROFILES"
            )
    return given


def _shut_down(workers: "tuple[Worker, ...]", timeout: float) -> None:
    from otel_step_hook.delivery.worker import shut_down_all  # noqa: PLC0415 -- see `workers`

    shut_down_all(workers, timeout)


def _shut_down_at_exit(workers: "list[weakref.ref[Worker]]", timeout: float) -> None:
    from otel_step_hook.delivery.worker import shut_down_at_exit  # noqa: PLC0415 -- see `workers`

    shut_down_at_exit([alive for worker in workers if (alive := worker()) is not None], timeout)


def _is_first(processor: SpanProcessor, registered: _sdk.Processors) -> bool:
    """Whether *processor* comes before all other *registered* processors of its provider, and is registered once.

    The SDK shuts processors down in their order: an exporter's processor that comes first would never see the spans
    of the deliveries that our shutdown waits for.
    """
    # Hooks at the front are skipped, because two of them would change places for ever. If *processor* is not among the
    # rest, it is at the front, or inside another processor that calls it.
    others = tuple(itertools.dropwhile(lambda one: isinstance(one, StepHookProcessor), registered))
    return processor not in others and registered.count(processor) < 2  # noqa: PLR2004 -- registered twice
