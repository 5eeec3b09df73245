"""The commands ``otel-step-hook outbox list | show | redeliver | purge | deliver``."""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from otel_step_hook.cli.drain import Drained, drain
from otel_step_hook.cli.exporting import Exporting
from otel_step_hook.cli.outbox_display import (
    counted,
    deliveries_table,
    delivery_json,
    delivery_lines,
    endpoint_json,
    endpoints_table,
    local_time,
    results_line,
)
from otel_step_hook.cli.shared import FAILED, USAGE_ERROR, exit_with, on_signal, print_line, required_endpoints
from otel_step_hook.delivery.database import OutboxError
from otel_step_hook.delivery.inspection import Filters, Inspection, RowState
from otel_step_hook.delivery.takeover import count_abandoned
from otel_step_hook.errors import ConfigurationError
from otel_step_hook.settings import StepHookSettings, endpoints_of
from otel_step_hook.steps.event import Outcome

_UNUSABLE = 3  # exit status: the file cannot be used
_MAX_SHOWN = 100  # deliveries that `show` shows; an id has as many as there are endpoints
_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

outbox = typer.Typer(
    help="Look into an outbox, send discarded deliveries again or delete them, and deliver what waits. Exit status: "
    "0 done, 1 something is left or nothing matches, 2 wrong usage or settings, 3 the file cannot be used.",
    no_args_is_help=True,
)


def _seconds(text: str) -> float:
    """Return the seconds of an age such as ``10m``."""
    match = _AGE.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no age; expected a number and s, m, h or d, such as 10m")
    return float(match[1]) * _SECONDS[match[2]]


