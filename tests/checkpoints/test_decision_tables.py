"""Schedules, what is published, and trails: what each decides, case by case."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any, Literal

import pytest
from made import record, segment

from tinker_recovery import CheckpointPolicy, UsageError
from tinker_recovery.checkpoints.ledger import SaveLedger
from tinker_recovery.checkpoints.metadata import JSON_LIMIT, check_format, fitting, number_of
from tinker_recovery.checkpoints.policies import counts_epochs
from tinker_recovery.checkpoints.publishing import (
    MOST_WAITING,
    Candidate,
    Done,
    intentions,
    is_better,
    next_of,
)
from tinker_recovery.checkpoints.schedule import (
    AnyOf,
    AtSteps,
    EveryEpochs,
    EverySteps,
    Meanwhile,
    Moment,
    OnImprovement,
    check_metric,
)
from tinker_recovery.checkpoints.trail import Trail, digest_of, trail_at_start

# -- when to save --------------------------------------------------------------------------------

LOSS = Meanwhile(OnImprovement("loss"), 10, "loss")
EPOCHS = Meanwhile(EveryEpochs(), 10)


@pytest.mark.parametrize(
    ("schedule", "moment", "due", "stands_in"),
    [
        (LOSS, Moment(10, 0), True, True),
        (LOSS, Moment(9, 0), False, False),
        (LOSS, Moment(10, 0, metrics={"other": 1.0}), True, True),
        (LOSS, Moment(9, 0, metrics={"loss": 1.0}), True, False),
        (LOSS, Moment(10, 0, metrics={"loss": 2.0}, lowest={"loss": 1.0}), False, False),
        (LOSS, Moment(10, 0, lowest={"loss": 1.0}), False, False),
        (EPOCHS, Moment(10, 0), True, True),
        (EPOCHS, Moment(10, 0, epoch=0), True, True),
        (EPOCHS, Moment(9, 0, epoch=1), True, False),
        (EPOCHS, Moment(10, 0, epoch=1, last_epoch=1), False, False),
    ],
)
def test_until_there_is_something_to_decide_by_it_is_due_every_so_many_steps(
    schedule: Meanwhile, moment: Moment, *, due: bool, stands_in: bool
) -> None:
    found = schedule.decide(moment)
    assert (found.due, found.stands_in) == (due, stands_in)
    assert found.not_before == 0, "the next moment says anew whether it is able"


def test_an_inner_schedule_that_names_a_step_is_asked_before_it_all_the_same() -> None:
    able = Moment(5, 0, metrics={"loss": 1.0})
    assert EverySteps(4).decide(able).not_before == 8
    assert Meanwhile(EverySteps(4), 10, "loss").decide(able).not_before == 0


@pytest.mark.parametrize(
    ("step", "following"), [(1, 4), (4, 9), (5, 9), (8, 9), (9, math.inf), (10, math.inf)]
)
def test_the_next_of_some_steps_is_the_first_that_is_still_to_come(
    step: int, following: float
) -> None:
    assert AtSteps([9, 4]).decide(Moment(step, 0, last_step=step)).not_before == following


@pytest.mark.parametrize("step", [1, 3, 4, 7])
def test_the_next_multiple_is_the_first_beyond_a_step(step: int) -> None:
    found = EverySteps(4).decide(Moment(step, 0, last_step=step))
    assert found.not_before == (4 if step < 4 else 8)


@pytest.mark.parametrize(
    "schedule", [EveryEpochs(), OnImprovement("loss"), OnImprovement("loss", "max")]
)
def test_no_step_is_saved_twice(schedule: Any) -> None:
    known: dict[str, Any] = {"epoch": 3, "metrics": {"loss": 1.0}}
    assert schedule.decide(Moment(5, 0, last_step=4, **known)).due
    assert not schedule.decide(Moment(5, 0, last_step=5, **known)).due


@pytest.mark.parametrize("metric", ["", None, 7])
def test_a_metric_has_a_name(metric: object) -> None:
    with pytest.raises(UsageError, match="it has to be a metric's name"):
        check_metric(metric, "min")


def test_a_save_whose_answer_comes_late_counts_towards_both_extremes() -> None:
    ledger = SaveLedger(0, 0.0)
    for step, loss in ((1, 1.0), (2, 5.0), (3, 3.0)):
        ledger = ledger.began(step=step, now_s=0.0, metrics={"loss": loss})
    for step in (3, 2, 1):
        ledger = ledger.stored(step)
    assert (ledger.lowest, ledger.highest) == ({"loss": 1.0}, {"loss": 5.0})
    assert (ledger.last_step, ledger.in_flight) == (3, ())


@pytest.mark.parametrize(
    ("version", "says"),
    [("0", "the one this version knows"), ("01", "knows"), ("x", "knows"), ("99", "update")],
)
def test_only_a_newer_format_asks_for_an_update(version: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        check_format(version)
    assert ("update" in str(caught.value)) == (says == "update")


@pytest.mark.parametrize(
    ("policy", "counts"),
    [
        ({"strategy": "epoch"}, True),
        ({}, False),
        ({"schedule": EveryEpochs(2)}, True),
        ({"schedule": Meanwhile(EveryEpochs(), 5)}, True),
        ({"schedule": AnyOf(AtSteps([3]), EveryEpochs())}, True),
        ({"schedule": AnyOf(AtSteps([3]), EverySteps(2))}, False),
        ({"schedule": LOSS}, False),
    ],
)
def test_a_policy_counts_epochs_if_any_part_of_its_schedule_does(
    policy: dict[str, Any], *, counts: bool
) -> None:
    assert counts_epochs(CheckpointPolicy(**policy)) is counts


# -- what metrics are stored ---------------------------------------------------------------------


class _Scalar:
    def item(self) -> float:
        return 2.5


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1.0),
        (Decimal("0.5"), 0.5),
        (True, 1.0),
        (_Scalar(), 2.5),
        ("1", None),
        (b"1", None),
        (bytearray(b"1"), None),
        (None, None),
        ([1.0], None),
        (10**400, None),
    ],
)
def test_a_number_of_any_kind_is_taken_and_a_text_is_none(
    value: object, number: float | None
) -> None:
    assert number_of(value) == number


def test_as_many_metrics_are_stored_as_fit_and_the_one_to_choose_by_first() -> None:
    fits, too_long = "b" * (JSON_LIMIT - 17), "b" * (JSON_LIMIT - 16)
    assert fitting({fits: 1.0, "a": 1.0}, "a") == ({"a": 1.0, fits: 1.0}, [])
    kept, left_out = fitting({too_long: 1.0, "z": 3.0, "a": 1.0}, "a")
    assert (list(kept), left_out) == (["a"], [too_long, "z"]), "nothing behind what does not fit"
    assert fitting({"y": 1.0, "x": 2.0}, "none") == ({"y": 1.0, "x": 2.0}, [])


# -- what is published ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "than", "by_min", "by_max"),
    [
        (1.0, 2.0, True, False),
        (2.0, 1.0, False, True),
        (1.0, 1.0, False, False),
        (1.0, math.nan, True, True),
        (math.nan, 1.0, False, False),
        (math.nan, math.nan, False, False),
    ],
)
def test_a_number_is_better_than_none_and_equal_ones_are_not(
    value: float, than: float, *, by_min: bool, by_max: bool
) -> None:
    assert is_better(value, than, "min") is by_min
    assert is_better(value, than, "max") is by_max


@pytest.mark.parametrize(
    ("before", "value", "after"),
    [(None, None, None), (None, 2.0, 2.0), (1.0, None, 1.0), (1.0, 2.0, 1.0), (3.0, 2.0, 2.0)],
)
def test_of_what_was_published_the_best_value_and_the_most_steps_are_kept(
    before: float | None, value: float | None, after: float | None
) -> None:
    assert Done(5, before).and_also(Candidate("p", 3, value), "min") == Done(5, after)
    assert Done(5, before).and_also(Candidate("p", 9, value), "min") == Done(9, after)


def _wanted(
    *steps: int,
    waiting: tuple[int, ...] = (),
    done: int = -1,
    publish: Literal["end", "best", "each"] = "each",
    ended: bool = False,
) -> tuple[list[int], list[int]]:
    made = {step: Candidate(f"p{step:03}", step, float(step)) for step in (*steps, *waiting)}
    found = intentions(
        [made[step] for step in steps],
        {made[step].path: made[step] for step in waiting},
        Done(done),
        publish=publish,
        ended=ended,
    )
    return [each.step for each in found.add], [int(each[1:]) for each in found.drop]


def test_what_is_beyond_all_that_is_done_or_waits_is_published_the_fewest_steps_first() -> None:
    assert _wanted(10, 9, 2) == ([2, 9, 10], [])
    assert _wanted(10, 9, 2, done=9) == ([10], [])
    assert _wanted(10, 9, 2, waiting=(3, 9)) == ([10], [])
    assert _wanted(10, 9, 2, waiting=(1,), done=9) == ([10], [])


def test_the_end_is_published_once_it_is_there_in_place_of_an_earlier_one() -> None:
    assert _wanted(3, 4, publish="end") == ([], [])
    assert _wanted(3, 4, publish="end", ended=True) == ([4], [])
    assert _wanted(3, 4, waiting=(2,), publish="end") == ([], [])
    assert _wanted(3, 4, waiting=(2,), publish="end", ended=True) == ([4], [2])
    assert _wanted(waiting=(2,), publish="end", ended=True) == ([], [])


def test_of_too_many_that_wait_the_oldest_are_left_out() -> None:
    many = range(1, MOST_WAITING + 3)
    assert _wanted(*many) == (list(many)[2:], [])
    assert _wanted(many[-1], waiting=tuple(many[:-1])) == ([many[-1]], [1, 2])


def test_a_value_that_is_no_number_is_never_the_best() -> None:
    for value in (None, math.nan):
        found = intentions([Candidate("p", 1, value)], {}, Done(), publish="best", ended=True)
        assert found.add == ()


def test_of_one_step_the_first_by_path_is_published() -> None:
    pair = [Candidate("b", 1), Candidate("a", 1)]
    for order in (pair, pair[::-1]):
        assert next_of([*order, Candidate("0", 2)]) == Candidate("a", 1)
        found = intentions(order, {}, Done(), publish="each", ended=False)
        assert found.add == (Candidate("a", 1),)
    assert next_of([]) is None


# -- trails --------------------------------------------------------------------------------------


def test_a_digest_tells_where_one_text_ends_and_the_next_begins() -> None:
    assert digest_of("ab", "c") != digest_of("a", "bc")
    assert digest_of("ab", "c") == digest_of("ab", "c")


def test_a_save_at_the_very_beginning_of_a_first_attempt_has_its_trail_and_no_other_has() -> None:
    def at_start(began_at: int | None, *, exact: bool = True, parent: str | None = None) -> str:
        saved = record(5, parent=parent)
        return trail_at_start(segment("b"), saved, exact=exact, began_at=began_at)

    fresh = trail_at_start(segment("a"), None, exact=True, began_at=None)
    assert at_start(5) == fresh
    others = {at_start(4), at_start(None), at_start(5, parent="tinker://z/weights/5")}
    assert len(others) == 1
    assert fresh not in others
    assert at_start(5, exact=False) not in {fresh, *others}


def test_what_is_followed_late_is_like_no_other_if_anything_went_before() -> None:
    assert Trail("x", step=0, follows=False).followed is None
    early = Trail("x", step=0, follows=False)
    early.follow()
    assert early.followed == "x", "nothing went before"

    def passes(trail: Trail) -> None:
        trail.passed("forward")

    def steps(trail: Trail) -> None:
        trail.stepped(skipped=False)

    for go in (passes, steps):
        late = Trail("x", step=0, follows=False)
        go(late)
        late.follow()
        assert late.followed not in {None, "x"}
        known = Trail("x", step=0, follows=True)
        go(known)
        before = known.followed
        known.follow()
        assert known.followed == before, "it has followed all along"


def test_a_step_is_of_the_requests_since_the_last_one_and_one_left_out_is_another() -> None:
    def after(*steps: tuple[bool, bool, bool]) -> tuple[int, str]:
        trail = Trail("x", step=3, follows=True)
        for passes, skipped, ends in steps:
            if passes:
                trail.passed("forward", 1)
            trail.stepped(skipped=skipped, ends=ends)
        return trail.position()

    assert after((True, False, True)) == after((True, False, True))
    assert after((True, False, True))[1] != after((True, True, True))[1]
    assert after((True, False, True), (False, False, True)) != after(
        (True, False, True), (True, False, True)
    )
    assert [after((True, False, ends))[0] for ends in (True, False)] == [4, 3]
    trail = Trail(after((True, False, True))[1], step=4, follows=True)
    trail.stepped(skipped=False)
    assert trail.position() == after((True, False, True), (False, False, True))
