"""What ``otel-step-hook outbox`` shows of rows: tables and lines for people, values for JSON."""

import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from rich.table import Table
from rich.text import Text

from otel_step_hook.cli.display import escaped
from otel_step_hook.delivery.inspection import EndpointCounts, StoredDelivery
from otel_step_hook.delivery.log import printable

_LAST = 253_402_214_400  # unix seconds: the last day that every time zone can show
_UNITS = ((90, 1, "s"), (5400, 60, "m"), (129_600, 3600, "h"), (math.inf, 86_400, "d"))  # below, seconds of it, name
_STYLES = {"waiting": "default", "leased": "cyan", "discarded": "red"}
_UNKNOWN = "not in the settings here: its deliveries are left alone"


def duration(seconds: float) -> str:
    """Return *seconds* as a person says it, such as ``3 m``: rounded, in the unit that fits."""
    seconds = max(0.0, seconds)
    size, unit = next((size, unit) for below, size, unit in _UNITS if seconds < below)
    return f"{seconds / size:.0f} {unit}"


def due_in(seconds: float) -> str:
    """Return *seconds* until something is due as a person says it, or ``now``."""
    return duration(seconds) if seconds > 0 else "now"


def local_time(seconds: float | None) -> str | None:
    """Return unix *seconds* as local time by ISO 8601, with its offset from UTC; None for None."""
    if seconds is None:
        return None
    moment = datetime.fromtimestamp(min(max(seconds, 0.0), _LAST), UTC)
    return moment.astimezone().isoformat(timespec="milliseconds")


def endpoints_table(counts: Iterable[EndpointCounts], known: frozenset[str], now: float) -> Table:
    """Return a table with the number of rows by endpoint and state; it says which endpoints are not *known*."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("endpoint", overflow="fold")
    for heading in ("waiting", "oldest", "discarded"):
        table.add_column(heading, no_wrap=True, justify="right")
    table.add_column("")
    for one in counts:
        oldest = "" if one.oldest_at is None else duration(now - one.oldest_at)
        note = "" if one.endpoint in known or not known else _UNKNOWN
        table.add_row(Text(printable(one.endpoint)), str(one.waiting), oldest, str(one.discarded), Text(note, "yellow"))
    return table


def deliveries_table(found: Iterable[StoredDelivery], now: float) -> Table:
    """Return a table with a row for each delivery."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("state", no_wrap=True)
    table.add_column("step", overflow="fold", min_width=12)
    table.add_column("outcome", no_wrap=True)
    table.add_column("endpoint", overflow="fold")
    table.add_column("attempts", no_wrap=True, justify="right")
    table.add_column("last error", overflow="fold")
    for heading in ("age", "due in"):
        table.add_column(heading, no_wrap=True, justify="right")
    for one in found:
        table.add_row(
            Text(one.state, _STYLES[one.state]),
            Text(printable(str(one.event["step_id"]))),
            Text(str(one.event["outcome"])),
            Text(printable(one.endpoint)),
            str(one.attempts),
            Text(printable(_last_error(one) or "")),
            duration(now - one.submitted_at),
            due_in(one.due_at - now) if one.state == "waiting" else "",
        )
    return table


def delivery_lines(one: StoredDelivery) -> Iterator[Text]:
    """Yield a line for everything that is known of a delivery."""
    for name, value in delivery_json(one, is_whole=True).items():
        texts = [f"{key}={item}" for key, item in value.items()] if isinstance(value, dict) else [value]
        for text in texts:
            if text not in {None, ""}:
                line = Text(f"{name.replace('_', ' '):<14}", "dim")
                yield line.append(escaped(str(text)).replace("\n", "\\n"), "default")


def endpoint_json(one: EndpointCounts, known: frozenset[str]) -> dict[str, object]:
    """Return the values of an endpoint for JSON."""
    return {
        "endpoint": one.endpoint,
        "waiting": one.waiting,
        "discarded": one.discarded,
        "oldest_at": local_time(one.oldest_at),
        "is_known": one.endpoint in known,
    }


def delivery_json(one: StoredDelivery, *, is_whole: bool = False) -> dict[str, object]:
    """Return the values of a delivery for JSON: those of the table, or all if it *is_whole*."""
    event = one.event
    shown: dict[str, object] = {
        "webhook_id": one.webhook_id,
        "step_id": event["step_id"],
        "outcome": event["outcome"],
        "endpoint": one.endpoint,
        "state": one.state,
        "attempts": one.attempts,
        "last_error": _last_error(one),
        "submitted_at": local_time(one.submitted_at),
        "due_at": local_time(one.due_at) if one.state == "waiting" else None,
        "leased_until": local_time(one.due_at) if one.state == "leased" else None,
        "discarded_at": local_time(one.discarded_at),
    }
    if not is_whole:
        return shown
    return shown | {
        "name": event["name"],
        "trace_id": event["trace_id"],
        "span_id": event["span_id"],
        "started_at": local_time(int(event["start_time"]) / 1e9),
        "ended_at": local_time(int(event["end_time"]) / 1e9),
        "body": one.body,
        "details": event["details"],
        "resource": one.resource.get("attributes", {}),
    }


def _last_error(one: StoredDelivery) -> str | None:
    """Return the error of the last attempt; None without an attempt, unless it was discarded without one."""
    return one.error_type if one.attempts or one.state == "discarded" or one.error_type != "expired" else None


def counted(count: int, what: str, many: str = "") -> str:
    """Return *count* and *what* is counted, in the plural where it has to be."""
    return f"{count} {what if count == 1 else many or what + 's'}"


def results_line(results: Sequence[tuple[str, int]], left: int, next_due: float | None) -> str:
    """Return how many deliveries have ended with each result, how many are left, and when one is due, in seconds."""
    parts = [f"{count} {name.replace('_', ' ')}" for name, count in results if count or name != "handed_over"]
    due = "" if next_due is None else f"; the next is due {'in ' * (next_due > 0)}{due_in(next_due)}"
    return f"{', '.join(parts)}, {left} left{due}"
