"""The commands ``otel-step-hook demo | check | send | listen | outbox | worker | secret``, and what they print."""

import asyncio
import io
import sys
import time
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from otel_step_hook.cli.demo import run
from otel_step_hook.cli.display import ARRIVAL_HEADING, arrival_line, escaped, settings_table, status_text
from otel_step_hook.cli.listener import Arrival, Listener, Plan
from otel_step_hook.cli.outbox import outbox
from otel_step_hook.cli.probe import CheckResult, SentWebhook, probe, send_one
from otel_step_hook.cli.shared import FAILED, USAGE_ERROR, exit_with, on_signal, print_line, required_endpoints
from otel_step_hook.cli.worker import check_temporal, worker
from otel_step_hook.delivery.log import printable
from otel_step_hook.delivery.loop import EventLoop
from otel_step_hook.delivery.model import Endpoint
from otel_step_hook.delivery.retry import AttemptResult
from otel_step_hook.delivery.signing import new_secret
from otel_step_hook.delivery.telemetry import shown_url
from otel_step_hook.errors import ConfigurationError
from otel_step_hook.settings import StepHookSettings, unknown_variables
from otel_step_hook.steps.event import step_id_text
from otel_step_hook.version import __version__

_EXCERPT = 600  # characters shown of an answer's body
_SUMMARIES = {  # keys: whether the last check was that of a proxy, and whether it succeeded
    (False, True): "The endpoint answers. To see what it says to a webhook: otel-step-hook send",
    (False, False): "The endpoint does not answer.",
    (True, True): "The proxy can be reached. To see what lies behind it: otel-step-hook send",
    (True, False): "The proxy cannot be reached.",
}
_T = TypeVar("_T")

app = typer.Typer(
    help="Try, check and watch step completion webhooks. Settings come from STEP_COMPLETE_… variables.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,  # they show local variables, which may hold the key
)
app.add_typer(outbox, name="outbox")
app.command()(worker)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line with *arguments*, by default ``sys.argv[1:]``, and exit. Does not return."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # some terminals cannot encode the lines of a tree
    try:
        app(arguments, prog_name="otel-step-hook")
    except ConfigurationError as error:
        exit_with(str(error), USAGE_ERROR)


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    # The event loop of deliveries: a name look-up that hangs does not keep the process from exiting.
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        return runner.run(work)


def _shown(endpoint: Endpoint) -> str:
    return shown_url(endpoint.url) + (f" ({endpoint.name})" if endpoint.name != "default" else "")


