from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import LINEAGE, NOW, listed, path, record, segment

from tinker_recovery import UsageError
from tinker_recovery.checkpoints import DeletionPlan, Listed, Situation, plan_deletions
from tinker_recovery.checkpoints.retention import (
    Candidate,
    KeepAll,
    KeepAny,
    KeepBest,
    KeepEvery,
    KeepIf,
    KeepLast,
    KeepPinned,
    Retention,
)
from tinker_recovery.checkpoints.validation import EXPIRY_MARGIN

NAN = math.nan


def _held(losses: Mapping[int, float | None]) -> list[Candidate]:
    return [
        Candidate(record(step, metrics={} if loss is None else {"loss": loss}))
        for step, loss in sorted(losses.items(), reverse=True)
    ]


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (KeepAll(), [6, 5, 4, 3, 2, 1]),
        (KeepLast(2), [6, 5]),
        (KeepLast(99), [6, 5, 4, 3, 2, 1]),
        (KeepBest(1), [4]),  # 2 and 4 are equally good: the one with more steps
        (KeepBest(3), [4, 2, 1]),
        (KeepBest(9), [6, 4, 2, 1]),  # NaN and a missing one are never among the best
        (KeepBest(1, mode="max"), [6]),
        (KeepBest(1, "accuracy"), []),
        (KeepEvery(3), [6, 3]),
        (KeepPinned({path("a", 5)}), [5]),
        (KeepIf(lambda each: each.step == 2), [2]),
        (KeepAny(KeepLast(1), KeepEvery(3), KeepBest(1)), [6, 4, 3]),
    ],
)
def test_each_rule_keeps_what_it_says(rule: Retention, kept: list[int]) -> None:
    held = _held({1: 2.0, 2: 1.0, 3: NAN, 4: 1.0, 5: None, 6: 3.0})
    reasons = rule.keep(held)
    assert [each.record.step for each in held if each.record.path in reasons] == kept
    assert all(reasons.values())


