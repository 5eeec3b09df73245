"""The code blocks of README, CONTRIBUTING and the pages in ``docs/``, each claimed by the test of its results."""

import functools
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 100.0  # seconds a block may take
KEY = "the-key-of-this-test"

_claimed: "set[Block]" = set()


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its page, the line that it begins after, its language, and what stands in it."""

    page: str
    line: int
    language: str
    text: str

    def at(self, addresses: Mapping[str, str]) -> "Block":
        """The same block with other addresses, such as those of receivers on this machine."""
        text = self.text
        for shown, real in addresses.items():
            assert shown in text, f"{self.page}:{self.line} does not hold {shown}"
            text = text.replace(shown, real)
        return replace(self, text=text)

    def execute(self, namespace: dict[str, object] | None = None) -> dict[str, object]:
        """Execute Python code, after that of earlier blocks in *namespace*; tracebacks show the lines of the page."""
        names: dict[str, object] = {"__name__": "documentation"} if namespace is None else namespace
        exec(compile("\n" * self.line + self.text, self.page, "exec"), names)  # noqa: S102 -- it is ours
        return names


def page(name: str) -> str:
    """The text of the page *name*, a path from the top of the checkout."""
    return (ROOT / name).read_text()


@functools.cache
def blocks() -> tuple[Block, ...]:
    """Every fenced block of every page, but for those that are directives of MyST."""
    files = [ROOT / "README.md", *ROOT.glob("CONTRIBUTING.md"), *sorted((ROOT / "docs").glob("*.md"))]
    return tuple(
        Block(str(file.relative_to(ROOT)), token.map[0] + 1, token.info, token.content)
        for file in files
        for token in MarkdownIt().parse(file.read_text())
        if token.type == "fence" and token.map is not None and not token.info.startswith("{")
    )


def claim(name: str, piece: str) -> Block:
    """The one block of the page *name* that holds *piece*, for a test of its results."""
    found = [block for block in blocks() if block.page == name and piece in block.text]
    if len(found) != 1:
        raise LookupError(f"{len(found)} blocks of {name} hold {piece!r}; expected one")
    _claimed.update(found)
    return found[0]


def unclaimed() -> list[Block]:
    """The blocks that no test has claimed so far."""
    return [block for block in blocks() if block not in _claimed]


def bash(script: str, environment: Mapping[str, str] | None = None, *, directory: Path = ROOT) -> str:
    """What *script* prints, run as a person would paste it, in *directory* and with these variables; it has to succeed.

    *directory* is by default the top of the checkout. What it leaves in the background is ended.
    """
    shell = ["bash", "-euo", "pipefail", "-c", f"trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{script}"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, **(environment or {})}
    done = subprocess.run(
        shell, cwd=directory, env=variables, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def new_environment(directory: Path, *packages: str) -> str:
    """Make an environment with this package and *packages* in *directory*, and return the path of its Python."""
    uv, python = str(Path(sys.executable).with_name("uv")), str(directory / "bin" / "python")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, directory], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", python, "--editable", str(ROOT), *packages]
    subprocess.run(install, check=True)
    return python
