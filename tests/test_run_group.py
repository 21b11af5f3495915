"""What the runs of a group do to each other: who goes back with whom, and who is given up."""

from __future__ import annotations

import itertools
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tinker_recovery import Attempt, GroupAttempt, Run, UsageError
from tinker_recovery.faults import RULES, DetectedBy, Fault, Kind
from tinker_recovery.run.member import RunGroup
from tinker_recovery.run.saves_together import SavesTogether


class _Member:
    """A run as its group sees it; what it is asked for comes back to the group."""

    def __init__(self, group: RunGroup, name: str, *, ended: bool = False) -> None:
        self.group, self.name, self.ended = group, name, ended
        self.failure: BaseException | None = None
        self.followed: list[str] = []
        group.members.append(self)  # type: ignore[arg-type]  # as far as the group looks

    def follow(self, why: str) -> None:
        self.followed.append(why)
        self.group.rewind(self, _fault(self.name))  # type: ignore[arg-type]  # the same

    def give_up(self, error: BaseException) -> None:
        assert self.failure is None, "it was given up before"
        self.failure = error
        self.group.give_up(error)


def _fault(run: str) -> Fault:
    return Fault(run, 1, "r", RULES[Kind.CORRUPTED], DetectedBy.POLL, 3)


def _group(*names: str) -> tuple[RunGroup, list[Any]]:
    group = RunGroup()
    return group, [_Member(group, name) for name in names]


def test_a_fault_in_the_body_takes_all_others_back_once() -> None:
    group, (one, two, three) = _group("one", "two", "three")
    group.in_body = True
    group.rewind(one, _fault("one"))
    group.rewind(two, _fault("two"))
    assert one.followed == []
    assert len(two.followed) == len(three.followed) == 1
    assert "run 'one' of the same group is recovered" in two.followed[0]
    assert repr(_fault("one").as_error()) in two.followed[0]


def test_a_fault_outside_the_body_takes_nobody_back() -> None:
    group, (one, two) = _group("one", "two")
    group.rewind(one, _fault("one"))
    assert two.followed == []


def test_each_body_that_they_share_is_ended_anew() -> None:
    group, (one, two) = _group("one", "two")
    for times in (1, 2):
        group.in_body = True
        group.rewind(one, _fault("one"))
        assert len(two.followed) == times


@pytest.mark.parametrize("ended", [False, True])
def test_who_is_given_up_takes_those_along_that_are_not_over(*, ended: bool) -> None:
    _, (one, two, three) = _group("one", "two", "three")
    three.ended = ended
    two.failure = before = RuntimeError("an earlier one")
    error = RuntimeError("the one")
    one.give_up(error)
    assert (one.failure, two.failure) == (error, before)
    assert three.failure is (None if ended else error)


def test_an_attempt_of_a_group_has_those_of_its_runs_in_their_order_and_by_name() -> None:
    scopes: Any = [
        SimpleNamespace(run=SimpleNamespace(name=name), start_step=4) for name in ("one", "two")
    ]
    attempt = GroupAttempt(RunGroup(), scopes)
    assert (attempt.start_step, len(attempt)) == (4, 2)
    assert repr(attempt) == "<GroupAttempt of runs one, two from step 4>"
    first, second = attempt
    assert (attempt["one"], attempt["two"]) == (attempt[0], attempt[1]) == (first, second)
    with pytest.raises(KeyError):
        attempt["three"]
    with pytest.raises(IndexError):
        attempt[2]


def test_two_views_are_equal_if_they_are_of_one_run() -> None:
    one, two = object(), object()
    view = cast("Any", Run)
    assert view(one) == view(one)
    assert view(one) != view(two)
    assert view(one) != one
    assert len({view(one), view(one), view(two)}) == 2


@pytest.mark.parametrize("what", [3, None, "a future"])
def test_what_is_no_future_is_not_watched(what: Any) -> None:
    watched: list[object] = []
    scope: Any = SimpleNamespace(sampling=SimpleNamespace(watch=watched.append))
    attempt = Attempt(scope)
    with pytest.raises(UsageError, match=r"watch\(.*make a task of a coroutine first"):
        attempt.watch(what)
    future = Future[int]()
    assert attempt.watch(future) is future
    assert watched == [future]


