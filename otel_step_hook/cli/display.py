"""The lines, tables and pictures that the command line prints. All are readable without colours."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from http.client import responses
from io import StringIO
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from otel_step_hook.cli.listener import Arrival
from otel_step_hook.delivery.http_client import client_label
from otel_step_hook.delivery.log import printable
from otel_step_hook.delivery.telemetry import shown_url
from otel_step_hook.settings import StepHookSettings, effective_settings, setting_rows
from otel_step_hook.steps.event import SCOPE

MAX_WIDTH = 100  # columns; in a wider picture the eye loses the line between name and bar
_SVG_WIDTH = 92  # columns; about as many as a README page shows without shrinking the picture
_MIN_BARS = 10  # columns that the time line has at least
_TOOK_WIDTH, _GAP = 7, 2  # columns of a duration, and between two columns of the picture
_FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # of rich: a browser would download the font
_NANOSECONDS = 1_000_000_000
_STYLES = {"success": "green", "delivered": "green", "failed": "red", "discarded": "red", "cancelled": "yellow"}

ARRIVAL_HEADING = Text(f"{'time':<8}  attempt  {'answer':<23}  step", style="dim")


def arrival_line(arrival: Arrival, when: str) -> Group:
    """The line of *arrival* under `ARRIVAL_HEADING`, with the time *when*; below it why it is not genuine."""
    line = Text(f"{when:<8}  {arrival.attempt:>7}  ")
    line.append(f"{status_text(arrival.status):<23}", style=_status_style(arrival.status))
    line.append(f"  {'?' if arrival.step_id is None else printable(arrival.step_id)}")
    if arrival.is_verified:
        return Group(line)
    return Group(line, Padding(Text(arrival.verdict, style="yellow"), (0, 0, 0, 19)))


def escaped(text: str) -> str:
    """*text* with all unprintable characters but line breaks escaped, so that it cannot control the terminal."""
    lines = ("".join(char if char.isprintable() else ascii(char)[1:-1] for char in line) for line in text.splitlines())
    return "\n".join(lines)


def status_text(status: int) -> str:
    """An HTTP status code, with its reason phrase if it has one."""
    return f"{status} {responses.get(status, '')}".rstrip()


def _status_style(status: int) -> str:
    return "green" if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES else "red"


def settings_table(settings: StepHookSettings) -> Table:
    """A table of every setting with its value and source. Secrets are hidden, those inside of URLs too."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from", no_wrap=True)
    urls = {"webhook": settings.webhook, "proxy": settings.proxy}
    shown = {name: " ".join(map(shown_url, url.split())) for name, url in urls.items() if url}
    shown["http_client"] = client_label(settings.http_client)
    values = effective_settings(settings)
    for row in setting_rows():
        value, source = values[row.name]
        style = "dim" if source == "default" else "bold"
        table.add_row(Text(row.variable), Text(shown.get(row.name, value)), Text(source), style=style)
    return table


def trace_picture(spans: Sequence[ReadableSpan], width: int) -> Table:
    """The trace of the ended *spans* as a tree beside a time line, *width* columns wide."""
    outcomes = _outcomes(spans)
    rows = [(span, _name(branch, span), _ended(span, outcomes)) for branch, span in _tree(spans)]
    taken = sum(max((text.cell_len for text in column), default=0) for column in list(zip(*rows, strict=True))[1:])
    time_line = _TimeLine(spans, max(_MIN_BARS, width - taken - _TOOK_WIDTH - 3 * _GAP))
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
    for heading in ("span", "ended", f"{'took':>{_TOOK_WIDTH}}", time_line.scale):
        table.add_column(heading, no_wrap=True)
    for span, name, ended in rows:
        took = _indented(f"{_duration(_length(span)):>{_TOOK_WIDTH}}", "default")
        table.add_row(name, ended, took, time_line.bar(span, str(ended.style)))
    return table


def write_svg(path: Path, spans: Sequence[ReadableSpan]) -> None:
    """Write the picture of the trace of *spans* to *path*. Raises OSError when that cannot be written."""
    # Options that keep the terminal and the environment from changing the picture.
    canvas = Console(record=True, file=StringIO(), width=_SVG_WIDTH, force_terminal=True, no_color=False, _environ={})
    canvas.print(trace_picture(spans, _SVG_WIDTH - 2))  # the picture's frame cuts off text that touches it
    picture = canvas.export_svg(title="otel-step-hook demo", unique_id="step-hook")
    path.write_text(_FONT_FACE.sub("", picture), encoding="utf-8")


