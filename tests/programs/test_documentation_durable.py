"""The page about the outbox: its block, and what it says of files."""

from pathlib import Path

from documentation import claim
from processes import Run, Start, StepReceiver

_SETTING = claim("docs/outbox.md", "export STEP_COMPLETE_OUTBOX")


def test_the_variable_is_all_that_it_needs(receiver: StepReceiver, start: Start, run: Run, tmp_path: Path) -> None:
    """With the variable of the page, a step that ended before a kill is delivered by the next process."""
    name, _, path = _SETTING.text.strip().removeprefix("export ").partition("=")
    assert (name, path) == ("STEP_COMPLETE_OUTBOX", "/var/lib/app/steps.db")
    outbox = tmp_path / Path(path).name
    ended = run("end_step('step'); os.kill(os.getpid(), 9)", webhook="http://127.0.0.1:9/", outbox=outbox)
    assert ended.code == -9
    (journal,) = tmp_path.glob("steps.db.*.journal")
    assert 8_000_000 < journal.stat().st_size < 9_500_000  # "9 MB"
    program = start("tracer.start_span('no step').end(); wait_for_test()", outbox=outbox)
    receiver.wait_for(1)
    program.go_on()
    assert program.ended().code == 0
    assert receiver.steps == ["step"]
