"""The loss curve, with the faults, the steps that were done again, and what they had been before.

It is drawn on up to three scales, of which the page's style shows the chosen one: without the few
values that are far above all others, with them, and logarithmic.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tinker_recovery.journal.reading import RunView
from tinker_recovery.report.html import Markup, joined, tag
from tinker_recovery.report.scales import Point, Scale, clip_at, log_ticks, spread, thin, ticks
from tinker_recovery.report.svg import across, chart, key, marks, percent
from tinker_recovery.report.tables import folded, table
from tinker_recovery.report.words import number
from tinker_recovery.telemetry.text import counted

_HEIGHT, _TOP, _WIDE = 280, 24, 1000
_COLUMNS, _ROWS = 400, 60
_LOG_FROM = 10
"""The highest loss has to be so many times the lowest for a logarithmic scale to show more."""


def loss_section(run: RunView) -> Markup:
    """The curve with its table, or a line on how to get one."""
    points: list[Point] = [
        (float(each.step), each.loss) for each in run.progress if each.loss is not None
    ]
    if not points:
        return tag("p", "No loss was reported. Call attempt.report(loss=...) in the loop.")
    discarded = list(_stretches(run))
    losses = [loss for _, loss in [*points, *(each for one in discarded for each in one)]]
    low, high = min(losses), max(losses)
    reached = [round(step) for one in (points, *discarded) for step, _ in one]
    last = max(run.step, *reached, run.start_step + 1)
    x = Scale(run.start_step, last, 0, 100)
    description = (
        f"Loss from step {round(points[0][0])} to {round(points[-1][0])}: from "
        f"{number(points[0][1])} to {number(points[-1][1])}, lowest {number(low)}, highest "
        f"{number(high)}. {counted(len(run.incidents), 'fault')} marked."
    )
    drawn = thin(points, _COLUMNS)
    scales = _scales(losses)
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
            _replays(run, x),
            *(
                _on(
                    each,
                    drawn,
                    discarded,
                    Scale(x.low, x.high, 0, _WIDE),
                    first=each is scales[0],
                )
                for each in scales
            ),
            _marks(run, x),
            tag("line", class_="cursor", y1=_TOP, y2=_HEIGHT, x1="0%", x2="0%", hidden=True),
            controls=_choice(scales),
        ),
        key(
            ("line", "loss"),
            *([("before", "what a recovery discarded")] if discarded else []),
            ("fault", "fault"),
            ("replay", "steps done again"),
        ),
        *_remarks(run, points, losses),
        _readout(drawn, x),
        folded("The loss as a table", _table(points)),
    )


@dataclass(frozen=True, slots=True)
class _LossScale:
    """One of the scales to choose from; ``log`` if it is logarithmic."""

    name: str
    words: str
    y: Scale
    levels: Sequence[float]
    log: bool = False

    def __call__(self, loss: float) -> float:
        return self.y(math.log10(loss) if self.log else loss)


def _scales(losses: Sequence[float]) -> list[_LossScale]:
    """The scales that show something different, the first to begin with."""
    low, high = min(losses), max(losses)
    limit = clip_at(losses)

    def linear(name: str, words: str, top: float) -> _LossScale:
        y = Scale(low, top if top > low else low + 1, _HEIGHT, _TOP + 12)
        return _LossScale(name, words, y, ticks(low, top, 4))

    found = [] if limit is None else [linear("usual", "without what is far above", limit)]
    found.append(linear("whole", "all values", high))
    if low > 0 and high >= _LOG_FROM * low:
        y = Scale(math.log10(low), math.log10(high), _HEIGHT, _TOP + 12)
        found.append(_LossScale("log", "logarithmic", y, log_ticks(low, high), log=True))
    return found


def _choice(scales: Sequence[_LossScale]) -> Markup:
    """A button for each scale; the page's style looks at which is chosen."""
    if len(scales) == 1:
        return joined()
    buttons = [
        tag(
            "label",
            tag(
                "input",
                type="radio",
                name="scale",
                id=f"scale-{each.name}",
                checked=each is scales[0],
            ),
            each.words,
        )
        for each in scales
    ]
    return tag("div", *buttons, class_="scales", role="radiogroup", aria_label="Scale")


def _stretches(run: RunView) -> Iterator[list[Point]]:
    """What recoveries discarded: a piece of each attempt, in the order of its steps."""
    begun = sorted(each.started for each in run.attempts)
    pieces: dict[int, dict[int, float]] = {}
    for each in run.discarded:
        if each.loss is not None:
            of = bisect.bisect_right(begun, each.time)
            pieces.setdefault(of, {})[each.step] = each.loss
    for _, piece in sorted(pieces.items()):
        yield [(float(step), loss) for step, loss in sorted(piece.items())]


def _on(
    scale: _LossScale,
    points: Sequence[Point],
    discarded: Sequence[Sequence[Point]],
    x: Scale,
    *,
    first: bool,
) -> Markup:
    """The levels and the curves on one scale."""
    levels = []
    for level in scale.levels:
        at = scale(level)
        levels.append(tag("line", x1="0%", x2="100%", y1=at, y2=at, class_="grid"))
        levels.append(tag("text", number(level), x=-8, y=at + 4, class_="level"))
    before = [_line(thin(each, _COLUMNS // 4), x, scale, "before") for each in discarded]
    return tag(
        "g",
        *levels,
        *before,
        _line(points, x, scale, "line"),
        class_=f"scaled {scale.name}" + (" first" if first else ""),
    )


def _line(points: Sequence[Point], x: Scale, y: _LossScale, kind: str) -> Markup:
    if len(points) == 1:
        ((step, loss),) = points
        at = percent(x(step) / _WIDE * 100)
        return tag("circle", cx=at, cy=y(loss), r=3, class_="dot" if kind == "line" else "spot")
    places = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in points)
    return tag(
        "svg",
        tag("polyline", points=places, class_=kind),
        viewBox=f"0 0 {_WIDE} {_HEIGHT}",
        preserveAspectRatio="none",
        width="100%",
        height=_HEIGHT,
    )


def _remarks(run: RunView, points: Sequence[Point], losses: Sequence[float]) -> list[Markup]:
    """What is not seen in the curve."""
    said = []
    limit = clip_at(losses)
    if limit is not None:
        above = sum(each > limit for each in losses)
        values = "value is" if above == 1 else "values are"
        said.append(
            f"{above} {values} above {number(limit)}, up to {number(max(losses))}: choose "
            '"all values" to see how far.'
        )
    done = run.step - run.start_step
    if len(points) < done:
        said.append(
            f"Of {done:,} steps the loss of {len(points):,} is drawn: of those that were reported, "
            "one a second at most and two thousand in all; what stands out is among them."
        )
    return [tag("p", each, class_="about") for each in said]


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
    lines, words = [], []
    for index, incident in enumerate(run.incidents, 1):
        at = percent(x(incident.step))
        lines.append(tag("line", x1=at, x2=at, y1=_TOP, y2=_HEIGHT, class_="fault"))
        back = "" if incident.to_step is None else f", back to step {incident.to_step}"
        words.append(f"{index}: {incident.kind} at step {incident.step}{back}")
    return joined(*lines, marks([x(each.step) for each in run.incidents], 12, words))


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
