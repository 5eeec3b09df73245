import re
from io import StringIO
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from rich.console import Console, RenderableType
from support import NewPipeline, Pipeline

from otel_step_hook.cli.display import ARRIVAL_HEADING, arrival_line, escaped, status_text, trace_picture, write_svg
from otel_step_hook.cli.listener import Arrival
from otel_step_hook.testing import ScriptedReceiver


def _shown(picture: RenderableType, width: int = 92) -> list[str]:
    console = Console(file=StringIO(), width=width, record=True)
    console.print(picture)
    return [line.rstrip() for line in console.export_text().splitlines()]


def _arrival(**changes: object) -> Arrival:
    values = {
        "at": 0.0,
        "attempt": 2,
        "step_id": "step-1",
        "headers": {},
        "body": b"{}",
        "is_verified": True,
        "verdict": "genuine",
        "status": 204,
    }
    return Arrival(**(values | changes))  # type: ignore[arg-type]  # -- the tests pass values of the right types


def test_an_arrival() -> None:
    """An arrival is one line below its heading."""
    heading, line = _shown(ARRIVAL_HEADING)[0], _shown(arrival_line(_arrival(), "0.31 s"))[0]
    assert heading == "time      attempt  answer                   step"
    assert line == "0.31 s          2  204 No Content           step-1"


def test_an_arrival_that_is_not_genuine() -> None:
    """The reason stands below the line of the request, in full."""
    verdict = "the authorization header is wrong; " * 5
    lines = _shown(arrival_line(_arrival(step_id=None, is_verified=False, verdict=verdict, status=401), "now"), 60)
    assert lines[0] == "now             2  401 Unauthorized         ?"
    assert " ".join(" ".join(lines[1:]).split()) == verdict.strip()


def test_control_characters_are_escaped() -> None:
    """Control characters of a step id and of an answer are shown escaped; the terminal does not obey them."""
    (line,) = _shown(arrival_line(_arrival(step_id="a\x1b[31m\nb[bold]"), "now"))
    assert line.endswith(r"a\x1b[31m\nb[bold]")
    assert escaped("one\x1b[2J\ntwo\r\nthree\x9b") == "one\\x1b[2J\ntwo\nthree\\x9b"


@pytest.mark.parametrize(("status", "text"), [(204, "204 No Content"), (599, "599")])
def test_statuses(status: int, text: str) -> None:
    """A status code is followed by its reason phrase, if it has one."""
    assert status_text(status) == text


@pytest.fixture
def spans(hooked: Pipeline, step_receiver: ScriptedReceiver) -> list[ReadableSpan]:
    """A workflow of three spans: a step delivered at the second attempt, a failed step, and a span that is no step."""
    step_receiver.answers(503, 204)
    with hooked.tracer.start_as_current_span("workflow"):
        hooked.end_step("step-1")
        with (
            pytest.raises(LookupError),
            hooked.tracer.start_as_current_span("lookup", attributes={"step_id": "2"}),
        ):
            raise LookupError
        hooked.tracer.start_span("thinking").end()
    assert hooked.provider.force_flush()
    return hooked.spans


def _without_times(lines: list[str]) -> list[str]:
    return [re.split(r"  +[0-9]", line)[0].rstrip() for line in lines]


def test_a_trace(spans: list[ReadableSpan]) -> None:
    """The picture shows each span below its parent, in the order of their starts, and how it ended."""
    assert _without_times(_shown(trace_picture(spans, 92))) == [
        "span                     ended                       took",
        "workflow",
        "├─ step                  success",
        "│  └─ step_hook.deliver  delivered, 2 attempts",
        "│     ├─ POST",
        "│     └─ POST",
        "├─ lookup                failed LookupError",
        "│  └─ step_hook.deliver  delivered, 1 attempt",
        "│     └─ POST",
        "└─ thinking",
    ]


@pytest.mark.parametrize("width", [80, 92, 100])
def test_the_time_line(spans: list[ReadableSpan], width: int) -> None:
    """Each span has a bar, and the scale from 0 to the trace's duration fills the width exactly."""
    lines = _shown(trace_picture(spans, width), width)
    assert all(re.search("[━─]$", line) for line in lines[1:])
    assert max(len(line) for line in lines[1:]) == len(lines[0]) == width
    assert re.search(r"took  0 +[0-9]+ ms$", lines[0])


def test_a_narrow_terminal(spans: list[ReadableSpan]) -> None:
    """The time line keeps a minimum of columns, even if the terminal is narrower."""
    assert re.search(r"took  0 +[0-9]+ ms$", _shown(trace_picture(spans, 20))[0])


def test_a_discarded_delivery(pipeline: NewPipeline, closed_port: int) -> None:
    """A discarded delivery is marked as such, and an attempt without an answer shows its error."""
    url = f"http://127.0.0.1:{closed_port}/"
    hooked = pipeline(url, give_up_after=999.0, initial_backoff=99.0, max_backoff=99.0)
    hooked.tracer.start_span("step", attributes={"step_id": "step-1"}).end()
    hooked.provider.shutdown()
    lines = _without_times(_shown(trace_picture(hooked.spans, 92)))
    assert lines[1:] == [
        "step                  success",
        "└─ step_hook.deliver  discarded, 1 attempt",
        "   └─ POST            ConnectionRefusedError",
    ]


def test_a_part_of_a_trace(spans: list[ReadableSpan]) -> None:
    """Spans whose parents are missing are shown as roots; without spans the picture is empty."""
    part = [span for span in spans if span.name == "POST"]
    assert [line.partition(" ")[0] for line in _shown(trace_picture(part, 92))[1:]] == ["POST", "POST", "POST"]
    assert len(_shown(trace_picture([], 92))) == 1


def test_the_file(spans: list[ReadableSpan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture in a file has a title and colours, and does not depend on the terminal."""
    path = tmp_path / "trace.svg"
    write_svg(path, spans)
    picture = path.read_text(encoding="utf-8")
    assert picture.startswith("<svg ")
    assert "otel-step-hook&#160;demo" in picture or "otel-step-hook demo" in picture
    for name, value in {"NO_COLOR": "1", "COLUMNS": "40", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    write_svg(path, spans)
    assert path.read_text(encoding="utf-8") == picture
