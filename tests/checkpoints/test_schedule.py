from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import record

from tinker_recovery import CheckpointPolicy, UsageError
from tinker_recovery.checkpoints import Evidence, SaveLedger, Schedule, retention_of, schedule_of
from tinker_recovery.checkpoints.interval import AutoInterval, young_daly_s
from tinker_recovery.checkpoints.policies import plan_of
from tinker_recovery.checkpoints.retention import (
    Candidate,
    KeepAll,
    KeepBest,
    KeepEvery,
    KeepLast,
)
from tinker_recovery.checkpoints.schedule import (
    AnyOf,
    AtEnd,
    AtSteps,
    Decision,
    EveryEpochs,
    EverySeconds,
    EverySteps,
    Meanwhile,
    Moment,
    OnImprovement,
    UsersOwn,
)

TIMED = Evidence().stepped(10.0).saved(20.0)


@pytest.mark.parametrize(
    ("schedule", "moment", "due", "reason"),
    [
        (EverySteps(4), Moment(8, 0, last_step=4), True, "multiple of 4"),
        (EverySteps(4), Moment(9, 0, last_step=4), False, "not at a multiple"),
        (EverySteps(4), Moment(8, 0, last_step=8), False, "not at"),
        (EverySteps(4), Moment(0, 0), False, "not at"),
        (EverySeconds(60), Moment(3, 160, last_s=100), True, "60 s since"),
        (EverySeconds(60), Moment(3, 159, last_s=100), False, "59 s since"),
        (EverySeconds(60), Moment(3, 500, last_step=3), False, "every 60"),
        (EverySeconds(60), Moment(3, 10, last_s=100), False, "-90 s since"),
        (EveryEpochs(), Moment(9, 0, epoch=1), True, "1 epochs completed"),
        (EveryEpochs(), Moment(9, 0, epoch=1, last_epoch=1), False, "1 at the last"),
        (EveryEpochs(2), Moment(9, 0, epoch=3, last_epoch=2), False, "every 2"),
        (EveryEpochs(2), Moment(9, 0, epoch=5, last_epoch=3), True, "every 2"),
        (EveryEpochs(), Moment(9, 0), False, "reports no epoch"),
        (OnImprovement("loss"), Moment(5, 0, metrics={"loss": 2.0}), True, "none saved"),
        (OnImprovement("loss"), Moment(5, 0), False, "reports no metric 'loss'"),
        (AtSteps([7, 9]), Moment(7, 0), True, "step 7 is in save_at_steps"),
        (AtSteps([7, 9]), Moment(8, 0, last_step=3), True, "step 7 is in save_at_steps"),
        (AtSteps([7, 9]), Moment(8, 0, last_step=7), False, "no step"),
        (AtEnd(), Moment(5, 0), False, "not at the end"),
        (AtEnd(), Moment(5, 0, end=True), True, "the loop has ended"),
        (AtEnd(), Moment(5, 0, last_step=5, end=True), False, "saved already"),
        (AnyOf(EverySteps(4), AtEnd()), Moment(5, 0, end=True), True, "the loop has ended"),
        (AnyOf(EverySteps(4), AtEnd()), Moment(5, 0), False, "4 steps; not at the end"),
        (AutoInterval(), Moment(5, 0, last_step=5), False, "nothing new"),
        (AutoInterval(max_steps=5), Moment(5, 0, evidence=TIMED), True, "due after 5"),
        (AutoInterval(max_steps=5), Moment(4, 0, evidence=TIMED), False, "4 steps since"),
    ],
)
def test_each_schedule_says_whether_a_save_is_due_and_why(
    schedule: Schedule, moment: Moment, *, due: bool, reason: str
) -> None:
    decision = schedule.decide(moment)
    assert decision.due is due
    assert reason in decision.reason


@pytest.mark.parametrize(
    ("mode", "value", "due"),
    [
        ("min", 0.9, True),
        ("min", 1.0, False),  # a tie
        ("min", 1.1, False),
        ("max", 3.1, True),
        ("max", 3.0, False),
        ("max", 2.9, False),
        ("min", math.nan, False),
        ("max", math.nan, False),
        ("min", -math.inf, False),
        ("max", math.inf, False),
    ],
)
def test_only_a_real_improvement_is_one(mode: Any, value: float, *, due: bool) -> None:
    moment = Moment(5, 0, metrics={"loss": value}, lowest={"loss": 1.0}, highest={"loss": 3.0})
    assert OnImprovement("loss", mode).decide(moment).due is due


