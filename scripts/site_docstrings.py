"""Docstrings as Markdown: what is written for Sphinx's readers becomes links, code and tables.

As an extension of griffe it does so with every docstring that mkdocstrings shows.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc|obj):`(~?)([^`]+)`")
_RULE = re.compile(r"=+(?: +=+)+")


def to_markdown(text: str) -> str:
    """A docstring's text as Markdown."""
    return "\n".join(_converted(text.splitlines()))


def _converted(lines: list[str]) -> Iterator[str]:
    at = 0
    while at < len(lines):
        line = lines[at]
        if _RULE.fullmatch(line.strip()):
            # A table, up to its last rule. Its columns are lined up, so it is shown as it is.
            end = at + 1
            while end < len(lines) and lines[end].strip():
                end += 1
            yield from _fenced(lines[at:end], "text")
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
    # Optional: what has no page of its own is shown as code.
    return f'<autoref optional identifier="{target}"><code>{shown}</code></autoref>'


class Markdown(Extension):
    """Rewrites every docstring once it is loaded."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite its docstring."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
