"""Records as lines: what fits into a terminal, and plain lines for everything else that reads them.

In a terminal, a column with one and the same value is said once, below; what does not fit beside
the rest stands on a line of its own under its record. Elsewhere (a pipe, a file) a record is one
line, however long, in columns two blanks apart, with nothing left out or shortened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_GAP = 2
_INDENT = 4
_MOST_PADDED = 48
"""One long name must not push the columns of all other lines away."""


class Cell(NamedTuple):
    """A value and its style; outside of a terminal, ``plain`` stands for it if that is given."""

    text: str
    style: str = ""
    plain: str | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes:
        name: Its heading.
        rank: Which column leaves the line first if there is no room for all: the one of the highest
            rank. Of rank 0, none does.
        right: Whether it is set flush right.
        once: Whether a value that all records have which have one is said once below them.
        sparse: Whether it is left out where no record has a value.
    """

    name: str
    rank: int = 1
    right: bool = False
    once: bool = False
    sparse: bool = False


Record = Sequence[Cell | str]

_NOTHING = {"", "-"}


def show_records(console: Console, columns: Sequence[Column], records: Sequence[Record]) -> None:
    """Print records, with a line of headings; nothing if there are none."""
    if not records:
        return
    rows = [cells_of(record, plainly=not console.is_terminal) for record in records]
    if not console.is_terminal:
        for plainly in _plain_lines(columns, rows):
            console.print(plainly, soft_wrap=True)
        return
    said, shown = [], list(range(len(columns)))
    for index, column in enumerate(columns):
        values = {row[index].text for row in rows} - _NOTHING
        empty = column.sparse and not values - {"0"}
        if empty or (column.once and len(values) < min(2, len(rows))):
            shown.remove(index)
            said += [f"{column.name} {value}" for value in values]
    widths = widths_of(columns, rows)
    left = fitting(columns, widths, shown, console.width)
    below = [each for each in shown if each not in left]
    for number, line in enumerate(lines_of(columns, rows, widths, left)):
        console.print(line, soft_wrap=True)
        for under in _below(columns, rows[number - 1], below, console.width) if number else ():
            console.print(under, soft_wrap=True)
    if said:
        console.print(", ".join(said), style="dim", soft_wrap=True)


def cells_of(record: Record, *, plainly: bool = False) -> list[Cell]:
    """The cells of a record, each on one line and with control characters as their escapes."""
    from tinker_recovery.report import plain

    cells = [Cell(each) if isinstance(each, str) else each for each in record]
    return [
        Cell(plain(each.plain if plainly and each.plain is not None else each.text), each.style)
        for each in cells
    ]


def _plain_lines(columns: Sequence[Column], rows: list[list[Cell]]) -> Iterator[str]:
    lines = [[each.name for each in columns], *([each.text or "-" for each in row] for row in rows)]
    lengths = [sorted(map(len, column)) for column in zip(*lines, strict=True)]
    widths = [min(each[-1], max(_MOST_PADDED, each[len(each) // 2])) for each in lengths]
    for line in lines:
        padded = [
            each.rjust(width) if column.right else each.ljust(width)
            for each, width, column in zip(line, widths, columns, strict=True)
        ]
        yield "  ".join(padded).rstrip()


def widths_of(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> list[int]:
    """How wide each column is."""
    from rich.cells import cell_len

    return [
        max(cell_len(column.name), *(cell_len(row[index].text) for row in rows), 0)
        for index, column in enumerate(columns)
    ]


def fitting(
    columns: Sequence[Column], widths: Sequence[int], shown: Sequence[int], width: int
) -> list[int]:
    """Which of the ``shown`` columns fit side by side; those of rank 0 in any case."""
    left = list(shown)
    while sum(widths[each] + _GAP for each in left) - _GAP > width:
        rank, last = max((columns[each].rank, place) for place, each in enumerate(left))
        if not rank:
            break
        del left[last]
    return left


def lines_of(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    widths: Sequence[int],
    shown: Sequence[int],
) -> Iterator[Text]:
    """The line of headings, and one for each record."""
    from rich.cells import cell_len
    from rich.text import Text

    for row in ([Cell(each.name, "bold") for each in columns], *rows):
        line = Text(no_wrap=True)
        for index in shown:
            cell = row[index]
            blanks = " " * (widths[index] - cell_len(cell.text))
            line.append(blanks if columns[index].right else "").append(cell.text, cell.style)
            if index != shown[-1]:
                line.append(("" if columns[index].right else blanks) + " " * _GAP)
        yield line


def _below(
    columns: Sequence[Column], row: list[Cell], below: Sequence[int], width: int
) -> list[Text]:
    """What did not fit, with its headings, on as many lines as it takes; no value is split."""
    from rich.cells import cell_len
    from rich.text import Text

    lines: list[Text] = []
    used = width
    for index in below:
        cell = row[index]
        if cell.text in _NOTHING:
            continue
        name = f"{columns[index].name} "
        needed = cell_len(name) + cell_len(cell.text)
        if used + _GAP + needed > width:
            lines.append(Text(" " * _INDENT))
            used = _INDENT
        else:
            lines[-1].append(" " * _GAP)
            used += _GAP
        lines[-1].append(name, "dim").append(cell.text, cell.style)
        used += needed
    return lines