@pytest.mark.parametrize(
    "build",
    [
        lambda: EverySteps(0),
        lambda: EverySeconds(0.0),
        lambda: EverySeconds(math.nan),
        lambda: EveryEpochs(-1),
        AnyOf,
        lambda: AutoInterval(prior_mtbf_s=0),
        lambda: AutoInterval(prior_save_s=math.inf),
        lambda: AutoInterval(min_steps=5, max_steps=4),
    ],
)
def test_a_schedule_that_cannot_work_is_refused_at_once(build: Any) -> None:
    with pytest.raises(UsageError):
        build()


# -- the gate ------------------------------------------------------------------------------------


def test_a_save_under_way_holds_back_the_next_one() -> None:
    ledger = SaveLedger(0, 0.0)
    every = EverySteps(2)
    assert ledger.ask(every, step=2, now_s=1).due
    ledger = ledger.began(step=2, now_s=1)
    held = ledger.ask(every, step=4, now_s=2)
    assert (held.due, held.left_out) == (False, True)
    assert "of step 2 a save is still under way" in held.reason
    with pytest.raises(ValueError, match="ask"):
        ledger.began(step=2, now_s=2)
    ledger = ledger.stored(2)
    assert (ledger.last_step, ledger.last_s) == (2, 1)
    assert not ledger.ask(every, step=5, now_s=3).due
    assert ledger.ask(every, step=6, now_s=3).due


def test_as_many_saves_are_under_way_as_is_allowed_and_each_counts_as_if_it_were_stored() -> None:
    every, best = EverySteps(1), OnImprovement("loss")
    ledger = SaveLedger(0, 0.0)
    for step in (1, 2):
        assert ledger.ask(every, most=2, step=step, now_s=step).due
        ledger = ledger.began(step=step, now_s=step, metrics={"loss": 3.0 - step})
        assert not ledger.ask(every, most=2, step=step, now_s=step).due, "once is enough"
    assert ledger.ask(every, most=2, step=3, now_s=3).left_out
    assert not ledger.ask(EverySteps(7), most=2, step=3, now_s=3).left_out, "it is not due"
    assert not ledger.ask(best, most=3, step=3, now_s=3, metrics={"loss": 1.0}).due
    ledger = ledger.stored(1)
    assert (ledger.last_step, ledger.newest_step) == (1, 2)
    assert ledger.ask(every, most=2, step=3, now_s=3).due


def test_of_saves_whose_answers_come_in_another_order_the_later_step_counts() -> None:
    ledger = SaveLedger(0, 0.0).began(step=1, now_s=1.0, metrics={"loss": 1.0})
    ledger = ledger.began(step=2, now_s=2.0).stored(2).stored(1)
    assert (ledger.last_step, ledger.last_s, ledger.in_flight) == (2, 2.0, ())
    assert ledger.lowest == {"loss": 1.0}


def test_after_a_failed_save_the_one_behind_it_is_waited_for() -> None:
    ledger, _ = SaveLedger(0, 0.0).began(step=1, now_s=1).began(step=2, now_s=2).failed(1)
    assert not ledger.ask(EverySteps(100), most=2, step=3, now_s=3).due
    assert not ledger.stored(2).ask(EverySteps(100), most=2, step=3, now_s=3).due
    ledger, _ = ledger.failed(2)
    assert ledger.ask(EverySteps(100), most=2, step=3, now_s=3).due


def test_a_failed_save_is_due_again_at_once_and_reported_once() -> None:
    ledger = SaveLedger(0, 0.0).began(step=2, now_s=1)
    ledger, report = ledger.failed(2)
    assert report
    again = ledger.ask(EverySteps(100), step=3, now_s=2)
    assert again.due
    assert "failed" in again.reason
    ledger, report = ledger.began(step=3, now_s=2).failed(3)
    assert not report
    ledger = ledger.began(step=4, now_s=3).stored(4)
    assert not ledger.ask(EverySteps(100), step=5, now_s=3).due
    _, report = ledger.began(step=5, now_s=4).failed(5)
    assert report


def test_the_end_of_a_save_that_is_not_in_flight_changes_nothing() -> None:
    ledger = SaveLedger(0, 0.0).began(step=2, now_s=1)
    assert ledger.stored(1) is ledger
    assert ledger.failed(1) == (ledger, False)


