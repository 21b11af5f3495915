"""The documents as they are written: their pages, blocks of code, and commands."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from site_docstrings import to_markdown

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = "<!-- run -->"
"""Stands above a block of Python that a test runs."""

RUN_IN_AN_ATTEMPT = "<!-- run in an attempt -->"
"""The same, of a piece of a loop's body."""

_FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>```+) *(?P<kind>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)
_SPAN = re.compile(r"(?<!`)`(tinker-recovery [^`]+)`(?!`)")


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code."""

    page: Path
    line: int
    kind: str
    code: str
    marker: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks() -> Iterator[Block]:
    """Every block of every page."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in _FENCE.finditer(text):
            above = text[: found.start()].rstrip("\n").rpartition("\n")[2].strip()
            line = text.count("\n", 0, found.start()) + 1
            code = textwrap.dedent(found["code"])
            marker = above if above in {RUN, RUN_IN_AN_ATTEMPT} else ""
            yield Block(page, line, found["kind"], code, marker)


def docstring_blocks() -> Iterator[Block]:
    """Every example in a docstring of the package that is Python."""
    for file in sorted((ROOT / "tinker_recovery").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = to_markdown(ast.get_docstring(node) or "")
                line = getattr(node, "lineno", 1)
                for found in _FENCE.finditer(text):
                    yield Block(file, line, found["kind"], textwrap.dedent(found["code"]), "")


def spans() -> Iterator[tuple[str, str]]:
    """Every command that is written inside a sentence or a table, and where."""
    for page in PAGES:
        text = _FENCE.sub("", page.read_text(encoding="utf-8"))
        for found in _SPAN.finditer(text):
            yield str(page.relative_to(ROOT)), " ".join(found[1].split())
