"""When the run trained, when it recovered, and what each incident was."""

from __future__ import annotations

from collections.abc import Sequence

from tinker_recovery.journal.reading import IncidentView, RunView
from tinker_recovery.report.figures import replayed, trained
from tinker_recovery.report.html import Markup, joined, tag
from tinker_recovery.report.lineage import TreeSegment
from tinker_recovery.report.scales import Scale, time_ticks
from tinker_recovery.report.svg import across, chart, key, marks, percent
from tinker_recovery.report.tables import table
from tinker_recovery.report.words import duration, moment
from tinker_recovery.telemetry.lost_time import length, within
from tinker_recovery.telemetry.text import counted

_TOP, _LANE, _BAR = 28, 30, 16
_LANES = ("trains", "recovers", "saves")
_BOTTOM = _TOP + _LANE * len(_LANES)

_HEADS = (
    "no.",
    "detected",
    "fault",
    "detected by",
    "at step",
    "back to",
    "done again",
    "recovery attempts",
    "time to hand-over",
    "outcome",
)

_OUTCOMES = {
    "recovered": "recovered",
    "given_up": "given up",
    "cut_off": "its process ended during the recovery",
    "ended": "not recovered from",
    None: "under way",
}


def timeline_section(run: RunView, segments: Sequence[TreeSegment]) -> Markup:
    """The timeline, and the table of incidents."""
    elapsed_s = max(run.updated - run.created, 0.001)
    x = Scale(run.created, run.created + elapsed_s, 0, 100)
    recovering_s = sum(_ended(run, each) - each.started for each in run.incidents)
    description = (
        f"{duration(elapsed_s)} from {moment(run.created)} on: "
        f"{counted(len(run.attempts), 'attempt')}, {counted(len(run.incidents), 'fault')}, "
        f"{duration(recovering_s)} in recoveries. The table below shows the same."
    )
    return joined(
        chart(
            "time",
            "Time: training, recoveries, saves",
            description,
            _BOTTOM + 28,
            across(
                [(x(run.created + each), _since(each)) for each in time_ticks(elapsed_s)],
                top=_TOP,
                bottom=_BOTTOM,
            ),
            *(
                tag("text", name, x=-8, y=_middle(lane) + 4, class_="level")
                for lane, name in enumerate(_LANES)
            ),
            *(_trained(run, each, x) for each in segments),
            _recovered(run, x),
            *(
                tag(
                    "line",
                    x1=percent(x(each.saved)),
                    x2=percent(x(each.saved)),
                    y1=_middle(2) - _BAR / 2,
                    y2=_middle(2) + _BAR / 2,
                    class_="save gone" if each.gone else "save",
                )
                for each in run.checkpoints
            ),
        ),
        key(
            ("kept", "steps in the run's weights"),
            ("again", "steps that had to be done again"),
            ("silent", "no progress: before a fault, or in an outage"),
            ("recovery", "recovering"),
            ("save", "checkpoint stored"),
        ),
        _incidents(run),
    )


def _since(seconds: float) -> str:
    if seconds < 60:  # noqa: PLR2004 - seconds in a minute
        return f"{seconds:g} s" if seconds else "0"
    return duration(seconds).removesuffix(" 00 s").removesuffix(" 00 min").removesuffix(" 00 h")


def _middle(lane: int) -> float:
    return _TOP + lane * _LANE + _LANE / 2


def _ended(run: RunView, incident: IncidentView) -> float:
    return max(incident.started, run.updated if incident.ended is None else incident.ended)


def _bar(x: Scale, begin: float, end: float, lane: int, kind: str, words: str) -> Markup:
    return tag(
        "rect",
        tag("title", words),
        x=percent(x(begin)),
        width=percent(x(end) - x(begin)),
        y=_middle(lane) - _BAR / 2,
        height=_BAR,
        class_=kind,
    )


def _trained(run: RunView, segment: TreeSegment, x: Scale) -> Markup:
    """A segment's bars: the part of its training that was done again has another colour.

    And so has the time in which it made no progress.
    """
    done = segment.end_step - segment.start_step
    share = (segment.kept_to - segment.start_step) / done if done else 1.0
    parts = trained(run, segment)
    kept_s = share * length(parts)
    words = f"attempt {segment.number}: steps {segment.start_step} to {segment.end_step}"
    again = f"{words}; from {segment.kept_to} on done again"
    bars = []
    for began, ended in parts:
        turn = began + min(max(kept_s, 0.0), ended - began)
        kept_s -= ended - began
        bars += [_bar(x, began, turn, 0, "kept", words)] if turn > began else []
        bars += [_bar(x, turn, ended, 0, "again", again)] if ended > turn and share < 1 else []
    for began, ended in within(run.silences, segment.started, segment.ended):
        quiet = f"attempt {segment.number}: no progress for {duration(ended - began)}"
        bars.append(_bar(x, began, ended, 0, "silent", quiet))
    return joined(*bars)


def _recovered(run: RunView, x: Scale) -> Markup:
    bars, said = [], []
    for index, incident in enumerate(run.incidents, 1):
        ended = _ended(run, incident)
        words = f"{index}: {incident.kind}, {_OUTCOMES.get(incident.outcome, incident.outcome)}"
        said.append(f"{words}, {duration(ended - incident.started)}")
        bars.append(_bar(x, incident.started, ended, 1, "recovery", said[-1]))
    return joined(*bars, marks([x(each.started) for each in run.incidents], 14, said))


def _incidents(run: RunView) -> Markup:
    if not run.incidents:
        return tag("p", "Nothing went wrong.")
    rows = [
        (
            index,
            moment(each.started, beside=run.created),
            each.kind,
            each.detected_by,
            each.step,
            "-" if each.to_step is None else each.to_step,
            replayed(each),
            each.tries,
            duration(None if each.ended is None else each.ended - each.started),
            _OUTCOMES.get(each.outcome, each.outcome),
        )
        for index, each in enumerate(run.incidents, 1)
    ]
    return table(
        "Incidents",
        _HEADS,
        rows,
        numeric=(0, 4, 5, 6, 7, 8),
        name="incident",
    )