def test_a_new_attempt_compares_with_the_best_saved_before_it() -> None:
    ledger = SaveLedger(0, 0.0)
    for step, loss in ((1, 1.0), (2, math.nan)):
        ledger = ledger.began(step=step, now_s=0.0, metrics={"loss": loss}).stored(step)
    best = OnImprovement("loss")
    assert not ledger.ask(best, step=3, now_s=1, metrics={"loss": 1.0}).due
    assert ledger.ask(best, step=3, now_s=1, metrics={"loss": 0.5}).due


SCHEDULES: st.SearchStrategy[Schedule] = st.sampled_from(
    [
        EverySteps(3),
        EverySeconds(5),
        EveryEpochs(2),
        OnImprovement("loss"),
        AtSteps([4, 5, 11]),
        AtEnd(),
        AutoInterval(prior_mtbf_s=50, max_steps=7),
        AnyOf(EverySteps(4), EverySeconds(3), OnImprovement("loss", "max"), AtEnd()),
    ]
)


@given(
    schedule=SCHEDULES,
    most=st.integers(1, 3),
    events=st.lists(
        st.tuples(
            st.sampled_from(["step", "again", "stored", "failed", "jump"]),
            st.floats(0, 10),
            st.floats() | st.sampled_from([0.0, 1.0, math.nan]),
        ),
        max_size=60,
    ),
)
def test_no_history_saves_one_step_twice_or_more_at_a_time_than_allowed(
    schedule: Schedule, most: int, events: list[tuple[str, float, float]]
) -> None:
    ledger = SaveLedger(0, 0.0)
    step, now_s, evidence = 0, 0.0, Evidence()
    stored: list[int] = []
    for kind, seconds, metric in events:
        now_s += -100 if kind == "jump" else seconds
        if kind == "step":
            step += 1
            evidence = evidence.stepped(seconds)
        in_flight = ledger.in_flight
        if kind == "stored" and in_flight:
            stored.append(in_flight[0].step)
            ledger = ledger.stored(in_flight[0].step)
            evidence = evidence.saved(seconds)
        elif kind == "failed" and in_flight:
            ledger, _ = ledger.failed(in_flight[0].step)
            if not ledger.in_flight and step > ledger.last_step:
                assert ledger.ask(schedule, step=step, now_s=now_s).due
        moment = {"step": step, "now_s": now_s, "epoch": step // 4, "metrics": {"loss": metric}}
        end = kind == "again"
        if ledger.ask(schedule, most=most, **moment, evidence=evidence, end=end).due:  # type: ignore[arg-type]  # passed through by name
            assert len(ledger.in_flight) < most
            ledger = ledger.began(**moment)  # type: ignore[arg-type]  # the same
    assert stored == sorted(set(stored))
    assert 0 not in stored


# -- auto ----------------------------------------------------------------------------------------


def test_the_interval_is_youngs_where_saves_are_cheap_and_dalys_where_they_are_not() -> None:
    assert young_daly_s(1.0, 1e6) == pytest.approx(math.sqrt(2e6), rel=1e-3)
    # Daly (2006): sqrt(2*60*3600) = 657.3; * (1 + sqrt(1/120)/3 + 1/1080) - 60.
    assert young_daly_s(60.0, 3600.0) == pytest.approx(617.9, abs=0.1)
    assert young_daly_s(100.0, 50.0) == 50.0
    assert young_daly_s(0.0, 50.0) == 0.0


@given(save_s=st.floats(0.01, 1e4), mtbf_s=st.floats(1, 1e7))
def test_the_interval_wastes_about_as_little_as_any_other(save_s: float, mtbf_s: float) -> None:
    # Daly's complete cost model, restart left out: wall time per useful second.
    def wall(interval_s: float) -> float:
        return mtbf_s * math.expm1(min(700.0, (interval_s + save_s) / mtbf_s)) / interval_s

    best = young_daly_s(save_s, mtbf_s)
    if save_s < mtbf_s / 2:
        assert all(wall(best) <= wall(best * factor) * 1.005 for factor in (0.5, 0.8, 1.25, 2.0))


def test_auto_saves_further_apart_as_saves_cost_more_and_closer_as_the_run_fails_more() -> None:
    auto = AutoInterval()
    usual = Evidence().stepped(1.0).saved(10.0)
    assert auto.steps(usual.saved(100.0)) > auto.steps(usual)
    assert auto.steps(usual.failed()) < auto.steps(usual)
    assert auto.steps(usual.waited(10 * 24 * 3600)) > auto.steps(usual)
    assert auto.steps(Evidence().stepped(4.0).saved(10.0)) < auto.steps(usual)


@given(
    steps=st.lists(st.floats(0, 1e4), max_size=20),
    saves=st.lists(st.floats(0, 1e5), max_size=20),
    failures=st.integers(0, 50),
    low=st.integers(1, 50),
    more=st.integers(0, 500),
)
def test_auto_stays_within_its_bounds_and_gives_the_same_for_the_same_evidence(
    steps: list[float], saves: list[float], failures: int, low: int, more: int
) -> None:
    evidence = Evidence()
    for seconds in steps:
        evidence = evidence.stepped(seconds)
    for seconds in saves:
        evidence = evidence.saved(seconds)
    for _ in range(failures):
        evidence = evidence.failed()
    auto = AutoInterval(min_steps=low, max_steps=low + more)
    assert low <= auto.steps(evidence) <= low + more
    assert auto.steps(evidence) == AutoInterval(min_steps=low, max_steps=low + more).steps(evidence)


@pytest.mark.parametrize(
    ("observed_s", "failures", "expected"),
    [(0.0, 0, 1000.0), (900.0, 0, 2800.0), (900.0, 1, 1400 / 1.5), (3600.0, 4, 4100 / 4.5)],
)
def test_the_mean_time_between_failures_weighs_the_assumption_against_what_was_seen(
    observed_s: float, failures: int, expected: float
) -> None:
    auto = AutoInterval(prior_mtbf_s=1000.0, prior_weight=0.5)
    evidence = Evidence(observed_s=observed_s, failures=failures)
    assert auto.mtbf_s(evidence) == pytest.approx(expected)


def test_auto_divides_the_interval_by_the_time_of_a_step_and_keeps_to_its_bounds() -> None:
    auto = AutoInterval(prior_mtbf_s=3600.0, prior_weight=1.0, min_steps=3, max_steps=500)
    saved = Evidence(steps=1, step_s=2.0, saves=1, save_s=60.0)
    assert auto.steps(saved) == 309, "617.9 s of training"
    assert auto.steps(Evidence(steps=1, step_s=2.0)) == 59, "a save is taken to cost 2 s"
    assert auto.steps(Evidence(steps=1, step_s=1e6, saves=1, save_s=60.0)) == 3
    assert auto.steps(Evidence(steps=1, step_s=0.01, saves=1, save_s=60.0)) == 500
    assert auto.steps(Evidence()) == 500
    assert auto.steps(Evidence(steps=1, step_s=0.0)) == 500


SLOW = Evidence(steps=9, step_s=20.0, saves=1, save_s=60.0, observed_s=1e6)


@pytest.mark.parametrize(
    ("evidence", "limit_s"),
    [(Evidence(), 415.0), (SLOW, 1800.0), (Evidence(saves=1, save_s=60.0, observed_s=1e6), 1800.0)],
)
def test_auto_lets_no_more_than_its_limit_pass_and_is_safe_before_it_has_timed_a_step(
    evidence: Evidence, limit_s: float
) -> None:
    auto = AutoInterval()
    for passed_s, due in ((limit_s - 1, False), (limit_s + 1, True)):
        moment = Moment(step=3, now_s=7.0 + passed_s, last_step=2, last_s=7.0, evidence=evidence)
        assert auto.decide(moment).due is due
    assert auto.steps(SLOW) == 90, "1800 s of steps that take 20 s, where 12.8 h would be waited"
    assert not AutoInterval(min_steps=2).decide(Moment(1, 1e9)).due
    assert AutoInterval(max_s=60.0).decide(Moment(1, 61.0, evidence=SLOW)).due


@pytest.mark.parametrize(
    ("moment", "said"),
    [
        (
            Moment(0, 0, last_step=117, evidence=Evidence(9, 8.1, 2, 0.8, 0, 0.0)),
            "next save 149, every 32 steps: a save costs 0.8 s, a fault is expected each 12 h",
        ),
        (
            Moment(0, 0, evidence=Evidence(9, 700.0, failures=9)),
            (
                "next save 1, every step: a save costs 2 s by a first guess, "
                "a fault is expected each 38 min"
            ),
        ),
        (
            Moment(0, 0, evidence=Evidence(9, 1.0, 3, 1234.5, 0, 1e7)),
            "next save 1800, every 1800 steps: a save costs 21 min, a fault is expected each 230 d",
        ),
        (
            Moment(0, 0, last_step=7),
            (
                "next save after 414 s: a save costs 2 s by a first guess, "
                "a fault is expected each 12 h"
            ),
        ),
    ],
)
def test_auto_says_when_it_saves_next_and_why(moment: Moment, said: str) -> None:
    plan = AutoInterval().plan(moment)
    assert plan.words == said
    assert plan.step is None or f"next save {plan.step}," in said
    assert plan_of(AnyOf(AtSteps([3]), AutoInterval()), moment) == plan
    assert plan_of(EverySteps(5), moment) is None


def test_auto_is_due_as_many_steps_after_the_last_save_and_not_one_sooner() -> None:
    auto = AutoInterval(prior_mtbf_s=3600.0, prior_weight=1.0)
    evidence = Evidence(steps=1, step_s=2.0, saves=1, save_s=60.0)
    for last_step, step, due in ((0, 308, False), (0, 309, True), (7, 315, False), (7, 316, True)):
        moment = Moment(step=step, now_s=0.0, last_step=last_step, evidence=evidence)
        assert auto.decide(moment).due == due
    assert not AutoInterval(max_steps=1).decide(Moment(step=5, now_s=0.0, last_step=5)).due


def test_what_was_measured_is_added_up_and_no_time_is_less_than_none() -> None:
    evidence = Evidence().stepped(2.0).stepped(4.0).waited(10.0).saved(3.0).failed().failed()
    assert evidence == Evidence(
        steps=2, step_s=3.0, saves=1, save_s=3.0, failures=2, observed_s=16.0
    )
    assert evidence.stepped(-5.0) == Evidence(
        steps=3, step_s=2.0, saves=1, save_s=3.0, failures=2, observed_s=16.0
    )
    assert evidence.waited(-5.0) == evidence
    assert evidence.saved(-5.0).save_s == 1.5


def test_the_means_follow_a_service_that_becomes_slower() -> None:
    evidence = Evidence()
    for _ in range(50):
        evidence = evidence.saved(1.0)
    for _ in range(50):
        evidence = evidence.saved(9.0)
    assert evidence.save_s == pytest.approx(9.0, rel=0.02)
    assert Evidence().saved(2.0).saved(4.0).save_s == 3.0


# -- from the policy -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "first"),
    [
        ({}, AutoInterval()),
        ({"save_every": 7}, EverySteps(7)),
        ({"strategy": "steps", "save_every": 7}, EverySteps(7)),
        ({"strategy": "last"}, EverySteps(100)),
        ({"strategy": "all", "save_every": 3}, EverySteps(3)),
        ({"strategy": "epoch"}, Meanwhile(EveryEpochs(1), 100)),
        ({"strategy": "epoch", "save_every": 5}, Meanwhile(EveryEpochs(5), 100)),
        (
            {"strategy": "best", "best_metric": "acc", "best_mode": "max"},
            Meanwhile(OnImprovement("acc", "max"), 100, "acc"),
        ),
        (
            {"auto_mtbf_s": 60.0, "auto_min_steps": 2, "auto_max_steps": 9, "auto_max_s": 30.0},
            AutoInterval(prior_mtbf_s=60.0, min_steps=2, max_steps=9, max_s=30.0),
        ),
    ],
)
def test_each_strategy_becomes_its_schedule_and_saves_the_last_step(
    given: dict[str, Any], first: Schedule
) -> None:
    policy = CheckpointPolicy.model_validate(given)
    assert schedule_of(policy) == AnyOf(first, AtEnd())
    assert schedule_of(policy.model_copy(update={"save_at_end": False})) == first
    timed = policy.model_copy(update={"save_every_s": 60.0})
    assert schedule_of(timed) == AnyOf(first, EverySeconds(60.0), AtEnd())


