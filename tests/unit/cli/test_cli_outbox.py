"""The commands that look into an outbox and change it, on files that real hooks have written."""

import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import support
from outboxes import die_with_journal, living_journal, make_older, rows, wait_for_rows
from support import Cli

from otel_step_hook.testing import Answer, ScriptedReceiver

_LOCK = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
_COPIES = """
WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 1200)
INSERT INTO delivery
SELECT NULL, 'msg_' || n, endpoint, event, resource, pipeline, submitted_at, due_at, is_new, attempts, error_type, body,
       owner, lease, discarded_at, 0
FROM numbers, (SELECT * FROM delivery WHERE error_type = '410')
"""


@pytest.fixture
def outbox(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `written`, which STEP_COMPLETE_OUTBOX names."""
    path = tmp_path / "steps.db"
    shutil.copy(written, path)
    monkeypatch.setenv("STEP_COMPLETE_OUTBOX", str(path))
    return path


def squeezed(text: str) -> list[str]:
    """The lines of *text* with single spaces between words."""
    return [" ".join(line.split()) for line in text.splitlines()]


# list


def test_list(cli: Cli, outbox: Path) -> None:
    """`list` shows the counts of each endpoint, and state, step, outcome, attempts and last error of each delivery."""
    make_older(outbox, "gone", 7200)
    make_older(outbox, "aborted", 540)
    status, output, errors = cli("outbox", "list", WEBHOOK="https://example.com/token")
    assert (status, errors) == (0, "")
    first, *lines = squeezed(output)
    assert first == str(outbox)
    assert 8 <= int(lines[-1].split()[-2]) <= 17  # half the backoff is jitter
    ages = [re.sub(r"\d+ m$", "9 m", re.sub(r"\b\d+ s\b", "0 s", line)) for line in lines if line]
    assert ages == [
        "endpoint waiting oldest discarded",
        "default 1 0 s 2",
        "state step outcome endpoint attempts last error age due in",
        "discarded gone success default 1 410 2 h",
        "discarded aborted failed default 1 503 9 m",
        "waiting later success default 1 503 0 s 9 m",
    ]
    assert "token" not in output


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ("", ["gone", "aborted", "later"]),
        ("--state discarded", ["gone", "aborted"]),
        ("--state waiting --state leased", ["later"]),
        ("--outcome failed", ["aborted"]),
        ("--outcome failed --outcome success --error 410", ["gone"]),
        ("--error 410 --error 503 --state waiting", ["later"]),
        ("--endpoint default", ["gone", "aborted", "later"]),
        ("--endpoint other", []),
        ("--older 10m", ["gone"]),
        ("--older 1.5h --younger 1d", ["gone"]),
        ("--younger 86400s --younger 1h", ["aborted", "later"]),
        ("--limit 2", ["gone", "aborted"]),
        ("--limit 3", ["gone", "aborted", "later"]),
    ],
)
def test_list_as_json_with_filters(cli: Cli, outbox: Path, filters: str, expected: list[str]) -> None:
    """`--json` prints one document, with the deliveries that agree with every filter."""
    make_older(outbox, "gone", 7200)
    status, output, errors = cli("outbox", "list", "--json", *filters.split())
    assert (status, errors) == (0, "")
    document = json.loads(output)
    assert [one["step_id"] for one in document["deliveries"]] == expected
    assert document["more"] == (1 if filters == "--limit 2" else 0)


def test_list_as_json(cli: Cli, outbox: Path) -> None:
    """The values are those of the rows, with local times in ISO 8601."""
    document = json.loads(cli("outbox", "list", "--json")[1])
    known = rows(outbox)
    (endpoint,) = document["endpoints"]
    oldest_at = endpoint.pop("oldest_at")
    assert endpoint == {"endpoint": "default", "waiting": 1, "discarded": 2, "is_known": False}
    assert oldest_at == document["deliveries"][2]["submitted_at"]
    assert (document["outbox"], document["in_journals"]) == (str(outbox), 0)
    gone, _, later = document["deliveries"]
    assert gone | {"submitted_at": "", "discarded_at": ""} == {
        "webhook_id": known["gone"].webhook_id,
        "step_id": "gone",
        "outcome": "success",
        "endpoint": "default",
        "state": "discarded",
        "attempts": 1,
        "last_error": "410",
        "submitted_at": "",
        "due_at": None,
        "leased_until": None,
        "discarded_at": "",
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", later["due_at"])
    assert later["discarded_at"] is None


def test_list_says_how_many_more_there_are(cli: Cli, outbox: Path) -> None:
    """Below the limit, a line says how many deliveries are not shown."""
    assert outbox.exists()
    _, output, _ = cli("outbox", "list", "--limit", "1")
    assert output.endswith("\nand 2 more; to see them, use filters, or a higher --limit\n")


def test_list_names_endpoints_that_the_settings_do_not_know(cli: Cli, outbox: Path) -> None:
    """Rows of an endpoint that is not configured here are said to be left alone."""
    assert outbox.exists()
    _, output, _ = cli("outbox", "list", WEBHOOK="https://one.example/ https://two.example/")
    lines = squeezed(output)
    assert re.fullmatch("default 1 .* 2 not in the settings here: its deliveries are left alone", lines[3])


def test_list_of_an_empty_outbox(cli: Cli, outbox: Path) -> None:
    """Without rows there is neither an endpoint nor a delivery, and the exit status is 0."""
    with sqlite3.connect(outbox) as database:
        database.execute("DELETE FROM delivery")
    database.close()
    status, output, _ = cli("outbox", "list")
    assert (status, [line for line in squeezed(output)[1:] if line]) == (0, ["endpoint waiting oldest discarded"])


def test_list_counts_what_dead_processes_left_in_journals(cli: Cli, outbox: Path) -> None:
    """Their steps are counted, for all endpoints, and stay where they are; those of other outboxes are not counted."""
    journals = [
        die_with_journal(outbox, "left-1", "left-2"),
        die_with_journal(outbox, "left-3", endpoint="other"),
        die_with_journal(outbox.with_name("steps.db.old"), "old"),
    ]
    before = [journal.read_bytes() for journal in journals]
    assert json.loads(cli("outbox", "list", "--json")[1])["in_journals"] == 3
    sentence = "3 steps of processes that have ended wait in journals beside it, for the next process, or for:"
    assert sentence in cli("outbox", "list")[1]
    assert [journal.read_bytes() for journal in journals] == before


def test_list_counts_no_journals_that_are_in_use(cli: Cli, outbox: Path) -> None:
    """The steps of a process that is alive are its own; once it has ended, they are counted."""
    with living_journal(outbox, "left"):
        assert json.loads(cli("outbox", "list", "--json")[1])["in_journals"] == 0
    assert json.loads(cli("outbox", "list", "--json")[1])["in_journals"] == 1


def test_list_counts_no_journals_of_its_own_process(cli: Cli, step_receiver: ScriptedReceiver, tmp_path: Path) -> None:
    """They are not opened, which would end the lock by which others see that their owner is alive."""
    path = tmp_path / "steps.db"
    with support.pipeline(step_receiver.url, outbox=path) as hooked:
        hooked.end_step()
        wait_for_rows(path, lambda found: not found)
        assert json.loads(cli("outbox", "list", "--json", OUTBOX=str(path))[1])["in_journals"] == 0
        (journal,) = tmp_path.glob("*.journal")
        refused = subprocess.run(
            [sys.executable, "-c", _LOCK, str(journal)], capture_output=True, text=True, check=False
        )
        assert "BlockingIOError" in refused.stderr


def test_list_counts_no_files_that_are_no_whole_journals(cli: Cli, outbox: Path) -> None:
    """One that its owner is making, one that was cut short, one that is gone when it is opened."""
    journal = die_with_journal(outbox, "left")
    for name, content in (("new", b"\0" * 100), ("short", journal.read_bytes()[:100])):
        (outbox.parent / f"{outbox.name}.00000000.{name}.journal").write_bytes(content)
    (outbox.parent / f"{outbox.name}.00000000.gone.journal").symlink_to("nothing")
    assert json.loads(cli("outbox", "list", "--json")[1])["in_journals"] == 1


def test_list_shows_what_is_in_flight(cli: Cli, step_receiver: ScriptedReceiver, tmp_path: Path) -> None:
    """While a process makes an attempt, its delivery is leased, without an error. The process goes on undisturbed."""
    path = tmp_path / "steps.db"
    step_receiver.answers(Answer(delay=3.0))
    with support.pipeline(step_receiver.url, outbox=path) as hooked:
        hooked.tracer.start_span("step", attributes={"step_id": "in-flight"}).end()
        step_receiver.wait_for(1)
        wait_for_rows(path, lambda found: any(row.is_leased for row in found.values()))
        (found,) = json.loads(cli("outbox", "list", "--state", "leased", "--json", OUTBOX=str(path))[1])["deliveries"]
        output = cli("outbox", "list")[1]
        wait_for_rows(path, lambda found: not found)
    assert (found["step_id"], found["attempts"], found["last_error"], found["due_at"]) == ("in-flight", 0, None, None)
    assert found["leased_until"] > found["submitted_at"]
    assert re.fullmatch(r"leased in-flight success default 0 \d s", squeezed(output)[-1])


def test_a_step_id_cannot_control_the_terminal(cli: Cli, step_receiver: ScriptedReceiver, tmp_path: Path) -> None:
    """Control characters are escaped in tables and lines, and markup is shown as it is. JSON has the id as it was."""
    path, step_id = tmp_path / "steps.db", "\x1b[2J[red]\nsteps\udcff"
    step_receiver.answers(410)
    with support.pipeline(step_receiver.url, outbox=path) as hooked:
        hooked.tracer.start_span("step", attributes={"step_id": step_id}).end()
        (row,) = wait_for_rows(path, lambda found: any(row.is_discarded for row in found.values())).values()
    listed = cli("outbox", "list", OUTBOX=str(path))[1]
    shown = cli("outbox", "show", row.webhook_id)[1]
    assert r"\x1b[2J[red]\nsteps" in listed
    assert r"\x1b[2J[red]\nsteps" in shown
    assert "\x1b" not in listed + shown
    (found,) = json.loads(cli("outbox", "show", "--json", step_id)[1])["deliveries"]
    assert found["step_id"] == step_id


# show


def test_show(cli: Cli, outbox: Path) -> None:
    """`show` has a line for each value, with trace, resource and times."""
    status, output, errors = cli("outbox", "show", "gone")
    assert (status, errors) == (0, "")
    lines = squeezed(re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+[+-]\d\d:\d\d", "<time>", output))
    ids = {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in lines if line.startswith(("trace", "span"))}
    assert [line for line in lines if not line.startswith(("trace", "span"))] == [
        f"webhook id {rows(outbox)['gone'].webhook_id}",
        "step id gone",
        "outcome success",
        "endpoint default",
        "state discarded",
        "attempts 1",
        "last error 410",
        "submitted at <time>",
        "discarded at <time>",
        "name step",
        "started at <time>",
        "ended at <time>",
        "resource service.name=tests",
        "",
    ]
    assert re.fullmatch("[0-9a-f]{32}", ids["trace id"])
    assert re.fullmatch("[0-9a-f]{16}", ids["span id"])


@pytest.mark.parametrize("by", ["step id", "webhook id"])
def test_show_as_json(cli: Cli, outbox: Path, by: str) -> None:
    """A delivery is found by its step id and by its webhook id; JSON has all its values."""
    row = rows(outbox)["later"]
    status, output, _ = cli("outbox", "show", "--json", "later" if by == "step id" else row.webhook_id)
    (found,) = json.loads(output)["deliveries"]
    assert status == 0
    assert (found["webhook_id"], found["state"], found["name"]) == (row.webhook_id, "waiting", "step")
    assert (found["body"], found["details"], found["resource"]) == (
        '{"step_id": "later"}',
        {},
        {"service.name": "tests"},
    )
    assert found["started_at"] <= found["ended_at"]
    assert found["submitted_at"] < found["due_at"]


def test_show_of_an_unknown_id(cli: Cli, outbox: Path) -> None:
    """The exit status is 1, and a sentence says why there may be none; JSON has an empty list."""
    assert cli("outbox", "show", "none") == (1, "", "No delivery has this id. It is gone once it is delivered.\n")
    status, output, errors = cli("outbox", "show", "none", "--json")
    assert (status, json.loads(output), errors) == (1, {"outbox": str(outbox), "deliveries": []}, "")


# redeliver


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("gone", ["gone"]),
        ("gone aborted later", ["gone", "aborted"]),
        ("--outcome failed", ["aborted"]),
        ("--error 410", ["gone"]),
        ("--endpoint default --older 0s --younger 1d", ["gone", "aborted"]),
        ("--all", ["gone", "aborted"]),
    ],
)
def test_redeliver(cli: Cli, outbox: Path, arguments: str, expected: list[str]) -> None:
    """Discarded deliveries are due again under their webhook ids, without attempts, and with all their time."""
    before, began = rows(outbox), time.time()
    make_older(outbox, "gone", 1_000_000 if "--younger" not in arguments else 0)
    status, output, errors = cli("outbox", "redeliver", *arguments.split())
    said = "1 delivery is due again.\n" if len(expected) == 1 else "2 deliveries are due again.\n"
    assert (status, output, errors) == (0, said, "")
    after = rows(outbox)
    changed = {step_id: row for step_id, row in after.items() if row.attempts == 0}
    assert list(changed) == expected
    for step_id, row in changed.items():
        assert began <= row.submitted_at == row.due_at <= time.time()
        assert row == before[step_id]._replace(
            attempts=0, submitted_at=row.submitted_at, due_at=row.due_at, is_discarded=False
        )
    assert after["later"] == before["later"]


def test_redeliver_changes_many_rows_in_several_transactions(cli: Cli, outbox: Path) -> None:
    """All discarded rows are due again, however many there are."""
    with sqlite3.connect(outbox) as database:
        database.execute(_COPIES)
    database.close()
    status, output, _ = cli("outbox", "redeliver", "--error", "410", "--json")
    assert (status, json.loads(output)) == (0, {"redelivered": 1201})
    (endpoint,) = json.loads(cli("outbox", "list", "--json")[1])["endpoints"]
    assert (endpoint["waiting"], endpoint["discarded"]) == (1202, 1)


def test_a_running_process_delivers_what_is_redelivered(
    cli: Cli, step_receiver: ScriptedReceiver, tmp_path: Path
) -> None:
    """Under the same webhook id, when it next looks at the file."""
    path = tmp_path / "steps.db"
    step_receiver.answers(410)
    with support.pipeline(step_receiver.url, outbox=path) as hooked:
        hooked.tracer.start_span("step", attributes={"step_id": "gone"}).end()
        wait_for_rows(path, lambda found: any(row.is_discarded for row in found.values()))
        assert cli("outbox", "redeliver", "gone", OUTBOX=str(path))[0] == 0
        hooked.tracer.start_span("step", attributes={"step_id": "next"}).end()
        refused, *delivered = step_receiver.wait_for(3)
    assert sorted(webhook.step_id for webhook in delivered) == ["gone", "next"]
    (again,) = [webhook for webhook in delivered if webhook.step_id == "gone"]
    assert (again.headers["webhook-id"], again.body) == (refused.headers["webhook-id"], refused.body)
    assert rows(path) == {}


@pytest.mark.parametrize("command", ["redeliver", "purge"])
@pytest.mark.parametrize("arguments", ["", "--all gone", "--all --error 410"])
def test_what_is_meant_has_to_be_said(cli: Cli, outbox: Path, command: str, arguments: str) -> None:
    """Neither everything by default, nor everything and a filter."""
    before = rows(outbox)
    status, output, errors = cli("outbox", command, *arguments.split())
    assert (status, output) == (2, "")
    assert errors == "expected ids or filters, or --all for all discarded deliveries\n"
    assert rows(outbox) == before


@pytest.mark.parametrize("command", ["redeliver", "purge"])
@pytest.mark.parametrize("which", ["later", "none"])
def test_nothing_matches(cli: Cli, outbox: Path, command: str, which: str) -> None:
    """A delivery that waits is not meant. The exit status is 1, without a question."""
    before = rows(outbox)
    assert cli("outbox", command, which) == (1, "No discarded delivery matches.\n", "")
    assert rows(outbox) == before


# purge


@pytest.mark.parametrize(
    ("arguments", "left"),
    [("gone", ["aborted", "later"]), ("--outcome failed", ["gone", "later"]), ("--all", ["later"])],
)
def test_purge(cli: Cli, outbox: Path, arguments: str, left: list[str]) -> None:
    """Discarded deliveries are deleted without a question, with `--yes`; what waits stays."""
    status, output, errors = cli("outbox", "purge", "--yes", *arguments.split())
    said = "1 delivery is deleted.\n" if len(left) == 2 else "2 deliveries are deleted.\n"
    assert (status, output, errors) == (0, said, "")
    assert list(rows(outbox)) == left


@pytest.mark.parametrize(("answer", "left"), [("y\n", ["later"]), ("n\n", ["gone", "aborted", "later"]), ("", None)])
def test_purge_asks(
    cli: Cli, outbox: Path, monkeypatch: pytest.MonkeyPatch, answer: str, left: list[str] | None
) -> None:
    """Without `--yes` it asks on stderr, and deletes nothing after "no", and where nobody can answer."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    status, output, errors = cli("outbox", "purge", "--all", "--json")
    assert "Delete 2 discarded deliveries for ever?" in errors
    assert list(rows(outbox)) == (left or ["gone", "aborted", "later"])
    assert (status, output.strip()) == ((0, '{\n  "purged": 2\n}') if answer == "y\n" else (1, ""))


# The file


@pytest.mark.parametrize("command", ["list", "show gone", "redeliver --all", "purge --all", "deliver"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be opened: No such file or directory"),
        (b"", "is empty: expected a file that an application has used as its outbox"),
        (b"no database" * 1000, "cannot be used: file is not a database"),
    ],
    ids=["missing", "empty", "text"],
)
def test_a_file_that_is_no_outbox(cli: Cli, tmp_path: Path, command: str, content: bytes | None, expected: str) -> None:
    """The exit status is 3, a sentence says why, and the file is left as it is: it is not made, either."""
    path = tmp_path / "steps.db"
    if content is not None:
        path.write_bytes(content)
    given = ("outbox", *command.split(), "--outbox", str(path))
    assert cli(*given, WEBHOOK="https://example.com/") == (3, "", f"the outbox {path} {expected}\n")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if content is None else [content])


