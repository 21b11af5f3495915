"""How ``watch`` looks in a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tinker_recovery.cli.plot import Mark, axis, curve, replays, sparkline
from tinker_recovery.cli.watch.rows import EventText, RunRow
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
_WIDE, _MEDIUM = 110, 90
"""Characters needed for all columns, and for the newest event."""
_HISTORY = 5
"""How many of a run's newest attempts and incidents are shown."""


def overview(rows: Sequence[RunRow], *, now: float, width: int) -> RenderableType:
    """A table with a line for each run."""
    wide, medium = width >= _WIDE, width >= _MEDIUM
    table = Table(box=None, header_style="bold", pad_edge=False, expand=medium)
    table.add_column("run", no_wrap=True, overflow="ellipsis", max_width=28)
    table.add_column("state", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("loss", no_wrap=True)
    table.add_column("recov.", justify="right", no_wrap=True)
    table.add_column("last save", no_wrap=True)
    if wide:
        table.add_column("next\nsave", justify="right", no_wrap=True)
        table.add_column("attempts\nleft", justify="right", no_wrap=True)
    if medium:
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
            *([Text("" if row.event is None else row.event.message, "dim")] if medium else []),
        )
    return table if rows else Text("no runs yet", "dim")


def detail(
    row: RunRow,
    run: RunView | None,
    events: Sequence[EventText],
    *,
    now: float,
    width: int,
    height: int,
) -> RenderableType:
    """One run with its history, as far as there is room."""
    parts: list[RenderableType] = [_head(row, now)]
    if run is not None:
        # Without the events of an earlier run of that name.
        events = [each for each in events if each.time >= run.created - 1]
        parts += [Text(), *_curve(run, min(width - 12, 100)), Text(), *_history(run)]
    room = max(3, height - sum(_lines(each) for each in parts) - 4)
    parts += [Text(), Text("events", "bold"), *(_event(each) for each in events[-room:])]
    return Group(*parts)


def change(row: RunRow) -> str:
    """The state of a run on one line, for output without a terminal."""
    parts = [row.state]
    parts += [] if row.step is None else [f"step {row.step}"]
    parts += [f"loss {row.losses[-1]:.4g}"] if row.losses else []
    parts.append("1 recovery" if row.recoveries == 1 else f"{row.recoveries} recoveries")
    return _line(time.time(), row.run, ", ".join(parts))


def event_line(event: EventText) -> str:
    """An event on one line."""
    return _line(event.time, event.run, event.message)


def _line(seconds: float, run: str, text: str) -> str:
    when = time.strftime("%H:%M:%S", time.localtime(seconds))
    return f"{when} {plain(run) or '-'}: {text}"


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
    if row.checkpoint_step is None or row.checkpoint_saved is None:
        return Text("-", "dim")
    return Text.assemble(
        f"{row.checkpoint_step}", (f", {age(now - row.checkpoint_saved)} ago", "dim")
    )


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
    if not row.next_save:
        saves.append_text(Text.assemble("   next save ", _count(row.next_save_step)))
    saves.append_text(Text.assemble("   attempts left ", _left(row)))
    plan = [Text(plain(row.next_save))] if row.next_save else []
    return Group(table, saves, *plan, *([Text(plain(row.detail), "red")] if row.detail else []))


def _curve(run: RunView, width: int) -> list[RenderableType]:
    losses = [each.loss for each in run.progress if each.loss is not None]
    if not losses or width < 10:  # noqa: PLR2004 - too narrow for a curve
        return [Text("no loss was reported: see attempt.report(loss=...)", "dim")]
    steps = [each.step for each in run.progress if each.loss is not None]
    values = _by_step(steps, losses, width * 2)
    lines: list[RenderableType] = []
    for number, drawn in enumerate(curve(values, width=width, height=6)):
        label = {0: f"{max(losses):.4g}", 5: f"{min(losses):.4g}"}.get(number, "")
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
    """One value for each column, the last at or before its step: samples may be uneven."""
    chosen, place = [], 0
    for column in range(columns):
        step = steps[0] + (steps[-1] - steps[0]) * column / (columns - 1)
        while place + 1 < len(steps) and steps[place + 1] <= step:
            place += 1
        chosen.append(values[place])
    return chosen


def _history(run: RunView) -> list[RenderableType]:
    attempts = Table("attempt", "from step", "checkpoint", "outcome", box=None, header_style="bold")
    for each in run.attempts[-_HISTORY:]:
        attempts.add_row(
            str(each.number),
            str(each.start_step),
            "-" if each.parent is None else checkpoint_name(each.parent),
            each.outcome or "in progress",
        )
    if not run.incidents:
        return [attempts, Text("no incidents", "dim")]
    incidents = Table(
        "fault", "at step", "back to", "took", "outcome", box=None, header_style="bold"
    )
    for incident in run.incidents[-_HISTORY:]:
        incidents.add_row(
            incident.kind,
            str(incident.step),
            "-" if incident.to_step is None else str(incident.to_step),
            duration(None if incident.ended is None else incident.ended - incident.started),
            incident.outcome or f"in progress ({incident.phase})",
        )
    return [attempts, Text(), incidents]


def _event(event: EventText) -> Text:
    when = time.strftime("%H:%M:%S", time.localtime(event.time))
    return Text(no_wrap=True, overflow="ellipsis").append(f"{when} ", "dim").append(event.message)


def _lines(part: RenderableType) -> int:
    if isinstance(part, Table):
        return part.row_count + bool(part.show_header and part.columns)
    if isinstance(part, Group):
        return sum(_lines(each) for each in part.renderables)
    return 1