@pytest.mark.parametrize(
    ("given", "pinned", "kept"),
    [
        ({"save_best": False}, (), [6, 5, 4, 3, 2]),
        ({"save_best": False, "keep_last": 2}, (), [6, 5]),
        ({"keep_last": 2}, (), [6, 5, 1]),
        ({"keep_last": 1, "keep_best": 2}, (), [6, 2, 1]),
        ({"keep_last": 1, "best_mode": "max"}, (), [6]),
        ({"keep_last": 0}, (), [1]),
        ({"keep_last": 1, "save_best": False, "keep_every": 3}, (), [6, 3]),
        ({"keep_last": 1, "save_best": False}, ["tinker://a/weights/4"], [6, 4]),
        ({"strategy": "last"}, (), [6, 1]),
        ({"strategy": "last", "save_best": False}, (), [6]),
        ({"strategy": "all"}, (), [6, 5, 4, 3, 2, 1]),
    ],
)
def test_each_policy_keeps_what_it_says(
    given: dict[str, Any], pinned: list[str], kept: list[int]
) -> None:
    held = [Candidate(record(step, metrics={"loss": float(step)})) for step in (6, 5, 4, 3, 2, 1)]
    retention = retention_of(CheckpointPolicy.model_validate(given), pinned=pinned)
    paths = retention.keep(held)
    assert [each.record.step for each in held if each.record.path in paths] == kept
    assert all(paths.values())
    assert isinstance(retention, KeepAll) == (given.get("strategy") == "all")


