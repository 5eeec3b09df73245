"""The command ``otel-step-hook worker``: sends the webhooks that applications hand over to Temporal."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from opentelemetry.sdk.resources import Resource
from rich.console import Console

from otel_step_hook.cli.exporting import Exporting
from otel_step_hook.cli.shared import FAILED, USAGE_ERROR, exit_with, print_line, required_endpoints
from otel_step_hook.delivery.model import Pipeline
from otel_step_hook.errors import ConfigurationError
from otel_step_hook.settings import StepHookSettings, retry_policy_of

if TYPE_CHECKING:
    from temporalio.client import Client

    from otel_step_hook.temporal.activity import WebhookActivities
    from otel_step_hook.temporal.worker import WorkerOptions

_BEAT = 5.0  # seconds between two touches of the health file: a probe may ask for an age of 15 seconds
_INTERRUPTED = 130  # exit status, as shells show SIGINT
_STOPPING = "stopping: attempts in flight get up to {:g} s"


def worker(
    *,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="Attempts at a time; by default STEP_COMPLETE_CONCURRENCY per endpoint."),
    ] = None,
    health_file: Annotated[
        Path | None,
        typer.Option(help="File that is touched every 5 seconds while the worker runs, for a probe.", dir_okay=False),
    ] = None,
) -> None:
    """Send the webhooks that applications with STEP_COMPLETE_ENGINE=temporal hand over, until SIGTERM or Ctrl-C.

    Address and credentials of Temporal come from its own variables: TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE, …
    Spans and metrics are exported as OTEL_TRACES_EXPORTER and OTEL_METRICS_EXPORTER say, or by OTLP if
    OTEL_EXPORTER_OTLP_ENDPOINT is set.
    Exit status: 0 after a signal; 1 if the server cannot be used; 2 if a setting is wrong.
    """
    settings = StepHookSettings()
    endpoints, exporting = required_endpoints(settings), Exporting()
    with _extra():
        from otel_step_hook.temporal.activity import WebhookActivities  # noqa: PLC0415 -- an extra
        from otel_step_hook.temporal.client import connect_config  # noqa: PLC0415 -- an extra
        from otel_step_hook.temporal.worker import WorkerError, WorkerOptions  # noqa: PLC0415 -- an extra
    options = WorkerOptions(
        connect_config(),
        settings.task_queue,
        concurrency or settings.concurrency * len(endpoints),
        shutdown_timeout=max(endpoint.timeout for endpoint in endpoints),
    )
    activities = WebhookActivities(
        endpoints, retry_policy_of(settings), lambda: Pipeline(exporting.processor, Resource.create())
    )
    if health_file is not None:
        _touch(health_file)
    _show_log()
    names, exit_status = ", ".join(endpoint.name for endpoint in endpoints), 0
    try:
        asyncio.run(_run(options, activities, names, health_file))
    except (WorkerError, RuntimeError) as error:  # the latter when the server refuses a worker that has begun
        print_line(Console(stderr=True), str(error.__cause__ or error))
        exit_status = FAILED
    finally:
        exporting.shutdown()
    _end_process(exit_status)


def check_temporal(console: Console, settings: StepHookSettings) -> None:
    """Print that the Temporal server of *settings*, if they want one, has answered; else exit with a sentence."""
    if settings.engine != "temporal":
        return
    with _extra():
        from otel_step_hook.temporal.client import connect_config  # noqa: PLC0415 -- an extra
        from otel_step_hook.temporal.worker import WorkerError, connected  # noqa: PLC0415 -- an extra
    config = connect_config()
    try:
        client = asyncio.run(connected(config))
    except WorkerError as error:
        print_line(Console(stderr=True), str(error))
        _end_process(FAILED)
    print_line(console, f"\nTemporal answers: namespace {client.namespace} at {config['target_host']}")


@contextlib.contextmanager
def _extra() -> Iterator[None]:
    """Turn the failed import of Temporal's SDK into a sentence."""
    try:
        yield
    except ImportError as error:
        raise ConfigurationError(
            f"Temporal needs a package that is not there ({error.name}); "
            "install it with: pip install 'otel-step-hook[cli,temporal]'"
        ) from None


async def _run(options: "WorkerOptions", activities: "WebhookActivities", names: str, health_file: Path | None) -> None:
    from otel_step_hook.temporal.worker import run_worker  # noqa: PLC0415 -- an extra

    console, stop, beats = Console(highlight=False), asyncio.Event(), []

    def on_ready(client: "Client") -> None:
        print_line(
            console,
            f"ready: task queue {options.task_queue} of namespace {client.namespace} at "
            f"{options.config['target_host']}, endpoints {names}, {options.concurrency} attempts at a time; "
            "SIGTERM or Ctrl-C ends it",
        )
        if health_file is not None:
            beats.append(asyncio.ensure_future(_beat(health_file)))

    _stop_by_signals(stop, lambda: print_line(console, _STOPPING.format(options.shutdown_timeout)), health_file)
    try:
        await run_worker(options, activities, stop, on_ready)
    finally:
        for beat in beats:
            beat.cancel()
    print_line(console, "stopped")


def _stop_by_signals(stop: asyncio.Event, on_stop: Callable[[], None], health_file: Path | None) -> None:
    """Set *stop* at the first SIGTERM or Ctrl-C. A second Ctrl-C ends the process at once, without *health_file*."""
    loop = asyncio.get_running_loop()

    def end(*_: object) -> None:
        if health_file is not None:
            health_file.unlink(missing_ok=True)
        _end_process(_INTERRUPTED)

    def on_signal() -> None:
        if not stop.is_set():  # `timeout`, and some shells, send SIGTERM twice
            loop.remove_signal_handler(signal.SIGINT)
            # Not a KeyboardInterrupt: Temporal's SDK would wait for the attempts in flight all the same.
            signal.signal(signal.SIGINT, end)
            on_stop()
            stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)


async def _beat(health_file: Path) -> None:
    """Touch *health_file* again and again, and remove it at the end: it is old when the event loop stands still."""
    try:
        while True:
            with contextlib.suppress(OSError):  # a full disk, for a while
                health_file.touch()  # noqa: ASYNC240 -- on a local disk, and nothing else shows that this loop runs
            await asyncio.sleep(_BEAT)
    finally:
        health_file.unlink(missing_ok=True)  # noqa: ASYNC240 -- see above


def _touch(health_file: Path) -> None:
    """Find out whether *health_file* can be written; else exit with a sentence."""
    try:
        health_file.touch()
    except OSError as error:
        exit_with(f"--health-file {health_file} cannot be written: {error.strerror}; choose another", USAGE_ERROR)
    health_file.unlink()


def _end_process(exit_status: int) -> NoReturn:
    """End this process without the end of the interpreter.

    While that runs, a thread of Temporal's SDK that releases an object kills the process by SIGABRT now and then.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_status)


def _show_log() -> None:
    """Show our log lines on stderr."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("otel_step_hook").setLevel(logging.INFO)
    # It logs a traceback for each attempt that failed; ours is one line, at most once a minute for each kind.
    logging.getLogger("temporalio.activity").setLevel(logging.ERROR)
