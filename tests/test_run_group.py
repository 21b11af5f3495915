"""What the runs of a group do to each other: who goes back with whom, and who is given up."""

from __future__ import annotations

from typing import Any

import pytest

from tinker_recovery.faults import RULES, DetectedBy, Fault, Kind
from tinker_recovery.run.member import RunGroup


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
