from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tinker_recovery.recovery.budget import AttemptBudget


def test_attempts_are_numbered_from_one_and_end_at_the_limit() -> None:
    budget = AttemptBudget(2)
    assert [budget.spend(), budget.spend(), budget.spend()] == [1, 2, 0]


def test_a_checkpoint_newer_than_the_one_recovered_from_gives_all_attempts_back() -> None:
    budget = AttemptBudget(2)
    budget.spend()
    budget.note_error(RuntimeError("old"))
    budget.note_recovered(20)
    budget.note_saved(30)
    assert budget.left == 2
    assert budget.errors == ()


def test_saving_the_same_step_again_is_no_progress() -> None:
    budget = AttemptBudget(2)
    budget.spend()
    budget.note_recovered(20)
    budget.note_saved(20)
    assert budget.left == 1


def test_a_recovery_from_a_newer_checkpoint_leaves_only_its_own_attempt_spent() -> None:
    budget = AttemptBudget(3)
    budget.spend()
    budget.note_recovered(20)
    budget.spend()
    budget.note_recovered(30)
    assert budget.left == 2
    budget.spend()
    budget.note_recovered(30)
    assert budget.left == 1


def test_one_error_is_remembered_once() -> None:
    budget = AttemptBudget(2)
    error = RuntimeError("poisoned")
    budget.note_error(error)
    budget.note_error(error)
    assert budget.errors == (error,)


@given(st.integers(1, 6), st.lists(st.sampled_from(["spend", "save", "repeat"]), max_size=60))
def test_without_progress_no_more_than_the_limit_is_ever_granted(
    limit: int, events: list[str]
) -> None:
    budget = AttemptBudget(limit)
    step = granted = 0
    for event in events:
        if event == "spend":
            if budget.spend():
                granted += 1
                budget.note_recovered(step)
        elif event == "save":
            step += 1
            budget.note_saved(step)
            granted = 0
        else:
            budget.note_saved(step)
        assert granted <= limit
        assert budget.left == limit - granted


def test_an_attempt_given_back_can_be_spent_again_and_no_more_is_given_than_was_spent() -> None:
    budget = AttemptBudget(2)
    assert [budget.spend(), budget.spend()] == [1, 2]
    budget.refund()
    assert (budget.left, budget.spend(), budget.spend()) == (1, 2, 0)
    for _ in range(3):
        budget.refund()
    assert (budget.left, budget.spend()) == (2, 1)


def test_a_recovery_to_where_a_run_began_is_no_progress() -> None:
    budget = AttemptBudget(2)
    budget.spend()
    budget.spend()
    budget.note_recovered(0)
    assert budget.left == 0
    budget.note_saved(1)
    assert budget.left == 2