@pytest.mark.parametrize(("failures", "mean_s"), [(0, 2100.0), (1, 700.0), (3, 300.0)])
def test_the_mean_time_between_failures_counts_what_was_assumed_as_half_a_failure(
    failures: int, mean_s: float
) -> None:
    auto = AutoInterval(prior_mtbf_s=100.0, prior_weight=0.5)
    assert auto.mtbf_s(Evidence(failures=failures, observed_s=1000.0)) == pytest.approx(mean_s)


def test_saving_at_every_step_begins_with_the_first() -> None:
    ledger, schedule, saved = SaveLedger(0, 0.0), EverySteps(1), list[int]()
    for step in range(1, 4):
        if ledger.ask(schedule, step=step, now_s=float(step)).due:
            ledger = ledger.began(step=step, now_s=float(step)).stored(step)
            saved.append(step)
        assert not ledger.ask(schedule, step=step, now_s=float(step)).due, "once is enough"
    assert saved == [1, 2, 3]


class _Broken:
    def __init__(self, answer: object) -> None:
        self._answer = answer

    def decide(self, _: Moment) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


@pytest.mark.parametrize("answer", [RuntimeError("no idea"), True, None])
def test_a_schedule_of_the_users_that_fails_never_ends_a_loop_and_saves_by_steps_meanwhile(
    answer: object,
) -> None:
    schedule = schedule_of(CheckpointPolicy(schedule=_Broken(answer), save_at_end=False))
    assert not schedule.decide(Moment(99, 0.0)).due
    decision = schedule.decide(Moment(100, 0.0))
    assert (decision.due, decision.stands_in) == (True, True)
    assert "_Broken" in decision.reason
    assert ("no idea" if isinstance(answer, Exception) else repr(answer)) in decision.reason


