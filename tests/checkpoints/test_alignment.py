from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tinker_recovery.checkpoints.alignment import ahead, common_steps

STEPS = st.sets(st.integers(0, 9))
GROUPS = st.lists(STEPS, min_size=1, max_size=4)


def test_the_newest_step_that_each_has_comes_first() -> None:
    assert common_steps([{0, 5, 10}, {0, 5}, {0, 5, 10, 15}]) == [5, 0]


def test_runs_with_nothing_in_common_have_nowhere_to_go_back_to() -> None:
    assert common_steps([{5}, {0}]) == []
    assert common_steps([]) == []


def test_whoever_is_at_a_later_step_than_another_has_to_go_back_further() -> None:
    assert ahead({"student": 10, "teacher": 5, "judge": 10}) == ["student", "judge"]
    assert ahead({"student": 5, "teacher": 5}) == []
    assert ahead({}) == []


@given(GROUPS)
def test_a_common_step_is_one_of_each_and_no_newer_one_is(held: list[set[int]]) -> None:
    common = common_steps(held)
    assert common == sorted(common, reverse=True)
    for step in range(10):
        assert (step in common) == all(step in steps for steps in held)


@given(GROUPS, st.data())
def test_one_more_checkpoint_never_takes_a_group_further_back(
    held: list[set[int]], data: st.DataObject
) -> None:
    which = data.draw(st.integers(0, len(held) - 1))
    more = [set(steps) for steps in held]
    more[which].add(data.draw(st.integers(0, 9)))
    assert max(common_steps(more), default=-1) >= max(common_steps(held), default=-1)


@given(GROUPS, st.data())
def test_going_back_ends_at_one_step_however_many_do_not_load(
    held: list[set[int]], data: st.DataObject
) -> None:
    """As the rounds of a recovery do: each loads what it can of the common steps, in order."""
    held = [steps | {0} for steps in held]
    loads = [steps - data.draw(STEPS) | {0} for steps in held]
    at = {str(number): 10 for number in range(len(held))}
    late = list(at)
    rounds = 0
    while late:
        rounds += 1
        for name in late:
            # Who has gone back has nothing newer on its branch.
            usable = [
                {step for step in steps if step <= at[str(number)]}
                for number, steps in enumerate(held)
            ]
            at[name] = next(s for s in common_steps(usable) if s in loads[int(name)])
        late = ahead(at)
        assert rounds <= 10 * len(held)
    assert len(set(at.values())) == 1
    lowest = min(at.values())
    assert all(lowest in steps for steps in loads)
