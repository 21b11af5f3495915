"""Docstrings as Markdown: what is written for Sphinx's readers becomes links and code.

As an extension of griffe it does so with every docstring that mkdocstrings shows.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc|obj):`(~?)([^`]+)`")
_TABLE_RULE = re.compile(r"^=+(?: {2,}=+)+$")


def _link(found: re.Match[str]) -> str:
    target = found[2]
    shown = target.rpartition(".")[2] if found[1] else target
    # Optional: a target that has no page is shown as code.
    return f'<autoref optional identifier="{target}"><code>{shown}</code></autoref>'


def to_markdown(text: str) -> str:
    """A docstring's text as Markdown."""
    lines: list[str] = []
    in_table = False
    rules = 0
    for line in text.splitlines():
        bare = line.strip()
        indent = line[: len(line) - len(line.lstrip())]
        if _TABLE_RULE.fullmatch(bare):
            if not in_table:
                in_table, rules = True, 0
                lines.append(f"{indent}```text")
            rules += 1
            lines.append(line)
            continue
        if in_table:
            if not bare:
                in_table = False
                lines += [f"{lines[-1][: len(lines[-1]) - len(lines[-1].lstrip())]}```", ""]
            else:
                lines.append(line)
            continue
        if bare == "::":
            continue
        lines.append(_ROLE.sub(_link, re.sub(r"::$", ":", line)))
    if in_table:
        lines.append("```")
    return "\n".join(lines)


class Markdown(Extension):
    """Reads every docstring once it is loaded."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite its docstring."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
