"""A run's figures: steps done, steps replayed, and goodput."""

from __future__ import annotations

import functools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual import ManualClock

from tinker_recovery.telemetry.figures import AttemptFigures, RunFigures, goodput
from tinker_recovery.telemetry.lost_time import length, within, without


def test_a_run_that_was_never_disturbed_has_full_goodput() -> None:
    assert goodput([AttemptFigures(0, 50, math.inf, 10.0)], 10.0) == 1.0


def test_before_the_first_step_there_is_no_goodput() -> None:
    assert goodput([], 10.0) is None
    assert goodput([AttemptFigures(0, 0, math.inf, 10.0)], 10.0) is None
    assert goodput([AttemptFigures(0, 5, math.inf, 0.0)], 0.0) is None


def test_replayed_steps_and_the_time_of_the_recovery_are_lost() -> None:
    """100 s training 10 steps, 20 s recovering to step 5, 80 s for 8 more."""
    clock = ManualClock()
    figures = RunFigures(clock)
    figures.segment_began(0, lambda: 10)
    clock.now += 100.0
    figures.stopped()
    clock.now += 20.0
    done = [0]
    figures.segment_began(5, lambda: done[0])
    assert figures.read().replayed == 5
    done[0] = 8
    clock.now += 80.0
    figures.ended()
    clock.now += 1000.0
    read = figures.read()
    assert (read.done, read.replayed) == (18, 5)
    assert read.goodput == pytest.approx((50.0 + 80.0) / 200.0)


def test_a_recovery_to_before_the_last_segment_takes_all_of_that_one() -> None:
    figures = RunFigures(ManualClock())
    figures.segment_began(0, lambda: 10)
    figures.segment_began(8, lambda: 4)
    figures.segment_began(6, lambda: 1)
    assert (figures.read().done, figures.read().replayed) == (15, 4 + 4)


@given(
    segments=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=6),
    busy_s=st.floats(0.0, 1e4),
    idle_s=st.floats(0.0, 1e4),
)
def test_what_is_kept_is_never_more_than_was_done_and_goodput_is_a_share(
    segments: list[tuple[int, int]], busy_s: float, idle_s: float
) -> None:
    clock = ManualClock()
    figures = RunFigures(clock)
    top = 0
    for start, done in segments:
        start = min(start, top)  # noqa: PLW2901 - a run goes back, never ahead
        figures.segment_began(start, functools.partial(int, done))
        clock.now += busy_s
        figures.stopped()
        clock.now += idle_s
        top = start + done
    figures.ended()
    read = figures.read()
    assert read.done == sum(done for _, done in segments)
    # Exactly the steps of the run's final branch are in its weights.
    assert read.done - read.replayed == top
    assert read.goodput is None or 0.0 <= read.goodput <= 1.0


def test_the_silence_before_a_fault_is_lost_and_no_training() -> None:
    """10 s for 10 steps, 20 s of silence, 5 s recovering to step 5, an outage of 3 s in 8 more."""
    clock = ManualClock()
    figures = RunFigures(clock)
    figures.segment_began(0, lambda: 10)
    clock.now += 30.0
    figures.faulted(20.0)
    clock.now += 5.0
    figures.recovered(counts=True)
    began = clock.now
    figures.segment_began(5, lambda: 5, pauses=lambda: [(began + 1.0, began + 4.0)])
    clock.now += 8.0
    figures.ended()
    clock.now += 100.0
    read = figures.read()
    assert read.lost_s == pytest.approx(20.0 + 5.0 + 5.0 + 3.0)
    assert read.goodput == pytest.approx((5.0 + 5.0) / 43.0)


def test_going_on_after_a_stop_loses_nothing() -> None:
    clock = ManualClock()
    figures = RunFigures(clock)
    figures.follows(AttemptFigures(0, 10, math.inf, 10.0))
    figures.faulted()
    clock.now += 5.0
    figures.recovered(counts=False)
    figures.segment_began(10, lambda: 5)
    clock.now += 5.0
    assert figures.read().lost_s == 0.0


def test_what_a_killed_process_trained_in_vain_is_lost() -> None:
    clock = ManualClock()
    figures = RunFigures(clock)
    figures.follows(AttemptFigures(0, 10, math.inf, 10.0))
    figures.faulted(60.0)
    clock.now += 5.0
    figures.recovered(counts=True)
    figures.segment_began(7, lambda: 5)
    clock.now += 5.0
    read = figures.read()
    assert read.lost_s == pytest.approx(60.0 + 5.0 + 3.0)
    assert (read.done, read.replayed) == (5, 0)


@given(
    stretches=st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), max_size=6),
    began=st.floats(0, 25),
    lasts=st.floats(0, 25),
)
def test_a_time_is_what_is_inside_of_some_stretches_and_what_is_outside(
    stretches: list[tuple[float, float]], began: float, lasts: float
) -> None:
    ended = began + lasts
    inside, outside = within(stretches, began, ended), without(began, ended, stretches)
    assert length(inside) + length(outside) == pytest.approx(lasts)
    assert all(began <= a < b <= ended for a, b in [*inside, *outside])