_Path = Annotated[
    str | None, typer.Option("--outbox", metavar="PATH", help="Path of the outbox; by default STEP_COMPLETE_OUTBOX.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
_Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Webhook ids or step ids.")]
_States = Annotated[list[RowState] | None, typer.Option("--state", help="Only with this state; may be repeated.")]
_Outcomes = Annotated[list[Outcome] | None, typer.Option("--outcome", help="Only with this outcome; may be repeated.")]
_Endpoints = Annotated[
    list[str] | None, typer.Option("--endpoint", metavar="NAME", help="Only for this endpoint; may be repeated.")
]
_Errors = Annotated[
    list[str] | None,
    typer.Option("--error", metavar="TYPE", help="Only with this last error, such as 503; may be repeated."),
]
_Older = Annotated[
    float | None, typer.Option(parser=_seconds, metavar="AGE", help="Only if older, such as 10m, 2h or 3d.")
]
_Younger = Annotated[float | None, typer.Option(parser=_seconds, metavar="AGE", help="Only if younger.")]
_All = Annotated[bool, typer.Option("--all", help="All discarded deliveries.")]


@outbox.command("list")
def list_(
    *,
    path: _Path = None,
    state: _States = None,
    outcome: _Outcomes = None,
    endpoint: _Endpoints = None,
    error: _Errors = None,
    older: _Older = None,
    younger: _Younger = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many deliveries.")] = 50,
    as_json: _Json = False,
) -> None:
    """Show how many deliveries wait or are discarded, for each endpoint, and each of them, oldest first.

    Exit status: 0, also when there are none; 2 for wrong usage or settings; 3 if the file cannot be used.
    """
    settings, file = _settings(path)
    known = frozenset(one.name for one in endpoints_of(settings))
    filters = Filters((), state or (), outcome or (), endpoint or (), error or (), older, younger)
    now = time.time()
    with _opened(file) as rows:
        counts, found = rows.endpoints(), rows.find(filters, limit)
        more = rows.count(filters) - len(found) if len(found) == limit else 0
    in_journals = count_abandoned(file)
    if as_json:
        shown = [endpoint_json(one, known) for one in counts]
        deliveries = [delivery_json(one) for one in found]
        _print_json(outbox=str(file), endpoints=shown, in_journals=in_journals, deliveries=deliveries, more=more)
        return
    console = Console(highlight=False)
    print_line(console, f"{file}\n")
    console.print(endpoints_table(counts, known, now))
    if in_journals:
        steps = counted(
            in_journals, "step of a process that has ended waits", "steps of processes that have ended wait"
        )
        print_line(
            console, f"{steps} in journals beside it, for the next process, or for: otel-step-hook outbox deliver"
        )
    if found:
        console.print()
        console.print(deliveries_table(found, now))
    if more:
        print_line(console, f"and {more} more; to see them, use filters, or a higher --limit")


@outbox.command()
def show(
    delivery: Annotated[str, typer.Argument(metavar="ID", help="A webhook id or a step id.")],
    *,
    path: _Path = None,
    as_json: _Json = False,
) -> None:
    """Show everything that is known of a delivery: times, trace, last error, resource.

    Exit status: 0; 1 if there is none with this id; 2 for wrong usage or settings; 3 if the file cannot be used.
    """
    _, file = _settings(path)
    with _opened(file) as rows:
        found = rows.find(Filters(ids=[delivery]), _MAX_SHOWN)
    if as_json:
        _print_json(outbox=str(file), deliveries=[delivery_json(one, is_whole=True) for one in found])
    elif not found:
        print_line(Console(stderr=True), "No delivery has this id. It is gone once it is delivered.")
    for one in [] if as_json else found:
        console = Console(highlight=False)
        for line in delivery_lines(one):
            console.print(line, soft_wrap=True)
        console.print()
    raise typer.Exit(0 if found else FAILED)


@outbox.command()
def redeliver(
    ids: _Ids = None,
    *,
    path: _Path = None,
    outcome: _Outcomes = None,
    endpoint: _Endpoints = None,
    error: _Errors = None,
    older: _Older = None,
    younger: _Younger = None,
    everything: _All = False,
    as_json: _Json = False,
) -> None:
    """Make discarded deliveries due again, under their webhook ids, with all their attempts and all their time.

    A process with this outbox sends them within 30 seconds; so does: otel-step-hook outbox deliver
    Exit status: 0; 1 if none matches; 2 for wrong usage or settings; 3 if the file cannot be used.
    """
    filters = Filters(ids or (), (), outcome or (), endpoint or (), error or (), older, younger)
    _check_filters(filters, everything=everything)
    _, file = _settings(path)
    with _opened(file) as rows:
        count = rows.redeliver(filters)
    _print_count("redelivered", f"{counted(count, 'delivery is', 'deliveries are')} due again.", count, as_json=as_json)


@outbox.command()
def purge(
    ids: _Ids = None,
    *,
    path: _Path = None,
    outcome: _Outcomes = None,
    endpoint: _Endpoints = None,
    error: _Errors = None,
    older: _Older = None,
    younger: _Younger = None,
    everything: _All = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: _Json = False,
) -> None:
    """Delete discarded deliveries. Those that wait are never deleted.

    Exit status: 0; 1 if none matches, or you say no; 2 for wrong usage or settings; 3 if the file cannot be used.
    """
    filters = Filters(ids or (), (), outcome or (), endpoint or (), error or (), older, younger)
    _check_filters(filters, everything=everything)
    _, file = _settings(path)
    with _opened(file) as rows:
        matching = rows.count_discarded(filters)
        if matching and not yes:
            what = counted(matching, "discarded delivery", "discarded deliveries")
            typer.confirm(f"Delete {what} for ever?", abort=True, err=True)
        count = rows.purge(filters)
    _print_count("purged", f"{counted(count, 'delivery is', 'deliveries are')} deleted.", count, as_json=as_json)


@outbox.command()
def deliver(
    *,
    path: _Path = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to deliver for, at most.")] = 60.0,
    as_json: _Json = False,
) -> None:
    """Deliver what waits for the endpoints of the settings, also what processes that have ended left in journals.

    Spans and metrics are exported as OTEL_TRACES_EXPORTER and OTEL_METRICS_EXPORTER say, or by OTLP if
    OTEL_EXPORTER_OTLP_ENDPOINT is set. It ends when
    nothing is due within the time, and early, but in order, when SIGTERM comes.
    Exit status: 0 if all is delivered; 1 if something is left or was discarded; 2 for wrong usage or settings;
    3 if the file cannot be used.
    """
    settings, file = _settings(path)
    endpoints, exporting = required_endpoints(settings), Exporting()
    stopped: list[None] = []
    with (
        on_signal("SIGTERM", lambda: stopped.append(None)),
        _progress(is_shown=not as_json) as on_progress,
        _errors(file),
    ):
        drained = drain(file, settings, endpoints, exporting, timeout=timeout, on_progress=on_progress, stopped=stopped)
    results = [(name, drained.results[name]) for name in ("delivered", "handed_over", "discarded")]
    if as_json:
        _print_json(outbox=str(file), **dict(results), left=drained.left, due_at=local_time(drained.due_at))
    else:
        next_due = None if drained.due_at is None else drained.due_at - time.time()
        print_line(Console(highlight=False), results_line(results, drained.left, next_due))
    raise typer.Exit(FAILED if drained.left or drained.results["discarded"] else 0)


@contextlib.contextmanager
def _progress(*, is_shown: bool) -> Iterator[Callable[[Drained], None]]:
    """Show a bar while the body runs, which calls what it gets with each look; not where stdout is no terminal."""
    console = Console()
    if not (is_shown and console.is_terminal):
        yield lambda _: None  # a bar that is disabled prints an empty line, in older versions of rich
        return
    columns = (BarColumn(), TextColumn("{task.completed:.0f} of {task.total:.0f}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=0)

        def on_progress(drained: Drained) -> None:
            ended = drained.results.total()
            bar.update(task, completed=ended, total=ended + drained.left)

        yield on_progress


def _settings(path: str | None) -> tuple[StepHookSettings, Path]:
    """Return the settings, with the outbox *path* if it is given, and the absolute path of the outbox."""
    settings = StepHookSettings() if path is None else StepHookSettings(outbox=path)
    if settings.outbox is None:
        raise ConfigurationError("STEP_COMPLETE_OUTBOX is not set; expected it, or --outbox with the path of the file")
    return settings, Path(settings.outbox).absolute()


def _check_filters(filters: Filters, *, everything: bool) -> None:
    if bool(filters) == everything:
        exit_with("expected ids or filters, or --all for all discarded deliveries", USAGE_ERROR)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Inspection]:
    with _errors(file), Inspection(file) as rows:
        yield rows


@contextlib.contextmanager
def _errors(file: Path) -> Iterator[None]:
    """Turn `OutboxError` into a sentence and exit status 3."""
    try:
        yield
    except OutboxError as error:
        left = count_abandoned(file)
        waiting = f"{counted(left, 'step waits', 'steps wait')} in journals beside it"
        more = f"; {waiting}, for the next process, or for: otel-step-hook outbox deliver" if left else ""
        exit_with(f"the outbox {file} {error}{more}", _UNUSABLE)


def _print_count(name: str, sentence: str, count: int, *, as_json: bool) -> None:
    if as_json:
        _print_json(**{name: count})
    else:
        print_line(Console(highlight=False), sentence if count else "No discarded delivery matches.")
    raise typer.Exit(0 if count else FAILED)


def _print_json(**document: object) -> None:
    typer.echo(json.dumps(document, indent=2))
