"""How long work usually waits for progress, and which silence is longer than that."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinker_recovery import RecoveryPolicy
from tinker_recovery.service.waits import MEMORY, Progress, Waits

HOUR_S = 3600.0


class _Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize("step_s", [0.05, 1.0, 20.0, 60.0, 180.0])
@pytest.mark.parametrize("seed", range(5))
def test_no_hour_of_jittery_steps_has_a_false_alarm(step_s: float, seed: int) -> None:
    chance, clock, policy = random.Random(seed), _Clock(), RecoveryPolicy()
    progress = Progress(clock)
    while clock.now_s < HOUR_S:
        takes_s = step_s * (8.0 if chance.random() < 0.02 else chance.uniform(0.5, 2.0))
        limit_s = policy.stall_limit_s(progress.slow_s)
        assert limit_s is not None
        assert takes_s < limit_s, f"at {clock.now_s:.0f} s"
        clock.now_s += takes_s
        progress.made(sound=True)
        progress.step_done()


@given(waits=st.lists(st.floats(0, 1e5), min_size=1, max_size=50))
def test_the_slow_ones_are_at_most_the_slowest_and_never_quicker_than_the_last(
    waits: list[float],
) -> None:
    noted = Waits()
    for seconds in waits:
        noted.note(seconds)
    assert noted.slow_s is not None
    assert waits[-1] <= noted.slow_s <= max(waits)


def test_a_slow_one_counts_for_long_and_is_forgotten_in_the_end() -> None:
    noted = Waits()
    noted.note(100.0)
    for _ in range(MEMORY // 4):
        noted.note(1.0)
    assert noted.slow_s is not None
    assert noted.slow_s > 50.0
    for _ in range(10 * MEMORY):
        noted.note(1.0)
    assert noted.slow_s < 1.1


def test_neither_the_first_step_nor_a_failed_request_nor_a_pause_of_the_service_counts() -> None:
    clock, waits = _Clock(), Waits()
    progress = Progress(clock, waits)
    clock.now_s = 900.0
    progress.made(sound=True)
    progress.step_done()
    clock.now_s = 1000.0
    progress.made(sound=False)
    assert waits.slow_s is None
    clock.now_s = 2000.0
    progress.begin()
    clock.now_s = 2003.0
    assert progress.silent_s == 3.0
    progress.made(sound=True)
    assert progress.slow_s == 3.0
    again = Progress(clock, waits)
    assert again.slow_s is None, "the next attempt's first step may take longer, too"
    again.step_done()
    assert again.slow_s == 3.0
