"""How ``watch RUN`` looks in a terminal, and the lines of ``watch`` without one."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from tinker_recovery.cli.plot import Mark, axis, curve, replays
from tinker_recovery.cli.records import Cell, Column, cells_of, fitting, lines_of, widths_of
from tinker_recovery.cli.states import STYLES
from tinker_recovery.cli.watch.rows import EventText, RunRow
from tinker_recovery.cli.words import cut, wrapped
from tinker_recovery.journal.reading import RunView
from tinker_recovery.report import duration, plain
from tinker_recovery.report.scales import clip_at
from tinker_recovery.report.words import age, checkpoint_name, iso

_GUTTER = 12
"""What stands left of the curve, and one column right of it."""
_HISTORY = 5
"""How many of a run's newest attempts and incidents are shown."""


def detail(
    row: RunRow,
    run: RunView | None,
    events: Sequence[EventText],
    *,
    now: float,
    width: int,
    height: int,
    plainly: bool = False,
) -> RenderableType:
    """One run with its history, as far as there is room; ``plainly`` cuts no line."""
    wrap = sys.maxsize if plainly else width
    parts = [*_head(row, now, width, wrap)]
    if run is not None:
        # Without the events of an earlier run of that name, which was the newest until now.
        events = [each for each in events if each.time >= run.created - 1]
        drawn = _curve(run, min(width - _GUTTER, 120))
        parts += [Text(), *drawn, Text(), *_history(run, wrap)]
    room = max(3, height - len(parts) - 5)
    parts += [Text(), Text("events", "bold"), *(_event(each) for each in events[-room:])]
    for line in [] if plainly else parts:
        line.no_wrap = True
        cut(line, width)
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
    return f"{iso(seconds)} {plain(run) or '-'}: {text}"


def _head(row: RunRow, now: float, width: int, wrap: int) -> list[Text]:
    """What is known of it now, on as many lines as it takes."""
    state = Text.assemble((row.state, STYLES.get(row.state, "")))
    if row.since is not None:
        state.append(f" for {age(now - row.since)}", "dim")
    if row.quiet_since is not None:
        state.append(f", no step for {age(now - row.quiet_since)}", "yellow")
    saved = _known(row.checkpoint_step)
    if row.checkpoint_saved is not None:
        saved.append(f", {age(now - row.checkpoint_saved)} ago", "dim")
    items = [
        Text(plain(row.run), "bold"),
        state,
        Text.assemble("step ", _known(row.step)),
        Text.assemble("loss ", f"{row.losses[-1]:.4g}" if row.losses else ("-", "dim")),
        Text.assemble("recoveries ", str(row.recoveries)),
        Text.assemble("last checkpoint ", saved),
        *(
            []
            if row.next_save or row.next_save_step is None
            else [Text(f"next save {row.next_save_step}")]
        ),
        Text.assemble(
            "recovery attempts left ",
            Text("0", "bold red") if row.attempts_left == 0 else _known(row.attempts_left),
        ),
        *([] if row.job is None else [Text(f"job {plain(row.job)}")]),
    ]
    lines: list[Text] = []
    for item in items:
        if lines and lines[-1].cell_len + 3 + item.cell_len <= width:
            lines[-1].append("   ").append_text(item)
        else:
            # Of a new one: what is appended to a text has the style of its beginning.
            lines.append(Text().append_text(item))
    lines += [Text(each) for each in wrapped(plain(row.next_save), wrap) if each]
    style = "" if row.state == "stopped" else "red"
    return [*lines, *(Text(each, style) for each in wrapped(plain(row.detail), wrap) if each)]


def _known(value: int | None) -> Text:
    return Text("-", "dim") if value is None else Text(f"{value}")


def _curve(run: RunView, width: int) -> list[Text]:
    losses = [each.loss for each in run.progress if each.loss is not None]
    if not losses or width < 10:  # noqa: PLR2004 - too narrow for a curve
        return [Text("no loss was reported: see attempt.report(loss=...)", "dim")]
    steps = [each.step for each in run.progress if each.loss is not None]
    limit = clip_at(losses)
    top = max(losses) if limit is None else limit
    values = [min(top, each) for each in _by_step(steps, losses, width * 2, top)]
    lines: list[Text] = []
    if limit is not None:
        above = sum(each > limit for each in losses)
        lines.append(Text(f"{'':>11}{above} above, up to {max(losses):.4g}", "dim"))
    for number, drawn in enumerate(curve(values, width=width, height=6)):
        label = {0: f"{top:.4g}", 5: f"{min(losses):.4g}"}.get(number, "")
        lines.append(Text.assemble(f"{label:>9} │", (drawn, "blue")))
    first, last = steps[0], steps[-1]
    lines.append(Text(f"{'step':>9}  {axis(last - first, width=width, first=first)}", "dim"))
    marks = [
        Mark(min(each.step, last + 1) - first, each.to_step - first, each.step - first)
        for each in run.incidents
        if each.to_step is not None and first <= each.to_step <= last
    ]
    arrows = replays(marks[-3:], max(1, last - first), width=width, first=first)
    return [*lines, *(Text(f"{'':>11}{arrow}", "yellow") for arrow in arrows)]


def _by_step(
    steps: Sequence[int], values: Sequence[float], columns: int, top: float
) -> list[float]:
    """One value for each column: the last at or before its step, or one above ``top`` before it."""
    chosen, place = [], 0
    for column in range(columns):
        step = steps[0] + (steps[-1] - steps[0]) * column / (columns - 1)
        spike = values[place]
        while place + 1 < len(steps) and steps[place + 1] <= step:
            place += 1
            spike = max(spike, values[place])
        chosen.append(spike if spike > top else values[place])
    return chosen


def _history(run: RunView, width: int) -> list[Text]:
    """Its newest attempts and incidents, and how many there were before."""
    attempts = [
        [
            Cell(str(each.number)),
            Cell(str(each.start_step)),
            Cell(each.outcome or "in progress"),
            Cell("-" if each.parent is None else checkpoint_name(each.parent)),
        ]
        for each in run.attempts
    ]
    incidents = [
        [
            Cell(each.kind),
            Cell(str(each.step)),
            Cell("-" if each.to_step is None else str(each.to_step)),
            Cell(duration(None if each.ended is None else each.ended - each.started)),
            Cell(each.outcome or f"in progress ({each.phase})"),
        ]
        for each in run.incidents
    ]
    lines = _newest(_ATTEMPTS, attempts, width)
    if not incidents:
        return [*lines, Text("no incidents", "dim")]
    return [*lines, Text(), *_newest(_INCIDENTS, incidents, width)]


_ATTEMPTS = (
    Column("attempt", 0, right=True),
    Column("from step", 1, right=True),
    Column("outcome", 0),
    Column("checkpoint", 2),
)
_INCIDENTS = (
    Column("fault", 0),
    Column("at step", 0, right=True),
    Column("back to", 0, right=True),
    Column("took", 1, right=True),
    Column("outcome", 2),
)


def _newest(columns: Sequence[Column], rows: list[list[Cell]], width: int) -> list[Text]:
    shown = [cells_of(each) for each in rows[-_HISTORY:]]
    widths = widths_of(columns, shown)
    fit = fitting(columns, widths, range(len(columns)), width)
    head, *lines = lines_of(columns, shown, widths, fit)
    if len(rows) > _HISTORY:
        head.append(f"   (the newest {_HISTORY} of {len(rows)})", "dim")
    return [head, *lines]


def _event(event: EventText) -> Text:
    when = time.strftime("%H:%M:%S", time.localtime(event.time))
    return Text(f"{when} ", "dim").append(event.message, "not dim")