# -- which steps they save -----------------------------------------------------------------------


@dataclass(eq=False)
class _Saver:
    """A saver as the group sees it: what its own schedule says, and whether it can save now."""

    run_name: str
    due: set[int] = field(default_factory=set)
    at_end: bool = False
    is_full: bool = False
    full_at: set[int] = field(default_factory=set)

    def decides(self, step: int, *, end: bool) -> bool:
        return step in self.due or (end and self.at_end)

    def may_begin(self, step: int) -> bool:
        return step not in self.full_at


def _saving(*savers: _Saver) -> SavesTogether:
    together = SavesTogether()
    together.begin(cast("Any", savers))
    return together


def _due(together: SavesTogether, saver: _Saver, step: int, *, end: bool = False) -> bool:
    return together.due(cast("Any", saver), step, end=end)


def test_a_run_of_its_own_saves_what_its_schedule_says() -> None:
    one = _Saver("one", {4}, is_full=True, full_at={4})
    for together in (_saving(one), SavesTogether()):
        assert not together.together
        assert _due(together, one, 4)
        assert not _due(together, one, 5)
        together.passed(4)
        assert _due(together, one, 4)


def test_what_is_due_for_one_is_saved_by_all_whoever_comes_first() -> None:
    for first, second in itertools.permutations([_Saver("one", {4}), _Saver("two", {6})]):
        together = _saving(first, second)
        assert together.together
        for step in (3, 4, 5, 6):
            assert _due(together, first, step) == _due(together, second, step) == (step in {4, 6})


def test_a_step_is_agreed_on_by_who_comes_first_though_it_would_be_too_late_for_another() -> None:
    one, two = _Saver("one", {4, 5}), _Saver("two")
    together = _saving(one, two)
    assert _due(together, one, 4)
    assert not _due(together, one, 5), "the other has yet to save step 4"
    together.passed(5)
    assert _due(together, two, 4)
    assert not _due(together, two, 5), "it was passed"
    assert _due(together, one, 4), "it is agreed on still"


@pytest.mark.parametrize(("passed", "saved"), [(3, True), (4, False), (5, False)])
def test_no_step_is_saved_that_another_has_trained_past(passed: int, *, saved: bool) -> None:
    one, two = _Saver("one", {4}), _Saver("two")
    together = _saving(one, two)
    together.passed(passed)
    together.passed(1)
    assert _due(together, one, 4) == saved


def test_no_step_is_agreed_on_while_one_has_too_many_saves_under_way() -> None:
    one, two = _Saver("one", {4, 5}), _Saver("two", is_full=True)
    together = _saving(one, two)
    assert not _due(together, one, 4)
    two.is_full = False
    assert _due(together, one, 5)
    assert _due(together, two, 5)


def test_at_the_end_a_step_is_saved_whatever_is_under_way_as_far_as_each_can() -> None:
    one, two = _Saver("one", at_end=True), _Saver("two", is_full=True, full_at={9})
    together = _saving(one, two)
    together.passed(9)
    assert not _due(together, two, 8)
    assert _due(together, one, 9, end=True)
    assert not _due(together, two, 9, end=True)


def test_attempts_that_begin_anew_have_agreed_on_nothing() -> None:
    one, two = _Saver("one", {4}), _Saver("two")
    together = _saving(one, two)
    assert _due(together, one, 4)
    together.passed(9)
    together.begin(cast("Any", (one, two)))
    assert not _due(together, two, 3), "nothing is due for any"
    assert _due(together, two, 4)
    assert _due(together, one, 4)


def test_who_leaves_out_an_iteration_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    one, two, three = _Saver("one", {4, 6, 8}), _Saver("two"), _Saver("three")
    together = _saving(one, two, three)
    assert _due(together, one, 4)
    assert caplog.text == ""
    for step in (6, 8):
        assert not _due(together, one, step)
    assert caplog.text.count("step 6 is due and not saved") == 1
    assert "run three, two has yet to come to the end of step 4" in caplog.text
    assert "step 8" not in caplog.text