class _TimeLine:
    """Draws spans as bars on one scale, *columns* wide."""

    def __init__(self, spans: Sequence[ReadableSpan], columns: int) -> None:
        self._columns = columns
        self._begin = min((span.start_time or 0 for span in spans), default=0)
        self._total = max((span.end_time or 0 for span in spans), default=0) - self._begin
        self.scale = f"0{_duration(self._total):>{columns - 1}}"

    def bar(self, span: ReadableSpan, style: str) -> Text:
        """The bar of *span*, at least one column long; the spans of deliveries are drawn thinner."""
        per_column = max(self._total, 1) / self._columns
        first = min(int(((span.start_time or 0) - self._begin) / per_column), self._columns - 1)
        count = max(1, round(((span.end_time or 0) - self._begin) / per_column) - first)
        return Text(" " * first).append(("─" if _is_of_delivery(span) else "━") * count, style=style)


def _tree(spans: Sequence[ReadableSpan]) -> Iterator[tuple[str, ReadableSpan]]:
    """Yield each span below its parent, the earliest first, with the branch that leads to it.

    A span whose parent is not among *spans* is a root.
    """
    known = {span.context.span_id for span in spans}
    children: defaultdict[int, list[ReadableSpan]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        parent = span.parent.span_id if span.parent is not None else 0
        children[parent if parent in known else 0].append(span)

    def below(parent: int, indent: str) -> Iterator[tuple[str, ReadableSpan]]:
        for child in children[parent]:
            is_last = child is children[parent][-1]
            yield indent + ("└─ " if is_last else "├─ "), child
            yield from below(child.context.span_id, indent + ("   " if is_last else "│  "))

    for root in children[0]:
        yield "", root
        yield from below(root.context.span_id, "")


def _name(branch: str, span: ReadableSpan) -> Text:
    return _indented(branch, "dim").append(span.name, style="bold" if span.parent is None else "default")


def _indented(text: str, style: str) -> Text:
    """*text* with its leading spaces left without *style*: some SVG viewers drop spaces at a styled text's start."""
    visible = text.lstrip()
    return Text(" " * (len(text) - len(visible))).append(visible, style=style)


def _outcomes(spans: Sequence[ReadableSpan]) -> Mapping[int, str]:
    """The outcome that was reported for each step, by the span id of the step."""
    reported = ((span.parent, (span.attributes or {}).get("step_hook.outcome")) for span in spans)
    return {parent.span_id: str(outcome) for parent, outcome in reported if parent is not None and outcome is not None}


def _ended(span: ReadableSpan, outcomes: Mapping[int, str]) -> Text:
    """How *span* ended, as coloured text."""
    attributes = span.attributes or {}
    if result := attributes.get("step_hook.result"):
        attempts = attributes.get("step_hook.attempts")
        return Text(f"{result}, {attempts} attempt{'' if attempts == 1 else 's'}", style=_STYLES[str(result)])
    if status := attributes.get("http.response.status_code"):
        return Text(status_text(int(str(status))), style=_status_style(int(str(status))))
    if error_type := attributes.get("error.type"):
        return Text(str(error_type), style="red")
    outcome = outcomes.get(span.context.span_id, "")
    return Text(f"{outcome} {_exception(span)}".strip(), style=_STYLES.get(outcome, ""))


def _exception(span: ReadableSpan) -> str:
    """The class name of the last exception that *span* recorded, without its module; empty without one."""
    names = [str((event.attributes or {}).get("exception.type")) for event in span.events if event.name == "exception"]
    return names[-1].rpartition(".")[2] if names else ""


def _is_of_delivery(span: ReadableSpan) -> bool:
    return span.instrumentation_scope is not None and span.instrumentation_scope.name == SCOPE


def _length(span: ReadableSpan) -> int:
    return (span.end_time or 0) - (span.start_time or 0)


def _duration(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e9:.2f} s" if nanoseconds >= _NANOSECONDS else f"{nanoseconds / 1e6:.0f} ms"
