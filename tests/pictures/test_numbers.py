"""Scales, thinning, lineages and figures: pure, and so tested with generated input."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from poisoned_run import STEPS, read_back
from two_hundred import leave_a_killed_run, leave_a_long_run

from tinker_recovery.cli.plot import sparkline
from tinker_recovery.journal.reading import RunView, read_run
from tinker_recovery.report import duration, figures_of
from tinker_recovery.report.figures import replayed, time_spent
from tinker_recovery.report.lineage import TreeSegment, branches, lineage
from tinker_recovery.report.scales import Scale, clip_at, log_ticks, spread, thin, ticks, time_ticks
from tinker_recovery.report.svg import clusters
from tinker_recovery.report.words import age

quick = settings(max_examples=50)
finite = st.floats(allow_nan=False, allow_infinity=False)
points = st.lists(st.tuples(st.integers(0, 10_000), finite), min_size=1, max_size=200).map(
    lambda pairs: [(float(x), y) for x, y in sorted(dict(pairs).items())]
)


@quick
@given(finite, finite, st.integers(1, 20))
def test_ticks_lie_within_rise_and_are_not_too_many(one: float, other: float, about: int) -> None:
    low, high = sorted((one, other))
    places = ticks(low, high, about)
    assert 1 <= len(places) <= 2 * about + 3
    assert all(before < after for before, after in itertools.pairwise(places))
    slack = 1e-9 * max(abs(low), abs(high))
    assert all(low - slack <= each <= high + slack for each in places)


def test_ticks_are_round() -> None:
    assert ticks(59.04, 149.9, 4) == [60, 80, 100, 120, 140]
    assert ticks(0, 60, 8) == [0, 10, 20, 30, 40, 50, 60]
    assert ticks(3, 3) == [3]
    assert ticks(0, math.inf) == []
    assert ticks(0, 5e-324) == [0]


@quick
@given(st.floats(0, 1e9), st.integers(1, 12))
def test_times_begin_at_zero_and_are_not_too_many(seconds: float, about: int) -> None:
    places = time_ticks(seconds, about)
    assert places[0] == 0
    assert len(places) <= 2 * about + 3
    assert places[-1] <= seconds * (1 + 1e-9)


def test_times_are_round() -> None:
    assert time_ticks(290, 5) == [0, 60, 120, 180, 240]
    assert time_ticks(5 * 3600, 5) == [0, 3600, 7200, 10800, 14400, 18000]
    assert time_ticks(3 * 86400, 3) == [0, 86400, 2 * 86400, 3 * 86400]


@quick
@given(finite, finite, finite)
def test_every_value_has_its_place_in_the_picture(low: float, high: float, value: float) -> None:
    assert 0 <= Scale(low, high, 0, 100)(value) <= 100


@quick
@given(points, st.integers(1, 60))
def test_thinning_keeps_the_ends_and_every_spike(
    drawn: list[tuple[float, float]], columns: int
) -> None:
    kept = thin(drawn, columns)
    assert len(kept) <= 4 * columns
    assert (kept[0], kept[-1]) == (drawn[0], drawn[-1])
    assert kept == sorted(set(kept))
    assert set(kept) <= set(drawn)
    losses = [loss for _, loss in drawn]
    assert {min(losses), max(losses)} <= {loss for _, loss in kept}


@quick
@given(st.integers(1, 2000), st.integers(1, 100))
def test_a_spread_takes_the_ends_and_no_more_than_it_may(count: int, most: int) -> None:
    places = spread(count, most)
    assert len(places) == min(count, most)
    assert places == sorted(set(places))
    assert places[-1] == count - 1
    assert places[0] == 0 or most == 1


@quick
@given(st.lists(finite, max_size=100), st.integers(0, 20))
def test_a_sparkline_is_as_wide_as_there_are_values_and_room(
    values: list[float], width: int
) -> None:
    drawn = sparkline(values, width=width)
    assert len(drawn) == min(len(values), width)
    if drawn and min(values[-width:]) / 2 < max(values[-width:]) / 2:
        assert {"▁", "█"} <= set(drawn)


@pytest.fixture
def run(written: Path) -> RunView:
    return read_back(written)[0]


def _segment(number: int, parent: int | None, start: int, end: int) -> TreeSegment:
    return TreeSegment(
        number, f"r{number}", start, end, end, parent, None, None, (), float(number), float(number)
    )


@st.composite
def histories(draw: st.DrawFn) -> list[TreeSegment]:
    """Attempts that each start at step 0, or at a step that an earlier one reached."""
    segments: list[TreeSegment] = []
    for number in range(1, draw(st.integers(1, 12)) + 1):
        parent = draw(st.sampled_from([None, *segments]))
        start = 0 if parent is None else draw(st.integers(parent.start_step, parent.end_step))
        end = start + draw(st.integers(0, 30))
        segments.append(_segment(number, parent.number if parent else None, start, end))
    return segments


@quick
@given(histories())
def test_what_a_run_keeps_is_one_unbroken_line_to_its_newest_step(
    segments: list[TreeSegment],
) -> None:
    cut = branches(segments)
    assert [each.number for each in cut] == [each.number for each in segments]
    assert all(each.start_step <= each.kept_to <= each.end_step for each in cut)
    by_number = {each.number: each for each in cut}
    line, current = [cut[-1]], cut[-1]
    while current.parent is not None:
        current = by_number[current.parent]
        line.append(current)
    assert cut[-1].kept_to == cut[-1].end_step
    # Every step of the line is kept once, and nothing else is.
    kept = sorted(step for each in cut for step in range(each.start_step, each.kept_to))
    assert kept == list(range(line[-1].start_step, cut[-1].end_step))


def test_the_lineage_of_a_real_run_ends_at_its_last_step(run: RunView) -> None:
    segments = lineage(run)
    assert [each.parent for each in segments] == [None, 1, 2]
    assert [each.outcome is None for each in segments] == [False, False, False]
    assert segments[-1].end_step == STEPS
    assert [each.start_step for each in segments[1:]] == [each.to_step for each in run.incidents]
    assert [each.kept_to for each in segments[:-1]] == [each.start_step for each in segments[1:]]
    assert [each.end_step for each in segments[:-1]] == [each.step for each in run.incidents]


def test_the_figures_of_a_real_run_add_up(run: RunView) -> None:
    figures = figures_of(run)
    assert figures.replayed_steps == sum(replayed(each) for each in run.incidents) > 0
    assert figures.goodput is not None
    assert 0 < figures.lost_s < (1 - figures.goodput) * figures.elapsed_s, "its start is not lost"
    assert figures.lost_s >= figures.replaying_s
    assert sum(figures.handover_s) == pytest.approx(figures.recovering_s)
    assert figures.checkpoints == len(run.checkpoints)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "-"),
        (-1, "0 ms"),
        (0.25, "250 ms"),
        (9.4, "9.4 s"),
        (9.97, "10 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (90_000, "1 d 01 h"),
    ],
)
def test_durations_are_in_two_units(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said


def test_ages_are_in_one_unit() -> None:
    assert [age(each) for each in (-3, 5.4, 59.4, 61, 7300)] == [
        "0 s",
        "5 s",
        "59 s",
        "1 min",
        "2 h",
    ]


def test_every_second_of_a_run_is_accounted_for(run: RunView, tmp_path: Path) -> None:
    many = read_run(leave_a_long_run(tmp_path), "long")
    assert many is not None
    for each in (run, many, replace(run, attempts=(), incidents=())):
        spent = time_spent(each, lineage(each))
        assert sum(spent.values()) == pytest.approx(each.updated - each.created)
        assert min(spent.values()) >= -1e-6
    spent, figures = time_spent(many, lineage(many)), figures_of(many)
    assert figures.time_spent_s == spent
    assert spent["recoveries"] == pytest.approx(figures.recovering_s)
    assert spent["again"] == pytest.approx(figures.replaying_s, rel=0.01)
    assert spent["no_process"] == pytest.approx(600, rel=0.01)


def test_steps_of_a_killed_process_that_reported_no_loss_are_counted_as_done_again(
    tmp_path: Path,
) -> None:
    run = read_run(leave_a_killed_run(tmp_path), "killed")
    assert run is not None
    figures = figures_of(run)
    assert figures.replayed_steps == sum(replayed(each) for each in run.incidents) == 7
    assert lineage(run)[0].end_step == 47
    assert figures.replaying_s == pytest.approx(7)
    assert figures.time_spent_s["again"] == pytest.approx(7)


def test_a_few_spikes_are_cut_off_and_a_falling_curve_is_not() -> None:
    usual = [2.0 - step / 1000 for step in range(1000)]
    assert clip_at(usual) is None
    limit = clip_at([*usual, 50.0])
    assert limit is not None
    assert 2.0 < limit < 3.0
    assert clip_at([1.0] * 60) is None
    assert clip_at([5.0]) is None


@quick
@given(st.lists(finite, min_size=1, max_size=60))
def test_a_scale_is_cut_off_within_its_values(values: list[float]) -> None:
    limit = clip_at(values)
    assert limit is None or min(values) < limit < max(values)


@quick
@given(st.floats(1e-30, 1e30), st.floats(1e-30, 1e30))
def test_levels_of_a_logarithmic_scale_are_round_and_few(one: float, other: float) -> None:
    low, high = sorted((one, other))
    levels = log_ticks(low, high)
    assert 1 <= len(levels) <= 8
    assert all(low <= each <= high for each in levels)


@quick
@given(st.lists(st.floats(0, 100), max_size=60).map(sorted))
def test_marks_that_would_overlap_are_one_and_each_fault_is_in_one(places: list[float]) -> None:
    found = clusters(places, 2.0)
    assert [index for begin, end in found for index in range(begin, end)] == [*range(len(places))]
    for begin, end in found:
        assert places[end - 1] - places[begin] <= 5.0 + 1e-9
    for (begin, end), (after, _) in itertools.pairwise(found):
        if end - begin == 1:
            assert places[after] - places[begin] >= 2.0 - 1e-9
