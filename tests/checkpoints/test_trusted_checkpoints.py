"""Which stored checkpoints of a run are trusted, how far, and what becomes of them: by example."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from made import path, record, segment

from tinker_recovery import RecoveryPolicy
from tinker_recovery.checkpoints import Deletion
from tinker_recovery.checkpoints.canary import Match
from tinker_recovery.checkpoints.prompt import digest_of, prompt_of
from tinker_recovery.recovery.checkpoint_state import CheckpointState

NOW_S = 1e9


def saved(run: str, step: int) -> str:
    """The path of a save of the schedule's."""
    return f"tinker://{run}/weights/step-{step:08d}"


BRANCH = [segment("a"), segment("b", 4, saved("a", 4))]
"""The first attempt reached step 6, and the second one went back to 4."""


def stored() -> CheckpointState:
    known = CheckpointState("run")
    steps = {"a": (2, 4, 6), "b": (6, 8), "gone": (3, 99)}
    known.stored = {saved(run, each): (run, each) for run, all_ in steps.items() for each in all_}
    return known


def settled(known: CheckpointState) -> dict[int, list[str]]:
    found = known.settled_on(BRANCH)
    return {step: [each.split("/")[2] for each in paths] for step, paths in found.items()}


WHOLE = {2: ["a"], 4: ["a"], 6: ["b"], 8: ["b"]}


def test_what_stays_trusted_is_on_the_branch_within_all_that_was_said_of_its_attempt() -> None:
    known = stored()
    assert settled(known) == WHOLE
    known.watch({"a": 3.0, "b": 9.0}.__getitem__, {"a": 9.0, "b": 7.0}.__getitem__, set)
    assert settled(known) == {2: ["a"], 6: ["b"]}
    assert (known.trusted_to("a"), known.settled_to("a")) == (3.0, 3.0)
    assert (known.trusted_to("b"), known.settled_to("b")) == (9.0, 7.0)
    known.distrust("b", 6.0)
    assert settled(known) == {2: ["a"], 6: ["b"]}, "that step itself is sound"
    known.distrust("b", 8.0)
    assert known.trusted_to("b") == 6.0, "what was distrusted once stays so"
    known.distrust("b", 5.0)
    assert settled(known) == {2: ["a"]}
    known.bad[saved("a", 2)] = "zero tail"
    assert settled(known) == {}


def test_of_two_saves_of_one_step_both_stay_trusted() -> None:
    known = stored()
    known.stored[path("b", 8)] = "b", 8
    assert settled(known) == {**WHOLE, 8: ["b", "b"]}


@pytest.mark.parametrize(
    ("newest_to", "expected"),
    [(math.inf, ("b", 8)), (8, ("b", 8)), (7, ("b", 6)), (6, ("b", 6)), (5, ("a", 4))],
)
def test_the_newest_is_that_of_the_newest_attempt_up_to_a_step_and_else_of_the_one_before(
    newest_to: float, expected: tuple[str, int]
) -> None:
    known = stored()
    assert known.newest_trusted(BRANCH, newest_to=newest_to) == saved(*expected)


def test_the_newest_is_within_what_is_trusted_and_may_not_be_written_again() -> None:
    known = stored()
    assert known.newest_trusted(BRANCH) == saved("b", 8)
    known.distrust("b", 6.0)
    assert known.newest_trusted(BRANCH) == saved("b", 6)
    known.watch(lambda _: math.inf, lambda _: math.inf, lambda: {saved("b", 6)})
    assert known.newest_trusted(BRANCH) == saved("a", 4)
    known.being_deleted[saved("a", 4)] = "begun"
    assert known.newest_trusted(BRANCH) == saved("a", 2)
    known.skipped[saved("a", 2)] = "does not load"
    assert known.newest_trusted(BRANCH) is None
    assert known.newest_trusted([]) is None
    assert CheckpointState("run").newest_trusted(BRANCH) is None


def test_a_save_of_step_0_is_trusted_as_any_other() -> None:
    known = CheckpointState("run")
    known.stored = {saved("a", 0): ("a", 0)}
    assert known.newest_trusted([segment("a")]) == saved("a", 0)
    assert known.settled_on([segment("a")]) == {0: [saved("a", 0)]}


def test_the_end_of_a_lifetime_is_said_of_what_the_schedule_saved_once_it_is_there() -> None:
    known, mine, theirs = CheckpointState("run"), saved("a", 5), path("a", 6)
    assert known.ended(mine, now_s=9 * NOW_S) is None, "how long it lives is not known"
    for each in (mine, theirs):
        known.note_lifetime(each, NOW_S)
    assert known.ended(mine, now_s=NOW_S - 1) is None
    assert "ended at 2001-09-09 01:46:40" in (known.ended(mine, now_s=NOW_S) or "")
    assert known.ended(theirs, now_s=NOW_S) is None, "that is for the user to say"


def test_what_a_policy_says_of_the_canary_holds_for_a_run_of_it() -> None:
    prompt = prompt_of([1, 2, 3])
    policy = RecoveryPolicy(canary=prompt, canary_tolerance=0.5)
    known = CheckpointState.by(policy, "run", "mine")
    assert known.run == "run"
    facts = known.prompt_facts()
    assert facts is not None
    assert facts.digest == digest_of(prompt)
    known.note_canary("a", 5, (-1.0,))
    known.note_canary("a", 6, (-9.0,))
    assert known.compare_canary(record(5), [(-1.5,)])[0] is Match.SAME
    assert known.compare_canary(record(5), [(-9.0,)])[0] is Match.DIFFERENT


def test_what_the_service_no_longer_has_is_forgotten_with_its_answer_and_nothing_else_is() -> None:
    known = stored()
    for at in (("a", 2), ("a", 4)):
        known.note_canary(*at, (-1.0, -2.0))
    gone = Deletion(saved("a", 2), "deleted", "no rule keeps it", NOW_S, sent=True)
    for state in ("deleting", "deleted", "deleted"):
        known.note_deletion(replace(gone, state=state), now_s=NOW_S)
        assert (saved("a", 2) in known.stored) == (state == "deleting")
    assert known.path_of("a", 2) is None
    assert known.fingerprints.keys() == {("a", 4)}
    assert not known.expects(record(2, "a"))
    assert known.expects(record(4, "a"))
    unknown = replace(gone, path=saved("x", 7))
    known.note_deletion(unknown, now_s=NOW_S)
    assert known.fingerprints.keys() == {("a", 4)}


def test_what_is_listed_of_a_run_is_remembered_of_it_alone() -> None:
    assert CheckpointState("run").listings is not CheckpointState("another").listings