def test_a_schedule_of_the_users_saves_no_step_twice() -> None:
    schedule = schedule_of(CheckpointPolicy(schedule=_Broken(Decision(due=True, reason="always"))))
    assert schedule.decide(Moment(3, 0.0, last_step=2)).due
    assert not schedule.decide(Moment(3, 0.0, last_step=3)).due


def test_an_own_schedule_takes_the_strategys_place_and_the_rest_stays() -> None:
    own = AnyOf(EverySteps(3), EveryEpochs(1))
    policy = CheckpointPolicy(schedule=own, save_every_s=60.0, save_at_steps=(7,))
    schedule = schedule_of(policy)
    due = [step for step in range(1, 10) if schedule.decide(Moment(step, 0, step - 1)).due]
    assert due == [3, 6, 7, 9]
    assert schedule.decide(Moment(4, 61.0, 3)).due
    assert schedule.decide(Moment(4, 0.0, 3, epoch=1)).due
    assert schedule.decide(Moment(4, 0.0, 3, end=True)).due


def test_own_rules_take_the_place_of_the_policys_and_pins_stay() -> None:
    held = [Candidate(record(step)) for step in (6, 5, 4, 3, 2, 1)]
    policy = CheckpointPolicy(retention=KeepEvery(2))
    kept = retention_of(policy, pinned=["tinker://a/weights/1"]).keep(held)
    assert [each.record.step for each in held if each.record.path in kept] == [6, 4, 2, 1]


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (EverySteps, {"n": True}, "n=True"),
        (EverySteps, {"n": 1.5}, "n=1.5"),
        (EverySteps, {"n": "3"}, "n='3'"),
        (EverySteps, {"n": 0}, "n=0"),
        (EveryEpochs, {"n": 0.5}, "n=0.5"),
        (EverySeconds, {"seconds": True}, "seconds=True"),
        (EverySeconds, {"seconds": "1"}, "seconds='1'"),
        (EverySeconds, {"seconds": math.nan}, "seconds=nan"),
        (AtSteps, {"steps": [-3]}, "steps=-3"),
        (AtSteps, {"steps": [5, 0]}, "steps=0"),
        (AtSteps, {"steps": [True]}, "steps=True"),
        (AtSteps, {"steps": [2.5]}, "steps=2.5"),
        (AtSteps, {"steps": 5}, "steps=5"),
        (OnImprovement, {"metric": "loss", "mode": "least"}, "mode='least'"),
        (OnImprovement, {"metric": ""}, "metric=''"),
        (Meanwhile, {"schedule": EveryEpochs(), "n": 0}, "n=0"),
        (AutoInterval, {"min_steps": 1.5}, "min_steps=1.5"),
        (AutoInterval, {"max_steps": True}, "max_steps=True"),
        (AutoInterval, {"prior_save_s": -1}, "prior_save_s=-1"),
        (AutoInterval, {"max_s": 0}, "max_s=0"),
        (KeepLast, {"n": True}, "keep_last=True"),
        (KeepLast, {"n": 2.0}, "keep_last=2.0"),
        (KeepEvery, {"n": "5"}, "keep_every='5'"),
        (KeepBest, {"n": True}, "keep_best=True"),
        (KeepBest, {"mode": "biggest"}, "mode='biggest'"),
        (KeepBest, {"metric": ""}, "metric=''"),
    ],
)
def test_a_schedule_or_rule_that_cannot_work_is_refused_with_the_field_and_its_value(
    kind: Callable[..., object], given: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        kind(**given)


_LEAVES: st.SearchStrategy[Schedule] = st.one_of(
    st.builds(EverySteps, st.integers(1, 9)),
    st.builds(EverySeconds, st.floats(0.5, 9.0)),
    st.builds(EveryEpochs, st.integers(1, 3)),
    st.builds(AtSteps, st.lists(st.integers(1, 30), max_size=4)),
    st.just(OnImprovement("loss")),
    st.just(AtEnd()),
    st.just(AutoInterval()),
)
_SCHEDULES: st.SearchStrategy[Schedule] = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda some: AnyOf(*some)),
        st.builds(Meanwhile, inner, st.integers(1, 5), st.sampled_from([None, "loss"])),
        st.builds(UsersOwn, inner, st.integers(1, 5)),
    ),
    max_leaves=5,
)


