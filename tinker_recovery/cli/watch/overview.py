"""All runs at a glance: totals by state, and a line for each as far as there is room."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console, Group, RenderableType
from rich.text import Text

from tinker_recovery.cli.plot import sparkline
from tinker_recovery.cli.records import (
    Cell,
    Column,
    cells_of,
    fitting,
    lines_of,
    show_records,
    widths_of,
)
from tinker_recovery.cli.runs import job_text
from tinker_recovery.cli.states import STYLES, totals, trouble, with_quiet
from tinker_recovery.cli.watch.rows import RunRow
from tinker_recovery.cli.words import cut
from tinker_recovery.report.words import age, iso
from tinker_recovery.telemetry.text import counted

_SPARK = 12
_LEAST_EVENT = 24
"""With less room the newest event is left out."""
_LEAST_NAME = 24

_RUN = 0
_COLUMNS = (
    Column("run", 0),
    Column("state", 0),
    Column("since", 5),
    Column("step", 1, right=True),
    Column("loss", 2),
    Column("", 7),
    Column("recov.", 3, right=True),
    Column("last fault", 4),
    Column("last save", 6),
    Column("next save", 8, right=True),
    Column("recovery attempts left", 9, right=True),
    Column("job", 8, sparse=True),
)


def sorted_rows(rows: Sequence[RunRow]) -> list[RunRow]:
    """Trouble first; of one state, the order stays: the most recently active first."""
    return sorted(rows, key=lambda row: trouble(row.state))


def overview(
    rows: Sequence[RunRow], *, now: float, width: int, height: int, known: int = 0
) -> RenderableType:
    """Totals, and as many lines as there is room for; of ``known`` runs these are chosen."""
    if not rows:
        none = f"0 of {counted(known, 'run')} chosen (see --state, --named)"
        return Text(none if known else "no runs yet", "dim")
    said, shown = _totals(rows), sorted_rows(rows)
    # The totals, a blank line, the headings, what is left, and the caller's last two lines.
    room = max(3, height - 4 - 2 * _height(said, width))
    left = shown[room:] if len(shown) > room + 1 else []
    shown = shown[: len(shown) - len(left)]
    parts = [said, Text(), *_lines(shown, now, width)]
    if left:
        states = ", ".join(f"{number} {state}" for state, number in totals([r.state for r in left]))
        parts.append(Text(f"and {len(left)} more: {states} (see --state)", "dim"))
    return Group(*parts)


def _height(text: Text, width: int) -> int:
    return -(-text.cell_len // width)


def print_plainly(console: Console, rows: Sequence[RunRow]) -> None:
    """Every run on a line of its own, in full."""
    columns = [replace(each, name=each.name or "losses") for each in _COLUMNS]
    records = [_cells(row, time.time()) for row in sorted_rows(rows)]
    events = [Cell("-" if row.event is None else row.event.message) for row in sorted_rows(rows)]
    # The bars are for the eye.
    bars = next(index for index, each in enumerate(_COLUMNS) if not each.name)
    del columns[bars]
    for record in records:
        del record[bars]
    show_records(
        console,
        [*columns, Column("newest event")],
        [[*record, event] for record, event in zip(records, events, strict=True)],
    )


def _totals(rows: Sequence[RunRow]) -> Text:
    parts = [
        Text.assemble(f"{number} ", (state, STYLES.get(state, "")))
        for state, number in totals([row.state for row in rows])
    ]
    return Text(f"{counted(len(rows), 'run')}: ", "bold").append_text(Text(", ").join(parts))


def _lines(rows: Sequence[RunRow], now: float, width: int) -> list[Text]:
    cells = [cells_of(_cells(row, now)) for row in rows]
    widths = widths_of(_COLUMNS, cells)
    # Widths that change with every number would make the columns jump.
    widths = [
        max(each, _STEADY.get(column.name, 0))
        for each, column in zip(widths, _COLUMNS, strict=True)
    ]
    wanted = widths[_RUN]
    widths[_RUN] = min(wanted, _LEAST_NAME)
    jobs = any(row.job is not None for row in rows)
    shown = [n for n, column in enumerate(_COLUMNS) if jobs or not column.sparse]
    shown = fitting(_COLUMNS, widths, shown, width)
    # What is left is the name's, and then the newest event's.
    used = sum(widths[each] + 2 for each in shown) - 2
    widths[_RUN] = max(8, min(wanted, widths[_RUN] + width - used))
    used = sum(widths[each] + 2 for each in shown) - 2
    for each in cells:
        each[_RUN] = Cell(shortened(each[_RUN].text, widths[_RUN]))
    lines = list(lines_of(_COLUMNS, cells, widths, shown))
    room = width - used - 2
    if room >= _LEAST_EVENT:
        events = ["" if row.event is None else row.event.message for row in rows]
        for line, event in zip(lines, ["newest event", *events], strict=True):
            line.truncate(used, pad=True)
            said = Text(f"  {event}", "bold" if line is lines[0] else "dim")
            cut(said, room + 2)
            line.append_text(said)
    for line in lines:
        line.overflow = "crop"
    return lines


_STEADY = {"state": 10, "since": 6, "loss": 7, "step": 5, "last fault": 12, "last save": 13}


def shortened(name: str, room: int) -> str:
    """A name that is too long, without its middle: what tells it apart is mostly at its end."""
    if len(name) <= room:
        return name
    end = (room - 1) * 2 // 3
    return f"{name[: room - 1 - end]}…{name[len(name) - end :]}"


def _cells(row: RunRow, now: float) -> list[Cell]:
    saved, left = row.checkpoint_saved, row.attempts_left
    return [
        Cell(row.run),
        Cell(
            with_quiet(row.state, row.quiet_since, now), STYLES.get(row.state, ""), plain=row.state
        ),
        _when(row.since, now),
        _count(row.step),
        Cell(f"{row.losses[-1]:.4g}") if row.losses else Cell("-", "dim"),
        Cell(sparkline(row.losses, width=_SPARK), "blue"),
        Cell(str(row.recoveries), "yellow" if row.recoveries else "dim"),
        Cell("-", "dim") if row.last_fault is None else Cell(row.last_fault),
        Cell("-", "dim")
        if row.checkpoint_step is None or saved is None
        else Cell(
            f"{row.checkpoint_step}, {age(now - saved)} ago",
            plain=f"{row.checkpoint_step} at {iso(saved)}",
        ),
        _count(row.next_save_step),
        Cell("0", "bold red") if left == 0 else _count(left),
        Cell(job_text(row.job, row.run)),
    ]


def _when(seconds: float | None, now: float) -> Cell:
    return Cell("-", "dim") if seconds is None else Cell(age(now - seconds), plain=iso(seconds))


def _count(value: int | None) -> Cell:
    return Cell("-", "dim") if value is None else Cell(str(value))
