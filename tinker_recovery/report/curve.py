"""The loss curve, with the faults and the steps that were done again."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tinker_recovery.journal.reading import RunView
from tinker_recovery.report.html import Markup, joined, tag
from tinker_recovery.report.scales import Point, Scale, spread, thin, ticks
from tinker_recovery.report.svg import across, chart, key, mark, percent, rooms
from tinker_recovery.report.tables import folded, table
from tinker_recovery.report.words import counted, number

_HEIGHT, _TOP, _WIDE = 260, 24, 1000
_COLUMNS, _ROWS = 400, 60


def loss_section(run: RunView) -> Markup:
    """The curve with its table, or a line on how to get one."""
    points: list[Point] = [
        (float(each.step), each.loss) for each in run.progress if each.loss is not None
    ]
    if not points:
        return tag("p", "No loss was reported. Call attempt.report(loss=...) in the loop.")
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    last = max(run.step, *(round(step) for step, _ in points), run.start_step + 1)
    x = Scale(run.start_step, last, 0, 100)
    y = Scale(low, high if high > low else low + 1, _HEIGHT, _TOP + 12)
    description = (
        f"Loss from step {round(points[0][0])} to {round(points[-1][0])}: from "
        f"{number(points[0][1])} to {number(points[-1][1])}, lowest {number(low)}, highest "
        f"{number(high)}. {counted(len(run.incidents), 'fault')} marked."
    )
    drawn = thin(points, _COLUMNS)
    return joined(
        chart(
            "loss",
            "Loss by step",
            description,
            _HEIGHT + 28,
            across(
                [(x(each), number(each)) for each in ticks(run.start_step, last, 8)],
                top=_TOP,
                bottom=_HEIGHT,
            ),
            _levels(y, low, high),
            _replays(run, x),
            _line(drawn, Scale(x.low, x.high, 0, _WIDE), y),
            _marks(run, x),
            tag("line", class_="cursor", y1=_TOP, y2=_HEIGHT, x1="0%", x2="0%", hidden=True),
        ),
        key(("line", "loss"), ("fault", "fault"), ("replay", "steps done again")),
        _readout(drawn, x),
        folded("The loss as a table", _table(points)),
    )


def _line(points: Sequence[Point], x: Scale, y: Scale) -> Markup:
    if len(points) == 1:
        ((step, loss),) = points
        return tag("circle", cx=percent(x(step) / _WIDE * 100), cy=y(loss), r=3, class_="dot")
    places = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in points)
    return tag(
        "svg",
        tag("polyline", points=places, class_="line"),
        viewBox=f"0 0 {_WIDE} {_HEIGHT}",
        preserveAspectRatio="none",
        width="100%",
        height=_HEIGHT,
    )


def _levels(y: Scale, low: float, high: float) -> Markup:
    lines = []
    for level in ticks(low, high, 4):
        at = y(level)
        lines.append(tag("line", x1="0%", x2="100%", y1=at, y2=at, class_="grid"))
        lines.append(tag("text", number(level), x=-8, y=at + 4, class_="level"))
    return joined(*lines)


def _replays(run: RunView, x: Scale) -> Markup:
    return joined(
        *(
            tag(
                "rect",
                tag("title", f"steps {each.to_step} to {each.step} were done again"),
                x=percent(x(each.to_step)),
                width=percent(x(each.step) - x(each.to_step)),
                y=_TOP,
                height=_HEIGHT - _TOP,
                class_="replay",
            )
            for each in run.incidents
            if each.to_step is not None and each.outcome == "recovered"
        )
    )


def _marks(run: RunView, x: Scale) -> Markup:
    places = [x(each.step) for each in run.incidents]
    marks = []
    for index, (incident, room) in enumerate(zip(run.incidents, rooms(places), strict=True), 1):
        at = percent(x(incident.step))
        marks.append(tag("line", x1=at, x2=at, y1=_TOP, y2=_HEIGHT, class_="fault"))
        if room is not None:
            back = "" if incident.to_step is None else f", back to step {incident.to_step}"
            words = f"{index}: {incident.kind} at step {incident.step}{back}"
            marks.append(mark(x(incident.step), 12, index, words, room))
    return joined(*marks)


def _readout(points: Sequence[Point], x: Scale) -> Markup:
    """The loss at the pointer or slider, with the data for the script, which alone shows it."""
    data = [[round(step), float(f"{loss:.6g}"), round(x(step), 3)] for step, loss in points]
    return tag(
        "p",
        tag("label", "Step ", tag("input", type="range", min=0, max=len(data) - 1, value=0)),
        tag("output"),
        class_="readout",
        hidden=True,
        data_points=json.dumps(data, separators=(",", ":"), allow_nan=False),
    )


def _table(points: Sequence[Point]) -> Markup:
    rows = [(round(points[n][0]), number(points[n][1])) for n in spread(len(points), _ROWS)]
    left_out = "" if len(points) <= _ROWS else f", {len(rows)} of {len(points)} points"
    return table(f"Loss by step{left_out}", ("step", "loss"), rows, numeric=(0, 1))
