"""Curves in a terminal, in braille dots: two columns and four rows of dots to a character."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_BARS = "▁▂▃▄▅▆▇█"
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BLANK = 0x2800


@dataclass(frozen=True, slots=True)
class Mark:
    """A recovery on the step axis: from step ``at`` back to step ``back_to``.

    ``struck`` is the step that its label has, if the axis ends before that.
    """

    at: int
    back_to: int
    struck: int | None = None


def curve(values: Sequence[float], *, width: int, height: int) -> list[str]:
    """The curve as ``height`` lines of ``width`` characters, scaled to fill them.

    Args:
        values: One value for each step; at least one.
        width: Characters.
        height: Lines.
    """
    columns, rows = width * 2, height * 4
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    grid = [[0] * width for _ in range(height)]
    previous: int | None = None
    for x in range(columns):
        value = values[round(x * (len(values) - 1) / (columns - 1))]
        y = round((high - value) / span * (rows - 1))
        # Steep parts are joined, or the curve would be separate dots.
        first = y if previous is None else min(y, previous + (1 if y > previous else -1))
        last = y if previous is None else max(y, previous + (1 if y > previous else -1))
        for dot in range(max(0, first), min(rows - 1, last) + 1):
            grid[dot // 4][x // 2] |= _DOTS[dot % 4][x % 2]
        previous = y
    return ["".join(chr(_BLANK + cell) for cell in line) for line in grid]


def axis(steps: int, *, width: int, first: int = 0) -> str:
    """The step axis: the first step, the quarters as far as there is room, and the last step."""
    last = str(first + steps)
    line = [" "] * max(width, len(last))
    ends = len(line) - len(last)
    line[ends:] = last
    free = 0
    for quarter in range(4):
        label = str(first + steps * quarter // 4)
        start = quarter * (width - 1) // 4
        if free <= start and start + len(label) < ends:
            line[start : start + len(label)] = label
            free = start + len(label) + 1
    return "".join(line).rstrip()


def replays(marks: Sequence[Mark], steps: int, *, width: int, first: int = 0) -> list[str]:
    """One line for each recovery: an arrow from the fault back to where the loop resumed.

    The steps of marks are relative to ``first``; the labels are absolute, and stand where there is
    room within ``width``.
    """
    lines = []
    for mark in marks:
        start, end = (round(step * (width - 1) / max(1, steps)) for step in (mark.back_to, mark.at))
        arrow = "✗" if start == end else "◄" + "─" * (end - start - 1) + "✗"
        struck = mark.at if mark.struck is None else mark.struck
        label = f"step {first + struck} → {first + mark.back_to}"
        if end + 2 + len(label) <= width:
            line = f"{' ' * start}{arrow} {label}"
        elif len(label) < start:
            line = f"{label.rjust(start - 1)} {arrow}"
        else:
            line = f"{' ' * start}{f' {label} '.center(len(arrow) - 2, '─').join('◄✗')}"
        lines.append(line)
    return lines


def sparkline(values: Sequence[float], *, width: int) -> str:
    """The newest values as bars of one character each, scaled to the height of a line."""
    newest = values[-width:] if width else ()
    if not newest:
        return ""
    # Halved, so that the difference of two huge values is finite.
    halves = [each / 2 for each in newest]
    low, span = min(halves), max(halves) - min(halves)
    top = len(_BARS) - 1
    return "".join(_BARS[round((each - low) / span * top) if span else 0] for each in halves)
