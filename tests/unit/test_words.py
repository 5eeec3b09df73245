"""The project's language: names and docstrings are in the field's terms, without a private vocabulary.

The words are those that readers had to decode. A name from elsewhere, such as a method that a base class calls, is
listed with its owner.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("otel_step_hook", "tests", "benchmarks", "docs", "examples")
REFUSED_IN_NAMES = frozenset(
    {
        *(
            "tell",
            "tells",
            "told",
            "wish",
            "bell",
            "rope",
            "word",
            "words",
            "namesake",
            "trouble",
            "whoever",
            "patience",
        ),
        *("helper", "helpers", "util", "utils", "manager", "managers", "handle", "handles"),
    }
)
OTHERS_NAMES = {
    "handle_error": "socketserver.BaseServer",
    "handle_async_request": "httpx.AsyncBaseTransport",
    "handle": "a workflow's handle, of Temporal and DBOS",
    "Handle": "the same",
    "_MANAGERS": "AutoGen's managers of group chats",
    "UTIL_GENAI": "the package opentelemetry-util-genai",
}
REFUSED_IN_PROSE = re.compile(
    r"\b(tell|tells|told|telling|whoever|namesakes?|last word|lets? go( of)?|what it has|those (of )?which|its like"
    r"|wish(es)?|trouble|patience|goes the way)\b",
    re.IGNORECASE,
)
THIS_FILE = Path(__file__).name


def _sources() -> list[Path]:
    """Every Python file of ours; recordings and what is installed into the checkout are none."""
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) if path.name != THIS_FILE]


def _names(tree: ast.AST) -> Iterator[str]:
    """The names that a module defines: of classes, functions, arguments, variables and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def _parts(name: str) -> set[str]:
    """``{"handle", "error"}`` of ``handle_error`` and of ``HandleError``."""
    return {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def _docstrings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def _comments(source: str) -> Iterator[str]:
    yield from re.findall(r"(?:^|\s)#(?!\s*(?:type: ignore|noqa|pragma))(.*)$", source, re.MULTILINE)


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_written_in_the_fields_terms(path: Path) -> None:
    """No name, docstring or comment of it uses a refused word."""
    source = path.read_text()
    tree = ast.parse(source)
    names = {name for name in _names(tree) if name not in OTHERS_NAMES and _parts(name) & REFUSED_IN_NAMES}
    prose = [text for text in (*_docstrings(tree), *_comments(source)) if REFUSED_IN_PROSE.search(text)]
    assert (names, prose) == (set(), [])


def test_the_pages_are_written_in_the_fields_terms() -> None:
    """No page for readers uses a refused word."""
    pages = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])  # none beside an installed wheel
    lines = {path.name: list(filter(REFUSED_IN_PROSE.search, path.read_text().splitlines())) for path in pages}
    assert {name: found for name, found in lines.items() if found} == {}


def test_the_search_finds_what_it_looks_for() -> None:
    """A name, a docstring and a comment with a refused word are found, however the name is written."""
    source = 'class ToldStep:\n    """Whoever reads this."""\n    def tell_all(self, bell=1): ...  # its namesake\n'
    tree = ast.parse(source)
    assert {name for name in _names(tree) if _parts(name) & REFUSED_IN_NAMES} == {"ToldStep", "tell_all", "bell"}
    assert [text for text in _docstrings(tree) if REFUSED_IN_PROSE.search(text)] == ["Whoever reads this."]
    assert [text for text in _comments(source) if REFUSED_IN_PROSE.search(text)] == [" its namesake"]