@app.callback(invoke_without_command=True)
def _version(
    *, version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def demo(
    svg: Annotated[
        Path | None, typer.Option(help="Write the picture of the trace to this file.", dir_okay=False)
    ] = None,
    otlp: Annotated[
        str | None,
        typer.Option(
            envvar="OTEL_EXPORTER_OTLP_ENDPOINT", help="Also send the trace to this collector, by OTLP over HTTP."
        ),
    ] = None,
) -> None:
    """Run a small agent, and show its webhooks as they arrive and then its trace. Takes three seconds."""
    try:
        exit_status = run(Console(highlight=False), svg=svg, otlp=otlp)
    except OSError as error:
        exit_with(f"the demo cannot go on: {error}", FAILED)
    raise typer.Exit(exit_status)


@app.command()
def check() -> None:
    """Show the settings in force, and whether the endpoint answers. Sends no webhook.

    It sends a HEAD request without key or signature; with a proxy it only connects to the proxy. With
    STEP_COMPLETE_ENGINE=temporal it also asks the Temporal server.
    Exit status: 0 if every endpoint (or its proxy) answers, 1 if not, 2 if a setting is wrong.
    """
    console = Console(highlight=False)
    for sentence in unknown_variables():
        print_line(console, f"! {sentence}", "yellow")
    settings = StepHookSettings()
    console.print(settings_table(settings))
    check_temporal(console, settings)
    raise typer.Exit(max([_check(console, endpoint) for endpoint in required_endpoints(settings)]))


def _check(console: Console, endpoint: Endpoint) -> int:
    print_line(console, f"\nTrying {_shown(endpoint)}, without sending a webhook:")
    return _print_results(console, _run(probe(endpoint)))


def _print_results(console: Console, findings: Sequence[CheckResult]) -> int:
    for finding in findings:
        mark, style = ("ok", "green") if finding.is_ok else ("failed", "red")
        line = Text(f"  {mark:<7}", style=style).append(f"{finding.check:<8} {finding.message}", style="default")
        console.print(line, soft_wrap=True)
    print_line(console, _SUMMARIES[findings[-1].check == "proxy", findings[-1].is_ok])
    return 0 if findings[-1].is_ok else FAILED


@app.command()
def send(
    *,
    step_id: Annotated[str | None, typer.Option(help="Step id to send; by default a new one.")] = None,
    show_body: Annotated[
        bool, typer.Option("--show-body", help="Show the beginning of the answer's body, which may repeat a secret.")
    ] = False,
) -> None:
    """Send one test webhook, without retries, and show the answer.

    Exit status: 0 if the receiver accepts it (2xx), 1 if not, 2 if a setting is wrong.
    """
    console = Console(highlight=False)
    settings = StepHookSettings()
    try:
        step_id = step_id_text(step_id) or None
    except ValueError as error:
        exit_with(f"--step-id: {error}", USAGE_ERROR)
    raise typer.Exit(
        max([_send(console, endpoint, step_id, shows_body=show_body) for endpoint in required_endpoints(settings)])
    )


def _send(console: Console, endpoint: Endpoint, step_id: str | None, *, shows_body: bool) -> int:
    print_line(console, f"POST {_shown(endpoint)}")
    return _print_sent(console, _run(send_one(endpoint, step_id)), shows_body=shows_body)


def _print_sent(console: Console, sent: SentWebhook, *, shows_body: bool) -> int:
    print_line(console, f"  step     {printable(sent.step_id)}\n  webhook  {sent.webhook_id}\n")
    result = sent.result
    what = status_text(result.status_code) if result.status_code else f"No answer: {result.error_type}"
    peer = f" from {result.peer[0]} port {result.peer[1]}" if result.peer else ""
    line = Text(what, style="green" if result.is_success else "red")
    console.print(line.append(f"{peer}, after {sent.took * 1000:.0f} ms", style="default"))
    if result.retry_after is not None:
        print_line(console, f"  It asks to wait {result.retry_after:g} s before the next attempt.")
    if result.directive:
        print_line(console, f"  It says webhook-delivery: {result.directive}")
    if result.status_code is None:
        print_line(console, "  To find out why, run: otel-step-hook check")
    _print_body(console, result, is_shown=shows_body)
    return 0 if result.is_success else FAILED


def _print_body(console: Console, result: AttemptResult, *, is_shown: bool) -> None:
    if is_shown:
        text = result.excerpt.decode("utf-8", "replace")[:_EXCERPT]
        console.print(Padding(Text(escaped(text)), (0, 0, 0, 2), expand=False))
    elif result.excerpt and not result.is_success:
        print_line(console, "  To see what it says, which may repeat a secret: otel-step-hook send --show-body")


@app.command()
def listen(
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 for any free one.")] = 8787,
    key: Annotated[str | None, typer.Option(help="Key to check; by default STEP_COMPLETE_KEY.")] = None,
    signing_secret: Annotated[
        str | None, typer.Option(help="Secret to check; by default STEP_COMPLETE_SIGNING_SECRET.")
    ] = None,
    fail: Annotated[int, typer.Option(min=0, help="Refuse the first N webhooks.")] = 0,
    status: Annotated[int, typer.Option(min=300, max=599, help="Status to refuse with.")] = 503,
    delay: Annotated[
        float, typer.Option(min=0, max=3600, help="Seconds to wait before an answer; with --fail, before a refusal.")
    ] = 0.0,
    retry_after: Annotated[int | None, typer.Option(min=0, help="Retry-After to refuse with, in seconds.")] = None,
) -> None:
    """Receive webhooks on this machine and show each, until Ctrl-C."""
    given = {name: text for name, text in (("key", key), ("signing_secret", signing_secret)) if text is not None}
    settings = StepHookSettings(endpoints=(), **given)  # STEP_COMPLETE_ENDPOINTS is for senders
    arrivals: SimpleQueue[Arrival | None] = SimpleQueue()  # None stands for Ctrl-C
    try:
        listener = Listener(
            Plan(fail, status, retry_after, delay),
            port=port,
            key=settings.key.get_secret_value() if settings.key else None,
            signing_secret=settings.signing_secret.get_secret_value() if settings.signing_secret else None,
            on_arrival=arrivals.put,
        )
    except OSError as error:
        exit_with(f"cannot listen on port {port}: {error.strerror}; choose another with --port", USAGE_ERROR)
    console = Console(highlight=False)
    # Ctrl-C is queued behind the arrivals: a KeyboardInterrupt could come before an arrival is printed.
    with on_signal("SIGINT", lambda: arrivals.put(None)), listener:
        _print_listening(console, listener.url, settings)
        if fail:
            which = "first webhook" if fail == 1 else f"first {fail} webhooks"
            print_line(console, f"Refuses the {which} with {status_text(status)}.")
        print_line(console, "Ctrl-C ends it.\n")
        count = _show(console, iter(arrivals.get, None))
    print_line(console, f"\n{count} webhook{'' if count == 1 else 's'} arrived.")


def _show(console: Console, arrivals: Iterator[Arrival]) -> int:
    """Print *arrivals* until there are no more; returns their number."""
    console.print(ARRIVAL_HEADING)
    count = 0
    for arrival in arrivals:
        count += 1
        console.print(arrival_line(arrival, time.strftime("%H:%M:%S", time.localtime(arrival.at))))
    return count


def _print_listening(console: Console, url: str, settings: StepHookSettings) -> None:
    print_line(console, "Listening. In the terminal where your application starts, run:\n")
    print_line(console, f"  export STEP_COMPLETE_WEBHOOK={url}\n", "bold")
    checked = [
        name
        for name, secret in (("the key", settings.key), ("the signature", settings.signing_secret))
        if secret is not None
    ]
    print_line(
        console, f"Checks {' and '.join(checked)} of each webhook." if checked else "Checks neither key nor signature."
    )


@app.command()
def secret() -> None:
    """Print a new signing secret, for STEP_COMPLETE_SIGNING_SECRET of sender and receiver."""
    typer.echo(new_secret())
