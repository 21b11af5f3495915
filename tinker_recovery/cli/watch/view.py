"""How ``watch`` looks in a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tinker_recovery.cli.plot import Mark, axis, curve, replays, sparkline
from tinker_recovery.cli.watch.rows import RunRow, Said
from tinker_recovery.journal.reading import RunView
from tinker_recovery.report import duration, plain
from tinker_recovery.report.words import age, checkpoint_name

_SPARK = 16
_STYLES = {
    "training": "green",
    "recovering": "bold yellow",
    "finished": "cyan",
    "stopped": "yellow",
    "dead": "bold red",
    "failed": "bold red",
    "abandoned": "dim",
}
_WIDE, _WORDS = 110, 90
"""Characters that it takes to show all columns, and the newest event."""
_HISTORY = 5
"""So many attempts, incidents and the like of one run are shown, the newest."""


def overview(rows: Sequence[RunRow], *, now: float, width: int) -> RenderableType:
    """Every run in a line of a table."""
    wide, words = width >= _WIDE, width >= _WORDS
    table = Table(box=None, header_style="bold", pad_edge=False, expand=words)
    table.add_column("run", no_wrap=True, overflow="ellipsis", max_width=28)
    table.add_column("state", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("loss", no_wrap=True)
    table.add_column("recov.", justify="right", no_wrap=True)
    table.add_column("saved", no_wrap=True)
    if wide:
        table.add_column("next", justify="right", no_wrap=True)
        table.add_column("left", justify="right", no_wrap=True)
    if words:
        table.add_column("newest event", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in rows:
        table.add_row(
            Text(plain(row.run)),
            Text(row.state, _STYLES.get(row.state, "")),
            _count(row.step),
            _loss(row, _SPARK if wide else _SPARK // 2),
            Text(str(row.recoveries), "yellow" if row.recoveries else "dim"),
            _saved(row, now),
            *([_count(row.next_save_step), _left(row)] if wide else []),
            *([Text("" if row.newest is None else row.newest.words, "dim")] if words else []),
        )
    return table if rows else Text("no runs yet", "dim")


def detail(
    row: RunRow, run: RunView | None, events: Sequence[Said], *, now: float, width: int, height: int
) -> RenderableType:
    """One run with what happened to it, as far as there is room."""
    parts: list[RenderableType] = [_head(row, now)]
    if run is not None:
        # An earlier run of that name is another's story.
        events = [each for each in events if each.time >= run.created - 1]
        parts += [Text(), *_curve(run, min(width - 12, 100)), Text(), *_history(run)]
    room = max(3, height - sum(_lines(each) for each in parts) - 4)
    parts += [Text(), Text("events", "bold"), *(_event(each) for each in events[-room:])]
    return Group(*parts)


def change(row: RunRow) -> str:
    """Where a run stands, on one line, for where there is no terminal."""
    told = [row.state]
    told += [] if row.step is None else [f"step {row.step}"]
    told += [f"loss {row.losses[-1]:.4g}"] if row.losses else []
    told.append("1 recovery" if row.recoveries == 1 else f"{row.recoveries} recoveries")
    return _line(time.time(), row.run, ", ".join(told))


def event_line(event: Said) -> str:
    """An event, the same way."""
    return _line(event.time, event.run, event.words)


def _line(seconds: float, run: str, words: str) -> str:
    when = time.strftime("%H:%M:%S", time.localtime(seconds))
    return f"{when} {plain(run) or '-'}: {words}"


def _count(value: int | None) -> Text:
    return Text("-", "dim") if value is None else Text(f"{value}")


def _left(row: RunRow) -> Text:
    return Text("0", "bold red") if row.attempts_left == 0 else _count(row.attempts_left)


def _loss(row: RunRow, width: int) -> Text:
    if not row.losses:
        return Text("-", "dim")
    if not width:
        return Text(f"{row.losses[-1]:.4g}")
    return Text.assemble(f"{row.losses[-1]:<8.4g} ", (sparkline(row.losses, width=width), "blue"))


def _saved(row: RunRow, now: float) -> Text:
    if row.checkpoint_step is None or row.saved is None:
        return Text("-", "dim")
    return Text.assemble(f"{row.checkpoint_step}", (f", {age(now - row.saved)} ago", "dim"))


def _head(row: RunRow, now: float) -> RenderableType:
    table = Table.grid(padding=(0, 3))
    table.add_row(
        Text(plain(row.run), "bold"),
        Text(row.state, _STYLES.get(row.state, "")),
        Text.assemble("step ", _count(row.step)),
        Text.assemble("loss ", _loss(row, 0)),
        Text.assemble("recoveries ", str(row.recoveries)),
    )
    saves = Text.assemble("last checkpoint ", _saved(row, now))
    saves.append_text(Text.assemble("   next save ", _count(row.next_save_step)))
    saves.append_text(Text.assemble("   attempts left ", _left(row)))
    return Group(table, saves, *([Text(plain(row.detail), "red")] if row.detail else []))


def _curve(run: RunView, width: int) -> list[RenderableType]:
    told = [each.loss for each in run.progress if each.loss is not None]
    if not told or width < 10:  # noqa: PLR2004 - no curve to speak of
        return [Text("no loss was reported: attempt.report(loss=...) draws it here", "dim")]
    steps = [each.step for each in run.progress if each.loss is not None]
    values = _by_step(steps, told, width * 2)
    lines: list[RenderableType] = []
    for number, drawn in enumerate(curve(values, width=width, height=6)):
        label = {0: f"{max(told):.4g}", 5: f"{min(told):.4g}"}.get(number, "")
        lines.append(Text.assemble(f"{label:>9} │", (drawn, "blue")))
    first, last = steps[0], steps[-1]
    lines.append(Text(f"{'step':>9}  {axis(last - first, width=width, first=first)}", "dim"))
    marks = [
        Mark(each.step - first, each.to_step - first)
        for each in run.incidents
        if each.to_step is not None and each.step <= last + 1 and each.to_step >= first
    ]
    arrows = replays(marks[-3:], max(1, last - first), width=width, first=first)
    return [*lines, *(Text(f"{'':>11}{arrow}", "yellow") for arrow in arrows)]


def _by_step(steps: Sequence[int], values: Sequence[float], columns: int) -> list[float]:
    """One value for each column, the last at or before its step: samples are not evenly apart."""
    chosen, place = [], 0
    for column in range(columns):
        step = steps[0] + (steps[-1] - steps[0]) * column / (columns - 1)
        while place + 1 < len(steps) and steps[place + 1] <= step:
            place += 1
        chosen.append(values[place])
    return chosen


def _history(run: RunView) -> list[RenderableType]:
    attempts = Table("attempt", "from step", "began from", "end", box=None, header_style="bold")
    for each in run.attempts[-_HISTORY:]:
        attempts.add_row(
            str(each.number),
            str(each.start_step),
            "afresh" if each.parent is None else checkpoint_name(each.parent),
            each.outcome or "goes on",
        )
    if not run.incidents:
        return [attempts, Text("no incidents", "dim")]
    incidents = Table(
        "incident", "at step", "back to", "took", "outcome", box=None, header_style="bold"
    )
    for incident in run.incidents[-_HISTORY:]:
        incidents.add_row(
            incident.kind,
            str(incident.step),
            "-" if incident.to_step is None else str(incident.to_step),
            duration(None if incident.ended is None else incident.ended - incident.started),
            incident.outcome or incident.phase,
        )
    return [attempts, Text(), incidents]


def _event(event: Said) -> Text:
    when = time.strftime("%H:%M:%S", time.localtime(event.time))
    return Text(no_wrap=True, overflow="ellipsis").append(f"{when} ", "dim").append(event.words)


def _lines(part: RenderableType) -> int:
    if isinstance(part, Table):
        return part.row_count + bool(part.show_header and part.columns)
    if isinstance(part, Group):
        return sum(_lines(each) for each in part.renderables)
    return 1