def test_a_file_of_a_newer_version(cli: Cli, outbox: Path) -> None:
    """It is refused, with what to do, and not changed."""
    with sqlite3.connect(outbox) as database:
        database.execute("PRAGMA user_version = 1000")
    database.close()
    status, _, errors = cli("outbox", "redeliver", "--all")
    assert status == 3
    assert errors.startswith(f"the outbox {outbox} was written by a newer version of otel-step-hook ")
    assert all(row.attempts == 1 for row in rows(outbox).values())


def test_a_missing_file_beside_journals(cli: Cli, tmp_path: Path) -> None:
    """When a process was killed before it made the file, the error says where its steps are, and what delivers them."""
    path = tmp_path / "steps.db"
    die_with_journal(path, "left")
    status, _, errors = cli("outbox", "list", OUTBOX=str(path))
    assert status == 3
    assert errors == (
        f"the outbox {path} cannot be opened: No such file or directory; 1 step waits in journals beside it, "
        "for the next process, or for: otel-step-hook outbox deliver\n"
    )
    assert not path.exists()


def test_no_outbox_is_named(cli: Cli) -> None:
    """Without a path, the exit status is 2, and the error says how to give one."""
    status, _, errors = cli("outbox", "list")
    assert (status, errors) == (
        2,
        "STEP_COMPLETE_OUTBOX is not set; expected it, or --outbox with the path of the file\n",
    )


@pytest.mark.parametrize("age", ["10", "m", "-1m", "1 w", "1h30m"])
def test_an_age_that_is_none(cli: Cli, outbox: Path, age: str) -> None:
    """It is wrong usage, and the error shows an example."""
    assert outbox.exists()
    status, _, errors = cli("outbox", "list", f"--older={age}")
    assert status == 2
    assert "such as 10m" in " ".join(errors.replace("│", " ").split())


def test_the_outbox_is_that_of_another_directory(cli: Cli, outbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is one from where the command runs, and `--outbox` comes before the variable."""
    monkeypatch.chdir(outbox.parent)
    status, output, _ = cli("outbox", "list", "--json", "--outbox", "steps.db", OUTBOX="other.db")
    assert (status, json.loads(output)["outbox"]) == (0, os.fspath(outbox))