@pytest.mark.parametrize(
    ("losses", "kept"),
    [
        ({1: None, 2: None, 3: None}, [3, 2, 1]),
        ({1: NAN, 2: NAN, 3: math.inf}, [3, 2, 1]),
        ({1: NAN, 2: 5.0, 3: None}, [2]),
        ({1: 4.0, 2: 5.0, 3: 6.0}, [1]),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_with_nothing_to_choose_the_best_by_all_stay_unless_another_rule_keeps_some(
    losses: dict[int, float | None], kept: list[int], *, alone: bool
) -> None:
    held = _held(losses)
    reasons = KeepBest(1, alone=alone).keep(held)
    if len(kept) == 3 and not alone:
        kept = []
    assert [each.record.step for each in held if each.record.path in reasons] == kept


def test_what_does_not_count_fills_no_place_but_can_be_pinned() -> None:
    held = [Candidate(record(3), counts=False), Candidate(record(2)), Candidate(record(1))]
    assert list(KeepLast(1).keep(held)) == [path("a", 2)]
    assert list(KeepPinned({path("a", 3)}).keep(held)) == [path("a", 3)]


@pytest.mark.parametrize(
    ("saved", "every", "kept"),
    [
        ([30, 60, 90, 120, 150, 180, 210, 240], 100, [120, 210]),
        ([0, 7, 14], 10, [0, 14]),
        ([7, 14], 10, [14]),
        # Of a save that comes late, one is kept for all the multiples that it stands for.
        ([100, 390, 410, 520], 100, [100, 390, 410, 520]),
        ([100, 390, 395, 410], 100, [100, 390, 410]),
    ],
)
def test_beside_a_schedule_that_never_lands_on_its_multiples_the_first_save_after_each_is_kept(
    saved: list[int], every: int, kept: list[int]
) -> None:
    held = [Candidate(record(step)) for step in sorted(saved, reverse=True)]
    reasons = KeepEvery(every).keep(held)
    assert [each.record.step for each in reversed(held) if each.record.path in reasons] == kept
    assert all(reasons.values())


@given(
    steps=st.sets(st.integers(0, 300), max_size=40),
    every=st.integers(1, 50),
    at=st.lists(st.integers(0, 300), max_size=5),
)
def test_what_is_kept_of_each_interval_does_not_depend_on_when_the_rest_was_deleted(
    steps: set[int], every: int, at: list[int]
) -> None:
    def kept(found: set[int]) -> set[int]:
        held = [Candidate(record(step)) for step in sorted(found, reverse=True)]
        reasons = KeepEvery(every).keep(held)
        return {each.record.step for each in held if each.record.path in reasons}

    stored = set[int]()
    for step in sorted(steps):
        stored.add(step)
        if step in at:
            stored = kept(stored)
    assert kept(stored) == kept(steps)
    assert {step for step in steps if step % every == 0} <= kept(steps)


@pytest.mark.parametrize("kept", [[path("a", 3)], {path("a", 3)}, None, True])
def test_a_rule_of_the_users_that_gives_no_reasons_stops_the_plan_and_is_named(
    kept: object,
) -> None:
    class Broken:
        def keep(self, _: object) -> Any:
            return kept

    with pytest.raises(UsageError, match=r"Broken.*a mapping of paths to reasons"):
        _plan([listed(1), listed(3)], KeepAny(Broken()))


def test_every_rule_that_keeps_one_is_named() -> None:
    reasons = KeepAny(KeepLast(1), KeepEvery(3)).keep(_held({3: None}))
    assert reasons == {path("a", 3): "among the last 1, at a multiple of 3 steps"}


@pytest.mark.parametrize(
    "build",
    [
        *(lambda: KeepLast(0), lambda: KeepBest(0), lambda: KeepEvery(0), KeepAny),
        lambda: KeepLast(n=True),
        lambda: KeepLast(1.5),  # type: ignore[arg-type]  # refused, as it should be
        lambda: KeepBest(1, ""),
        lambda: KeepBest(1, "loss", "least"),  # type: ignore[arg-type]  # the same
    ],
)
def test_a_rule_that_would_keep_nothing_is_refused(build: Any) -> None:
    with pytest.raises(UsageError):
        build()


# -- the plan ------------------------------------------------------------------------------------


def _plan(
    found: list[Listed], rule: Retention | None = None, valid: Any = "all", **known: Any
) -> DeletionPlan:
    trusted = {each.path for each in found} if valid == "all" else {path("a", s) for s in valid}
    given = {"lineage": LINEAGE, "now": NOW, "valid": trusted, **known}
    return plan_deletions(found, rule or KeepLast(1), Situation(**given))


def _steps(plan: DeletionPlan) -> list[int | None]:
    return [each.step for each in plan.deletions]


def test_what_no_rule_keeps_is_deleted_oldest_first_and_the_bytes_are_counted() -> None:
    plan = _plan([listed(step) for step in (3, 1, 4, 2)] + [listed(0, size_bytes=None)])
    assert _steps(plan) == [0, 1, 2, 3]
    assert sum(each.size_bytes or 0 for each in plan.deletions) == 30
    assert [each.step for each in plan.checkpoints] == [4, 3, 2, 1, 0]
    assert {each.reason for each in plan.deletions} == {"no rule keeps it"}
    assert plan.kept[0].reason == "the newest valid one"


P3 = path("a", 3)


@pytest.mark.parametrize(
    ("third", "known", "why"),
    [
        (listed(3), {"protected": {P3: "being read"}}, "in use: being read"),
        (listed(3), {"pending": {P3}}, "its metric is not known yet"),
        (listed(3, public=True), {}, "published"),
        (listed(3, saved_by="user"), {}, "saved by the user"),
        (listed(3, lineage="theirs"), {}, "another run, lineage theirs"),
        (
            Listed(P3, None, "it has no tinker_recovery metadata", 10),
            {},
            "not ours to delete: it has no tinker_recovery metadata",
        ),
        (listed(3, expires_in_s=60), {}, "expired"),
        (listed(3), {"segments": [segment("b", 3, P3)]}, "not part of the run's known history"),
        (
            listed(3),
            {"segments": [segment("a"), segment("b", 3, P3)]},
            "the run was recovered from it",
        ),
    ],
)
def test_some_are_never_deleted_whatever_the_rules_say(
    third: Listed, known: dict[str, Any], why: str
) -> None:
    plan = _plan([third, listed(9), listed(9, "b")], valid=[9], **known)
    each = next(each for each in plan.checkpoints if each.path == P3)
    assert not each.delete
    assert why in each.reason


def test_the_users_own_saves_are_deleted_only_if_that_is_allowed_and_fill_no_place() -> None:
    found = [listed(1), listed(2), listed(3, saved_by="user")]
    assert _steps(_plan(found)) == [1]
    assert _steps(_plan(found, delete_user_saves=True)) == [1, 2]


def test_nothing_is_deleted_while_no_checkpoint_is_known_to_be_valid() -> None:
    plan = _plan([listed(1), listed(2), listed(3)], valid=[])
    assert _steps(plan) == []
    assert "no other checkpoint is known to be valid and to last" in plan.checkpoints[-1].reason


def test_the_newest_valid_one_stays_behind_newer_ones_of_unknown_validity() -> None:
    assert _steps(_plan([listed(s) for s in (1, 2, 3, 4)], valid=[1, 2])) == [1, 3]


def test_one_that_expires_soon_is_not_relied_on_as_the_only_copy() -> None:
    soon = listed(4, expires_in_s=3600)
    plan = _plan([listed(1), listed(2), soon])
    assert _steps(plan) == [1]
    assert _steps(_plan([listed(1, expires_in_s=7200), soon])) == []
    assert _steps(_plan([listed(1), soon], lasting=timedelta(minutes=30))) == [1]


def test_a_bad_one_fills_no_place_and_goes_once_a_valid_one_has_come_as_far() -> None:
    bad = {path("a", 3): "zero tail"}
    early = _plan([listed(1), listed(2), listed(3)], valid=[1, 2], bad=bad)
    assert _steps(early) == [1]
    assert "no valid checkpoint has reached step 3 yet" in early.checkpoints[0].reason
    later = _plan([listed(2), listed(3), listed(4)], valid=[2, 4], bad=bad)
    assert {each.step: each.reason for each in later.deletions}[3] == "bad: zero tail"


def test_a_bad_one_goes_once_another_has_come_just_as_far_though_it_is_in_doubt_as_well() -> None:
    bad = {path("a", 3): "zero tail"}
    found = [listed(2), listed(3), listed(3, "b")]
    valid = {path("a", 2), path("b", 3)}
    for doubtful in ((), set(bad)):
        plan = _plan(found, KeepLast(9), valid=(), bad=bad, doubtful=doubtful)
        assert _steps(plan) == []
        situation = Situation(LINEAGE, NOW, valid=valid, bad=bad, doubtful=doubtful)
        assert [each.path for each in plan_deletions(found, KeepLast(9), situation).deletions] == [
            path("a", 3)
        ]


def test_an_abandoned_branch_goes_once_the_run_has_passed_it_again() -> None:
    # a reached 1660; b went on from 1615.
    segments = [segment("a"), segment("b", 1615, path("a", 1615))]
    found = [listed(step) for step in (1600, 1615, 1640, 1660)] + [listed(1645, "b")]
    plan = _plan(found, KeepLast(2), segments=segments)
    assert _steps(plan) == [1600, 1640]
    assert "abandoned" in plan.deletions[-1].reason
    assert _steps(_plan([*found, listed(1665, "b")], KeepLast(2), segments=segments)) == [
        1600,
        1640,
        1660,
    ]


def test_one_that_is_being_deleted_is_never_relied_on() -> None:
    found = [listed(1), listed(2), listed(3)]
    plan = _plan(found, being_deleted={path("a", 3)})
    assert [(each.step, each.reason) for each in plan.deletions] == [(1, "no rule keeps it")]
    later = _plan([*found, listed(4)], being_deleted={path("a", 3)})
    assert later.deletions[-1].reason == "its deletion has begun"


def test_one_listed_twice_with_different_facts_is_left_alone() -> None:
    found = [listed(1), listed(1, size_bytes=11), listed(2)]
    plan = _plan(found)
    assert _steps(plan) == []
    assert plan == _plan(found[::-1])
    assert "listed twice" in plan.checkpoints[-1].reason
    # Neither listing's step is shown, whichever came first.
    contradictory = _plan([listed(1), Listed(path("a", 1), None, "unreadable", 10), listed(2)])
    assert [(each.step, each.size_bytes) for each in contradictory.checkpoints] == [
        (2, 10),
        (None, None),
    ]
    assert _steps(_plan([listed(1), listed(1), listed(2)])) == [1]


def test_what_a_predicate_raises_stops_the_plan() -> None:
    def broken(_: object) -> bool:
        raise RuntimeError("no idea")

    with pytest.raises(RuntimeError, match="no idea"):
        _plan([listed(1)], KeepIf(broken))


def test_one_in_doubt_fills_no_place_and_stays_until_that_is_over() -> None:
    found = [listed(step, metrics={"loss": 9.0 - step}) for step in (1, 2, 3, 4)]
    rule = KeepAny(KeepLast(1), KeepBest(1))
    plan = _plan(found, rule, doubtful={path("a", 3), path("a", 4)})
    assert _steps(plan) == [1]
    assert plan.checkpoints[0].reason == "not yet known to be sound"
    assert _steps(_plan(found, rule)) == [1, 2, 3]


def test_nothing_is_deleted_while_every_valid_one_is_in_doubt() -> None:
    plan = _plan([listed(1), listed(2), listed(3)], valid=[3], doubtful={path("a", 3)})
    assert _steps(plan) == []


ACTS = st.sampled_from(["save", "save", "save", "known to be sound", "fault"])


@given(acts=st.lists(st.tuples(ACTS, st.integers(1, 4)), max_size=40), n=st.integers(1, 4))
def test_whatever_fails_next_the_last_ones_before_it_are_still_there(
    acts: list[tuple[str, int]], n: int
) -> None:
    segments = [segment("r0")]
    stored: dict[str, Listed] = {}
    branch: list[tuple[int, str]] = []
    step = sound = 0
    for act, by in acts:
        run = segments[-1].run_id
        if act == "save":
            step += by
            branch.append((step, path(run, step)))
            stored[path(run, step)] = listed(step, run)
        elif act == "known to be sound":
            sound = min(step, sound + 2 * by)
        else:
            # A fault takes all that was in doubt, or less.
            branch = [(at, each) for at, each in branch if at < sound + by]
            assert {each for _, each in branch[-n:]} <= stored.keys()
            step, parent = branch[-1] if branch else (0, None)
            sound = step
            run = f"r{len(segments)}"
            segments.append(segment(run, step, parent))
        doubtful = {
            each.path
            for each in stored.values()
            if each.record and each.record.run_id == run and each.record.step > sound
        }
        situation = Situation(
            LINEAGE, NOW, segments, valid=set(stored) - doubtful, doubtful=doubtful
        )
        for gone in plan_deletions(stored.values(), KeepLast(n), situation).deletions:
            del stored[gone.path]


RULES = st.sampled_from(
    [
        KeepLast(1),
        KeepLast(3),
        KeepBest(2),
        KeepEvery(4),
        KeepIf(lambda _: False),
        KeepAny(KeepLast(1), KeepBest(1, mode="max")),
    ]
)
FOUND = st.lists(
    st.builds(
        listed,
        st.integers(0, 9),
        st.sampled_from("abc"),
        lineage=st.sampled_from([LINEAGE, LINEAGE, LINEAGE, "theirs"]),
        saved_by=st.sampled_from(["schedule", "schedule", "user"]),
        metrics=st.dictionaries(st.just("loss"), st.floats() | st.sampled_from([1.0, 2.0])),
        expires_in_s=st.none() | st.sampled_from([-1.0, 60.0, 3600.0, 1e6]),
        public=st.sampled_from([False, False, False, True]),
        # Clocks jump: when a checkpoint was stored says nothing about its step.
        time=st.integers(-3, 3).map(lambda hours: NOW + timedelta(hours=hours)),
    ),
    max_size=12,
    unique_by=lambda each: each.path,
)
SEGMENTS = st.sampled_from(
    [
        [],
        [segment("a")],
        [segment("a"), segment("b", 5, path("a", 5))],
        [segment("a"), segment("b", 5, path("a", 5)), segment("c", 3, path("a", 3))],
    ]
)


@given(found=FOUND, rule=RULES, segments=SEGMENTS, data=st.data())
def test_no_history_loses_its_last_valid_one_or_anything_not_ours(
    found: list[Listed], rule: Retention, segments: list[Any], data: st.DataObject
) -> None:
    paths = [each.path for each in found]
    some = st.sets(st.sampled_from(paths)) if paths else st.just(set())
    bad = data.draw(some)
    valid = data.draw(some) - bad
    protected = data.draw(some)
    pending = data.draw(some)
    being_deleted = data.draw(some)
    doubtful = data.draw(some)
    situation = Situation(
        LINEAGE,
        NOW,
        segments,
        valid,
        dict.fromkeys(bad, "bad"),
        dict.fromkeys(protected, "read"),
        pending,
        being_deleted,
        doubtful,
    )
    plan = plan_deletions(found, rule, situation)
    shuffled = data.draw(st.permutations(found))
    assert plan_deletions(shuffled, rule, situation) == plan
    assert sorted(each.path for each in plan.checkpoints) == sorted(paths)
    assert all(each.reason for each in plan.checkpoints)
    gone = {each.path for each in plan.deletions}
    assert not gone & (protected | pending)
    for each in found:
        if each.path in gone:
            assert each.record is not None
            assert each.record.lineage == LINEAGE
            assert each.record.saved_by == "schedule"
            assert not each.record.public
    if gone:
        left = [
            each
            for each in found
            if each.path in valid - gone - being_deleted - doubtful
            and each.record is not None
            and each.record.lineage == LINEAGE
            and (each.record.expires_at is None or each.record.expires_at > NOW + timedelta(days=1))
        ]
        assert left, "nothing valid and lasting is left"


@given(
    losses=st.dictionaries(st.integers(0, 50), st.floats() | st.none(), min_size=1),
    n=st.integers(1, 4),
    mode=st.sampled_from(["min", "max"]),
)
def test_the_best_stay_among_the_best(losses: dict[int, float | None], n: int, mode: Any) -> None:
    held = _held(losses)
    kept = {
        each.record.step for each in held if each.record.path in KeepBest(n, mode=mode).keep(held)
    }
    finite = {
        step: loss for step, loss in losses.items() if loss is not None and math.isfinite(loss)
    }
    assert len(kept) == min(n, len(finite))
    sign = 1 if mode == "min" else -1
    for step in set(finite) - kept:
        assert all(sign * finite[best] <= sign * finite[step] for best in kept)


@pytest.mark.parametrize(
    ("expires_in_s", "deleted"),
    [(-60, [1]), (EXPIRY_MARGIN.total_seconds(), [1]), (3 * 86_400, [1, 2])],
)
def test_one_that_has_expired_fills_no_place(expires_in_s: float, deleted: list[int]) -> None:
    found = [listed(1), listed(2), listed(3), listed(4, expires_in_s=expires_in_s)]
    assert _steps(_plan(found, KeepLast(2))) == deleted


@pytest.mark.parametrize(("more_s", "deleted"), [(0, [1]), (1, [1, 2])])
def test_the_only_copy_relied_on_lives_for_more_than_a_day(more_s: int, deleted: list[int]) -> None:
    found = [listed(1), listed(2), listed(4, expires_in_s=86_400 + more_s)]
    assert _steps(_plan(found)) == deleted
