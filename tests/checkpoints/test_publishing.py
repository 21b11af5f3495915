"""Which checkpoints are to be published: a pure decision, over any history."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinker_recovery.checkpoints.publishing import (
    MOST_WAITING,
    Candidate,
    Done,
    Intentions,
    intentions,
    is_better,
    next_of,
)

Publish = Literal["end", "best", "each"]
Mode = Literal["min", "max"]


def made(step: int, value: float | None = None, name: str = "") -> Candidate:
    return Candidate(f"tinker://r/weights/{name or step}", step, value)


@dataclass
class _Run:
    """A run as the decisions see it: what is sound, what waits, what was published in order."""

    publish: Publish
    mode: Mode
    sound: dict[str, Candidate] = field(default_factory=dict)
    waiting: dict[str, Candidate] = field(default_factory=dict)
    published: list[Candidate] = field(default_factory=list)
    ended: bool = False

    @property
    def done(self) -> Done:
        found = Done()
        for each in self.published:
            found = found.and_also(each, self.mode)
        return found

    def decide(self, order: list[Candidate] | None = None) -> Intentions:
        return intentions(
            order or list(self.sound.values()),
            self.waiting,
            self.done,
            publish=self.publish,
            ended=self.ended,
            mode=self.mode,
        )

    def publish_next(self) -> None:
        first = next_of(self.waiting.values())
        assert first is not None
        del self.waiting[first.path]
        self.published.append(first)

    def apply(self, found: Intentions) -> None:
        for path in found.drop:
            del self.waiting[path]
        self.waiting |= {each.path: each for each in found.add}


def _happens(data: st.DataObject, run: _Run, step: int, number: int) -> int:
    """Something happens to a run; the step it is at then."""
    what = data.draw(st.sampled_from(["save", "save", "save", "rewind", "lose", "publish"]))
    if what == "save":
        step += data.draw(st.integers(1, 5))
        value = data.draw(st.none() | st.floats(allow_infinity=False))
        candidate = made(step, value, f"{number}")
        run.sound[candidate.path] = candidate
    elif what == "rewind":
        return data.draw(st.integers(0, step))
    elif what == "lose" and run.sound:
        del run.sound[data.draw(st.sampled_from(sorted(run.sound)))]
    elif run.waiting:
        run.publish_next()
    return step


@given(st.data())
def test_over_any_history_a_repository_only_goes_forward_and_nothing_is_published_twice(
    data: st.DataObject,
) -> None:
    run = _Run(
        data.draw(st.sampled_from(["end", "best", "each"])),
        data.draw(st.sampled_from(["min", "max"])),
    )
    step = 0
    for number in range(data.draw(st.integers(0, 25))):
        step = _happens(data, run, step, number)
        shuffled = data.draw(st.permutations(list(run.sound.values())))
        found = run.decide(shuffled)
        assert found == run.decide(), "the order of the candidates does not matter"
        assert {each.path for each in found.add} <= run.sound.keys(), "only what is sound"
        assert set(found.drop) <= run.waiting.keys()
        run.apply(found)
        assert len(run.waiting) <= (MOST_WAITING if run.publish == "each" else 1)
        assert run.decide() == Intentions(), "what was decided is not decided again"
    if run.publish == "end":
        assert not run.published
        assert not run.waiting
    run.ended = True
    run.apply(run.decide())
    while run.waiting:
        run.publish_next()
    steps = [each.step for each in run.published]
    assert steps == sorted(set(steps)), "forward, and each step once"
    if run.publish == "end" and run.sound:
        assert steps == [max(each.step for each in run.sound.values())]
    if run.publish == "best":
        values = [each.value for each in run.published]
        for worse, better in itertools.pairwise(values):
            assert worse is not None
            assert better is not None
            assert is_better(better, worse, run.mode)


def test_each_means_all_of_them_and_the_oldest_of_too_many_that_wait_are_left_out() -> None:
    run = _Run("each", "min", {each.path: each for each in map(made, range(1, 4))})
    assert [each.step for each in run.decide().add] == [1, 2, 3]
    run.apply(run.decide())
    run.sound = {each.path: each for each in map(made, range(1, MOST_WAITING + 3))}
    found = run.decide()
    assert [each.step for each in found.add] == list(range(4, MOST_WAITING + 3))
    assert found.drop == (made(1).path, made(2).path)


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 3)])
def test_best_means_the_best_so_far_and_it_takes_the_place_of_one_that_waits(
    mode: Mode, best: int
) -> None:
    given_ = [made(1, 5.0), made(2, 3.0), made(3, 9.0), made(4, math.nan), made(5)]
    run = _Run("best", mode, {each.path: each for each in given_})
    assert [each.step for each in run.decide().add] == [best]
    run.apply(run.decide())
    better = made(6, -100.0 if mode == "min" else 100.0)
    run.sound[better.path] = better
    assert run.decide() == Intentions((better,), (made(best).path,))


def test_end_means_the_last_one_once_the_run_has_ended() -> None:
    run = _Run("end", "min", {each.path: each for each in map(made, (2, 6, 4))})
    assert run.decide() == Intentions()
    run.ended = True
    assert [each.step for each in run.decide().add] == [6]
    run.published.append(made(6))
    assert run.decide() == Intentions()
