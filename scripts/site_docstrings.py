"""Docstrings as Markdown: what is written for Sphinx's readers becomes links, code and tables.

As an extension of griffe it does so with every docstring that mkdocstrings shows.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

from griffe import Extension, Object
from site_tables import RULE, to_table

MODULES = (
    "tinker_recovery.jobs",
    "tinker_recovery.testing",
    "tinker_recovery.telemetry",
    "tinker_recovery.supervision",
    "tinker_recovery",
)
"""Where the public names are."""

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc|obj):`(~?)([^`]+)`")


def to_markdown(text: str) -> str:
    """A docstring's text as Markdown."""
    return "\n".join(_converted(text.splitlines()))


def _converted(lines: list[str]) -> Iterator[str]:
    at = 0
    while at < len(lines):
        line = lines[at]
        if RULE.fullmatch(line):
            end = at + 1
            while end < len(lines) and lines[end].strip():
                end += 1
            yield from map(_with_links, to_table(lines[at:end]))
            at = end
        elif line.endswith("::"):
            if line.strip() != "::":
                yield _with_links(line[:-1])
            at += 1
            end = at
            while end < len(lines) and _belongs(lines[end], line):
                end += 1
            yield from _code(lines[at:end])
            at = end
        else:
            yield _with_links(line)
            at += 1


def _belongs(line: str, introduction: str) -> bool:
    return not line.strip() or _depth(line) > _depth(introduction)


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _code(block: list[str]) -> Iterator[str]:
    while block and not block[0].strip():
        block = block[1:]
    while block and not block[-1].strip():
        block = block[:-1]
    code = textwrap.dedent("\n".join(block))
    try:
        compile(code, "docstring", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
        kind = "python"
    except SyntaxError:
        kind = "text"
    indent = max(0, min(map(_depth, filter(str.strip, block)), default=4) - 4)
    yield ""
    yield from _fenced([" " * indent + line for line in code.splitlines()], kind)
    yield ""


def _fenced(block: list[str], kind: str) -> Iterator[str]:
    indent = " " * min(map(_depth, filter(str.strip, block)), default=0)
    yield f"{indent}```{kind}"
    yield from block
    yield f"{indent}```"


def _with_links(line: str) -> str:
    return _ROLE.sub(_link, line)


def _link(found: re.Match[str]) -> str:
    target = found[2]
    shown = target.rpartition(".")[2] if found[1] else target
    target = _public().get(target, target)
    # Optional: what has no page of its own is shown as code.
    return f'<autoref optional identifier="{target}"><code>{shown}</code></autoref>'


@cache
def _public() -> dict[str, str]:
    """The whole name of each public one, which docstrings near it leave out."""
    return {
        name: f"{module}.{name}" for module in MODULES for name in import_module(module).__all__
    }


class Markdown(Extension):
    """Rewrites every docstring once it is loaded."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite its docstring."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
