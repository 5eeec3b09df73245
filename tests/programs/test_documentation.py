"""The documentation as a whole: every block is tested; its commands, tables and picture are what the code says."""

import importlib
import re
from collections import defaultdict
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree as ET

from accuracy import outcomes_of, score, verdicts
from corpus_replay import records
from documentation import ROOT, bash, claim, page, unclaimed
from rich.console import Console

from otel_step_hook.cli.demo import run
from otel_step_hook.steps.frameworks import PROFILES

_UNNAMED = {"__init__", "__main__", "errors", "version"}  # modules that their names explain
_OTHERS = {"check", "send"}  # commands that the map names beside modules
_DEMO = claim("README.md", "make demo\nmake test")


def test_each_block_is_tested() -> None:
    """A block that no test claims fails here: its commands or its code would go unexecuted."""
    for file in sorted(Path(__file__).parent.glob("test_documentation_*.py")):
        importlib.import_module(file.stem)
    assert [f"{block.page}:{block.line} {block.language}" for block in unclaimed()] == []


def test_the_demo_shows_deliveries() -> None:
    """The first command shows that each step was delivered, one of them at its third attempt, and the trace."""
    output = bash(_DEMO.text.replace("make test\n", ""))  # which is what runs this test
    assert "step_hook.deliver" in output
    assert "6 steps: 4 success, 1 failed, 1 cancelled. All were delivered, in 8 attempts." in output


def test_the_table_of_frameworks_has_each_profile() -> None:
    """There is a row for each row of the table of profiles, and no other."""
    table = page("docs/frameworks.md").partition("¹ Cannot")[0]
    named = re.findall(r"^\| `([\w-]+)`", table, re.MULTILINE)
    assert sorted(named) == sorted(profile.name for profile in PROFILES)


def test_the_numbers_of_accuracy_are_counted() -> None:
    """How many recorded outcomes are right is what `make accuracy` counts."""
    found = [verdict for record in records() for verdict in verdicts(record, outcomes_of(record))]
    said = re.search(r"Of the (\d+) recorded steps.* right for (\d+)\..* right for (\d+)", page("docs/delivery.md"))
    assert said is not None
    assert tuple(map(int, said.groups())) == score(found)


def test_the_map_has_each_module() -> None:
    """CONTRIBUTING names every module of the package in the row of its folder, and no module that does not exist."""
    rows = re.findall(r"^\| (`otel_step_hook/.*?) \| (.*) \|$", page("CONTRIBUTING.md"), re.MULTILINE)
    named = dict.fromkeys(("", "settings", "steps", "steps/frameworks", "delivery", "temporal", "cli"), "")
    for where, what in rows:
        folder = where.removeprefix("`otel_step_hook/").rpartition("/")[0].partition("`")[0]
        named[folder] += where if folder == "" else what
    frameworks = named.pop("steps/frameworks")
    assert "one file for each framework with code" in frameworks
    for folder, text in named.items():
        modules = {path.stem for path in (ROOT / "otel_step_hook" / folder).glob("*.py")} - _UNNAMED
        found = {name.removesuffix(".py").rpartition("/")[2] for name in re.findall(r"`([\w./]+)`", text)}
        assert modules <= found, folder
        assert {name for name in found if name.islower()} <= modules | _OTHERS, folder


def _lines(picture: Path) -> list[str]:
    """The lines of text of an SVG, without what differs from run to run: durations, in words and as bars."""
    lines: defaultdict[float, list[tuple[float, str]]] = defaultdict(list)
    for text in ET.parse(picture).iter("{http://www.w3.org/2000/svg}text"):  # noqa: S314 -- written by us
        lines[float(text.attrib["y"])].append((float(text.attrib["x"]), text.text or ""))
    whole = (" ".join(text for _, text in sorted(pieces)) for _, pieces in sorted(lines.items()))
    timeless = (re.sub(r"\d+\sms|\d+\.\d\d\ss", "…", re.sub(r"([━─])+", r"\1", line)) for line in whole)
    return [" ".join(line.split()) for line in timeless]


def test_the_picture_is_one_of_the_demo(tmp_path: Path) -> None:
    """README's picture shows the very spans and outcomes that the demo shows."""
    made = tmp_path / "trace.svg"
    assert run(Console(file=StringIO()), svg=made) == 0
    shown, expected = _lines(ROOT / "tests/readme/trace.svg"), _lines(made)
    assert len(expected) > 20
    assert shown == expected, "make it again: otel-step-hook demo --svg tests/readme/trace.svg"
