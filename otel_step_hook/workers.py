"""Makes the worker of each endpoint from the settings: chooses its store and its sender."""

import functools
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from otel_step_hook.delivery.model import Endpoint
from otel_step_hook.errors import ConfigurationError
from otel_step_hook.settings import StepHookSettings, retry_policy_of

if TYPE_CHECKING:
    from otel_step_hook.delivery.dispatch import MakeSender
    from otel_step_hook.delivery.outbox_file import OutboxOptions
    from otel_step_hook.delivery.store import Store
    from otel_step_hook.delivery.worker import Worker

_log = logging.getLogger("otel_step_hook")
_LEASE_MARGIN = 10.0  # seconds that a lease lasts beyond twice the timeout of an attempt


def new_workers(
    endpoints: Iterable[Endpoint],
    settings: StepHookSettings,
    make_outbox: "Callable[[OutboxOptions, int], Store] | None" = None,
) -> "tuple[Worker, ...]":
    """Return a worker for each of *endpoints*. With an outbox, its store is made by *make_outbox*, if that is given."""
    make_store = _store_maker(endpoints, settings, make_outbox)
    return tuple(_worker(endpoint, settings, make_store(endpoint)) for endpoint in endpoints)


def _store_maker(
    endpoints: Iterable[Endpoint],
    settings: StepHookSettings,
    make_outbox: "Callable[[OutboxOptions, int], Store] | None",
) -> "Callable[[Endpoint], Callable[[int], Store]]":
    """Return what makes, for an endpoint, what makes its store in each process."""
    from otel_step_hook.delivery.memory import MemoryStore  # noqa: PLC0415 -- see `_worker`

    if (path := settings.outbox) is None:
        return lambda _: MemoryStore
    try:
        from otel_step_hook.delivery.outbox import OutboxStore  # noqa: PLC0415 -- see `_worker`
        from otel_step_hook.delivery.outbox_file import OutboxOptions  # noqa: PLC0415 -- see `_worker`
    except ImportError as error:  # Windows has no module fcntl, and a Python may be built without sqlite3
        text = "STEP_COMPLETE_OUTBOX needs the Python module %s, which is not there: webhooks are sent from memory"
        _log.error(text, error.name)
        return lambda _: MemoryStore

    names = frozenset(endpoint.name for endpoint in endpoints)

    def maker(endpoint: Endpoint) -> "Callable[[int], Store]":
        options = OutboxOptions(
            Path(path).absolute(),
            endpoint.name,
            names,
            lease_time=2 * endpoint.timeout + _LEASE_MARGIN,
            longest_wait=settings.max_backoff,
            keep=settings.outbox_keep,
            max_rows=settings.outbox_max_rows,
        )
        return functools.partial(make_outbox or OutboxStore, options)

    return maker


def _worker(endpoint: Endpoint, settings: StepHookSettings, make_store: "Callable[[int], Store]") -> "Worker":
    # Not at the top: a process without a webhook must not pay for the HTTP client. Not in the worker's thread: an
    # unusable setting is reported at start-up, and no fork or exit finds a module half imported.
    from otel_step_hook.delivery.worker import Worker  # noqa: PLC0415 -- see above

    return Worker(
        endpoint,
        retry_policy_of(settings),
        _sender_maker(endpoint, settings),
        max_queue_size=settings.max_queue_size,
        concurrency=settings.concurrency,
        shutdown_timeout=settings.shutdown_timeout,
        make_store=make_store,
    )


def _sender_maker(endpoint: Endpoint, settings: StepHookSettings) -> "MakeSender":
    """Return what makes the sender of *endpoint* for each event loop."""
    if settings.engine == "temporal":
        return _temporal_maker(endpoint, settings)
    from otel_step_hook.delivery.http_client import client_label, connector  # noqa: PLC0415 -- see `_worker`
    from otel_step_hook.delivery.sender import HttpSender  # noqa: PLC0415 -- see `_worker`

    connect = connector(endpoint)
    _log.info("webhooks for endpoint %s are sent by %s", endpoint.name, client_label(endpoint.http_client))
    return lambda telemetry: HttpSender(endpoint, telemetry, connect)


def _temporal_maker(endpoint: Endpoint, settings: StepHookSettings) -> "MakeSender":
    try:
        from otel_step_hook.temporal.client import connect_config  # noqa: PLC0415 -- see `_worker`
        from otel_step_hook.temporal.sender import TemporalSender  # noqa: PLC0415 -- see `_worker`
    except ImportError as error:
        raise ConfigurationError(
            f"STEP_COMPLETE_ENGINE=temporal needs a package that is not there ({error.name}); "
            "install it with: pip install 'otel-step-hook[temporal]'"
        ) from None
    config = connect_config()
    return lambda telemetry: TemporalSender(
        endpoint,
        telemetry,
        config,
        task_queue=settings.task_queue,
        schedule_to_close=settings.schedule_to_close,
    )