@given(
    schedule=_SCHEDULES,
    last_step=st.integers(0, 20),
    steps=st.lists(st.integers(1, 4), min_size=1, max_size=20),
    data=st.data(),
)
def test_no_schedule_is_due_before_the_step_that_it_has_named_whatever_happens_until_then(
    schedule: Schedule, last_step: int, steps: list[int], data: st.DataObject
) -> None:
    step, now_s, epoch, not_before = last_step, 0.0, 0, 0.0
    for more in steps:
        step += more
        now_s += data.draw(st.floats(0, 5))
        epoch += data.draw(st.integers(0, 1))
        metrics = data.draw(st.dictionaries(st.just("loss"), st.floats(-3, 3)))
        moment = Moment(step, now_s, last_step=last_step, epoch=epoch, metrics=metrics)
        decision = schedule.decide(moment)
        if step < not_before:
            assert not decision.due
        if decision.due:
            return
        not_before = max(not_before, decision.not_before)


def test_a_schedule_of_the_users_is_asked_at_each_step_though_it_copies_one_of_ours() -> None:
    class Copying:
        def decide(self, moment: Moment) -> Decision:
            if moment.metrics.get("loss", 9.0) < 1.0:
                return Decision(due=True, reason="low")
            return EverySteps(10).decide(moment)

    policy = CheckpointPolicy(schedule=Copying(), save_at_end=True)
    assert schedule_of(policy).decide(Moment(3, 0.0)).not_before == 0
