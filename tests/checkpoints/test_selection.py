from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st
from made import path, record, segment

from tinker_recovery.checkpoints import eligible, on_branch


def test_the_newest_checkpoint_of_the_newest_segment_comes_first() -> None:
    found = eligible(segment("a"), math.inf, [record(step, "a") for step in (20, 60, 40)])
    assert [record.step for record in found] == [60, 40, 20]


def test_another_attempts_checkpoint_in_the_same_tinker_run_is_passed_over() -> None:
    assert eligible(segment("a"), math.inf, [record(20, "a", attempt="other")]) == []


def test_a_checkpoint_from_before_the_segment_began_is_passed_over() -> None:
    assert eligible(segment("a", start=40), math.inf, [record(20, "a")]) == []


def test_what_a_recovery_abandoned_is_never_recovered_from() -> None:
    # a reached 1660; b branched off at 1615, and failed before it saved anything.
    segments = [segment("a"), segment("b", 1615, path("a", 1615))]
    (newest, _), (older, limit) = on_branch(segments)
    assert (newest.run_id, older.run_id, limit) == ("b", "a", 1615)
    listed = [record(step, "a") for step in (1600, 1615, 1640, 1660)]
    assert [record.step for record in eligible(older, limit, listed)] == [1615, 1600]


def test_a_sibling_branch_is_skipped_altogether() -> None:
    # b and c both branched off a; c is the one that goes on.
    segments = [segment("a"), segment("b", 10, path("a", 10)), segment("c", 20, path("a", 20))]
    assert [segment.run_id for segment, _ in on_branch(segments)] == ["c", "a"]


def test_a_run_started_over_descends_from_nothing() -> None:
    segments = [segment("a"), segment("b")]
    assert [segment.run_id for segment, _ in on_branch(segments)] == ["b"]
    assert on_branch([]) == []


@given(st.data())
def test_the_branch_has_falling_limits_and_every_candidate_lies_on_it(data: st.DataObject) -> None:
    segments = [segment("r0")]
    for number in range(1, data.draw(st.integers(1, 6))):
        ancestor = data.draw(st.sampled_from(segments))
        step = ancestor.start_step + data.draw(st.integers(0, 5))
        segments.append(segment(f"r{number}", step, path(ancestor.run_id, step)))
    branch = on_branch(segments)
    assert branch[0] == (segments[-1], math.inf)
    limits = [limit for _, limit in branch]
    assert limits == sorted(limits, reverse=True)
    for (child, _), (ancestor, limit) in itertools.pairwise(branch):
        assert child.parent is not None
        assert child.parent.startswith(f"tinker://{ancestor.run_id}/")
        assert limit <= child.start_step
    for each, limit in branch:
        steps = data.draw(st.lists(st.integers(0, 40), unique=True))
        listed = [record(step, each.run_id) for step in steps]
        found = eligible(each, limit, listed)
        assert {record.step for record in found} == {
            step for step in steps if each.start_step <= step <= limit
        }
        shuffled = data.draw(st.permutations(listed))
        assert eligible(each, limit, shuffled) == found
