"""The checkpoints of a run as a tree: one row per attempt, branching off where it started."""

from __future__ import annotations

from collections.abc import Sequence

from tinker_recovery.journal.reading import CheckpointView, RunView
from tinker_recovery.report.html import Markup, joined, tag
from tinker_recovery.report.lineage import TreeSegment
from tinker_recovery.report.scales import Scale, ticks
from tinker_recovery.report.svg import across, chart, key, percent
from tinker_recovery.report.tables import folded, table
from tinker_recovery.report.words import checkpoint_name, moment, number
from tinker_recovery.telemetry.text import counted

_TOP, _ROW, _LOW_ROW = 8, 28, 20
_FEW_ROWS, _MOST_ROWS = 12, 60
_APART = 0.8
"""A checkpoint's circle, in per cent of the chart's width."""


def tree_section(run: RunView, segments: Sequence[TreeSegment]) -> Markup:
    """The tree, and all its checkpoints as a table."""
    if not segments:
        return tag("p", "Nothing was trained yet.")
    shown = segments[-_MOST_ROWS:]
    row = _ROW if len(shown) <= _FEW_ROWS else _LOW_ROW
    rows = {each.number: _TOP + row * n + row / 2 for n, each in enumerate(shown)}
    last = max(run.start_step + 1, *(each.end_step for each in segments))
    x = Scale(min(run.start_step, *(each.start_step for each in segments)), last, 0, 100)
    bottom = _TOP + row * len(shown)
    sources = {each.origin for each in segments if each.origin}
    gone = sum(each.gone for each in run.checkpoints)
    description = (
        f"{counted(len(segments), 'attempt')} and {counted(len(run.checkpoints), 'checkpoint')}, "
        f"{gone} of them deleted. The run is at step {run.step}. "
        "The tables below show the same."
    )
    left_out = len(segments) - len(shown)
    return joined(
        chart(
            "tree",
            "Checkpoints, and the attempts that started from them",
            description,
            bottom + 28,
            across(
                [(x(each), number(each)) for each in ticks(x.low, last, 8)],
                top=_TOP,
                bottom=bottom,
            ),
            *(_branch(each, x, rows) for each in shown),
            *(_marks(each, x, rows[each.number], sources) for each in shown),
        ),
        tag("p", f"In the table only: the first {counted(left_out, 'attempt')}.")
        if left_out
        else "",
        key(
            ("kept", "steps in the run's weights"),
            ("lost", "abandoned"),
            ("source", "an attempt started from it"),
            ("gone", "deleted"),
        ),
        _attempts(segments),
        folded("All checkpoints as a table", _checkpoints(run, segments)),
    )


def _branch(segment: TreeSegment, x: Scale, rows: dict[int, float]) -> Markup:
    y = rows[segment.number]
    start, kept, end = (
        percent(x(step)) for step in (segment.start_step, segment.kept_to, segment.end_step)
    )
    parts = [
        tag("text", f"{segment.number}: {ending(segment)}", x=-8, y=y + 4, class_="level"),
    ]
    above = None if segment.parent is None else rows.get(segment.parent)
    if above is not None:
        kind = "branch kept" if segment.kept_to > segment.start_step else "branch lost"
        parts.append(tag("line", x1=start, x2=start, y1=above, y2=y, class_=kind))
    if segment.kept_to > segment.start_step:
        parts.append(tag("line", x1=start, x2=kept, y1=y, y2=y, class_="branch kept"))
    if segment.end_step > segment.kept_to:
        lost = tag("title", f"steps {segment.kept_to} to {segment.end_step}: abandoned")
        parts.append(tag("line", lost, x1=kept, x2=end, y1=y, y2=y, class_="branch lost"))
    return joined(*parts)


def _marks(segment: TreeSegment, x: Scale, y: float, sources: set[str]) -> Markup:
    """The checkpoints of a row; where they would overlap, the newest and every attempt's origin."""
    marks = []
    last = float("inf")
    for each in reversed(segment.checkpoints):
        place = x(each.step)
        if last - place < _APART and each.path not in sources:
            continue
        last = place
        words = f"step {each.step}, {_status(segment, each, sources)}"
        kinds = ["saved", "kept" if segment.keeps(each) else "lost"]
        kinds += ["source"] if each.path in sources else []
        kinds += ["gone"] if each.gone else []
        marks.append(
            tag(
                "circle",
                tag("title", words),
                cx=percent(place),
                cy=y,
                r=6 if each.path in sources else 4.5,
                class_=" ".join(kinds),
            )
        )
    return joined(*marks)


def ending(segment: TreeSegment) -> str:
    """How an attempt ended; ``open`` if no end is recorded."""
    return "open" if segment.outcome is None else segment.outcome.replace("_", " ")


def _status(segment: TreeSegment, checkpoint: CheckpointView, sources: set[str]) -> str:
    words = ["in the run's history" if segment.keeps(checkpoint) else "abandoned"]
    words += ["an attempt started from it"] if checkpoint.path in sources else []
    words += ["deleted"] if checkpoint.gone else []
    return ", ".join(words)


def _origin(segment: TreeSegment) -> str:
    if segment.origin is None:
        return "no checkpoint"
    of = "" if segment.parent is None else f" of attempt {segment.parent}"
    return f"{checkpoint_name(segment.origin)}{of}"


def _attempts(segments: Sequence[TreeSegment]) -> Markup:
    rows = [
        (
            each.number,
            f"{each.start_step} to {each.end_step}",
            _origin(each),
            each.kept_to - each.start_step,
            each.end_step - each.kept_to,
            len(each.checkpoints),
            ending(each),
        )
        for each in segments
    ]
    heads = ("attempt", "steps", "started from", "kept", "abandoned", "saves", "end")
    return table("Attempts", heads, rows, numeric=(0, 3, 4, 5))


def _checkpoints(run: RunView, segments: Sequence[TreeSegment]) -> Markup:
    sources = {each.origin for each in segments if each.origin}
    by_path = {each.path: segment for segment in segments for each in segment.checkpoints}
    rows = [
        (
            each.path,
            each.step,
            moment(each.saved, beside=run.created),
            _status(by_path[each.path], each, sources)
            if each.path in by_path
            else "of no known attempt",
        )
        for each in run.checkpoints
    ]
    return table("Checkpoints", ("path", "step", "saved", "status"), rows, numeric=(1,))
