"""When a policy saves and what it keeps: by the decisions of what is made of it, field by field."""

from __future__ import annotations

from typing import Any

import pytest
from made import path, record

from tinker_recovery import CheckpointPolicy
from tinker_recovery.checkpoints import Evidence, retention_of, schedule_of
from tinker_recovery.checkpoints.policies import plan_of
from tinker_recovery.checkpoints.retention import Candidate, KeepLast
from tinker_recovery.checkpoints.schedule import AnyOf, AtSteps, EverySteps, Moment

TIMED = Evidence().stepped(10.0).saved(1.0)


def due(moment: Moment, **policy: Any) -> bool:
    return schedule_of(CheckpointPolicy(**policy)).decide(moment).due


def at(step: int, now_s: float = 0.0, **known: Any) -> Moment:
    return Moment(step, now_s, **known)


QUIET = {"save_every": 50, "save_at_end": False}
"""No other reason to save in the first 49 steps."""


@pytest.mark.parametrize(
    ("moment", "policy", "expected"),
    [
        (at(49), {}, False),
        (at(50), {}, True),
        (at(3, 59.0), {"save_every_s": 60.0}, False),
        (at(3, 60.0), {"save_every_s": 60.0}, True),
        (at(3, 60.0), {}, False),
        (at(7), {"save_at_steps": (7,)}, True),
        (at(7), {}, False),
        (at(8, last_step=7), {"save_at_steps": (7,)}, False),
        (at(3, end=True), {}, False),
        (at(3, end=True), {"save_at_end": True}, True),
        (at(3), {"save_at_end": True}, False),
        (at(50), {"save_every_s": 60.0, "save_at_steps": (7,), "save_at_end": True}, True),
    ],
)
def test_it_saves_every_so_many_steps_and_whenever_else_it_says(
    moment: Moment, policy: dict[str, Any], *, expected: bool
) -> None:
    assert due(moment, **{**QUIET, **policy}) is expected


@pytest.mark.parametrize("strategy", ["last", "all", "steps"])
def test_these_strategies_save_by_steps(strategy: str) -> None:
    policy = {"strategy": strategy, **QUIET}
    assert [due(at(step), **policy) for step in (49, 50)] == [False, True]


def test_epochs_are_saved_as_they_end_and_by_steps_until_one_has() -> None:
    policy = {"strategy": "epoch", "save_every": 2, "save_at_end": False}
    assert [due(at(9, epoch=epoch), **policy) for epoch in (1, 2)] == [False, True]
    assert [due(at(step), **policy) for step in (99, 100)] == [False, True]


def test_an_improvement_is_saved_by_its_metric_and_by_steps_until_there_is_one() -> None:
    policy: dict[str, Any] = {"strategy": "best", "save_at_end": False}

    def improves(value: float, **more: Any) -> bool:
        seen = {more.get("best_metric", "loss"): 2.0}
        moment = at(3, metrics={"loss": value, "reward": value}, lowest=seen, highest=seen)
        return due(moment, **policy, **more)

    assert [improves(value) for value in (1.0, 3.0)] == [True, False]
    upwards = {"best_metric": "reward", "best_mode": "max"}
    assert [improves(value, **upwards) for value in (1.0, 3.0)] == [False, True]
    assert [due(at(step), **policy) for step in (99, 100)] == [False, True]
    other = {"other": 1.0}
    assert [due(at(step, metrics=other), **policy) for step in (99, 100)] == [False, True]


def test_a_schedule_of_the_users_own_takes_the_place_of_a_strategy() -> None:
    policy = {"schedule": EverySteps(3), "save_at_end": False}
    assert [due(at(step), **policy) for step in (2, 3)] == [False, True]


def test_auto_saves_by_what_was_measured_within_the_limits_that_are_set() -> None:
    def steps(**more: Any) -> int:
        schedule = schedule_of(CheckpointPolicy(strategy="auto", save_at_end=False, **more))
        measured = (at(step, evidence=TIMED) for step in range(1, 10_001))
        return next(each.step for each in measured if schedule.decide(each).due)

    by_itself = steps()
    assert 3 < by_itself < 1000
    assert steps(auto_max_steps=3) == 3
    assert steps(auto_min_steps=by_itself + 9) == by_itself + 9
    assert steps(auto_mtbf_s=60.0) < by_itself
    policy = CheckpointPolicy(strategy="auto", auto_max_s=60.0, save_at_end=False)
    assert schedule_of(policy).decide(at(2, 60.0, evidence=TIMED)).due
    assert not schedule_of(policy).decide(at(2, 59.0, evidence=TIMED)).due


def test_the_next_save_is_known_ahead_where_it_is_auto_that_decides_it() -> None:
    moment = at(1, evidence=TIMED)
    alone = schedule_of(CheckpointPolicy(strategy="auto", save_at_end=False))
    beside = schedule_of(CheckpointPolicy(strategy="auto", save_at_steps=(7,)))
    planned = plan_of(alone, moment)
    assert planned is not None
    assert planned.step is not None
    assert plan_of(beside, moment) == planned
    assert plan_of(AnyOf(AtSteps([7]), EverySteps(3)), moment) is None
    assert plan_of(EverySteps(3), moment) is None


# -- what is kept -----------------------------------------------------------------------------

LOSSES = {1: 5.0, 2: 1.0, 3: 3.0, 4: 9.0, 5: 7.0}


def kept(*pinned: int, **policy: Any) -> list[int]:
    found = [
        Candidate(record(step, metrics={"loss": loss, "reward": loss}))
        for step, loss in reversed(LOSSES.items())
    ]
    rule = retention_of(CheckpointPolicy(**policy), pinned=[path("a", step) for step in pinned])
    names = {each.record.path: each.record.step for each in found}
    return sorted(names[where] for where in rule.keep(found))


@pytest.mark.parametrize(
    ("policy", "steps"),
    [
        ({"strategy": "all"}, [1, 2, 3, 4, 5]),
        ({"strategy": "last"}, [2, 5]),
        ({"strategy": "last", "save_best": False}, [5]),
        ({"keep_last": 2, "save_best": False}, [4, 5]),
        ({"keep_last": 2}, [2, 4, 5]),
        ({"keep_last": 1, "keep_best": 2}, [2, 3, 5]),
        ({"keep_last": 0}, [2]),
        ({"keep_last": 1, "best_metric": "reward", "best_mode": "max"}, [4, 5]),
        ({"keep_last": 0, "save_best": False, "keep_every": 3}, [3]),
        ({"keep_last": 1, "save_best": False, "keep_if": lambda each: each.step == 2}, [2, 5]),
        ({"keep_last": 0, "best_metric": "misspelt"}, [1, 2, 3, 4, 5]),
        ({"keep_last": 1, "best_metric": "misspelt"}, [5]),
        ({"retention": KeepLast(1)}, [5]),
    ],
)
def test_it_keeps_what_each_of_its_fields_says(policy: dict[str, Any], steps: list[int]) -> None:
    assert kept(**policy) == steps
    assert kept(1, 4, **policy) == sorted({1, 4, *steps}), "and what is pinned"
