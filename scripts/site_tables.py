"""Tables of docstrings, whose columns are ruled by equals signs, as tables of Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator

RULE = re.compile(r" *=+(?: +=+)+")


def to_table(lines: list[str]) -> Iterator[str]:
    """A table, from its first rule to its last.

    A line without a first cell continues the row above it, as does one of a first cell alone behind
    a comma. A text that runs across columns is the cell it begins in.
    """
    columns = [found.span() for found in re.finditer("=+", lines[0])]
    rows: list[list[str]] = []
    for line in lines:
        if RULE.fullmatch(line):
            continue
        cells = _cells(line, columns)
        if rows and (not cells[0] or (not any(cells[1:]) and rows[-1][0].endswith(","))):
            rows[-1] = [
                f"{above} {below}".strip() for above, below in zip(rows[-1], cells, strict=True)
            ]
        else:
            rows.append(cells)
    indent = " " * columns[0][0]
    has_head = sum(map(bool, map(RULE.fullmatch, lines))) > 2  # noqa: PLR2004 - above and below it
    head = rows.pop(0) if has_head else [""] * len(columns)
    yield ""
    yield _row(indent, head)
    yield _row(indent, ["---"] * len(columns))
    for row in rows:
        yield _row(indent, row)
    yield ""


def _cells(line: str, columns: list[tuple[int, int]]) -> list[str]:
    cells = [""] * len(columns)
    at = 0
    while at < len(columns):
        last = at
        # Nothing separates it from the next column: it runs on.
        while last + 1 < len(columns) and line[columns[last + 1][0] - 1 :][:1].strip():
            last += 1
        end = columns[last + 1][0] if last + 1 < len(columns) else len(line)
        cells[at] = line[columns[at][0] : end].strip()
        at = last + 1
    return cells


def _row(indent: str, cells: list[str]) -> str:
    texts = (cell.replace("|", "\\|").replace("``", "`") for cell in cells)
    return f"{indent}| {' | '.join(texts)} |"
