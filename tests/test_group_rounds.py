"""The rounds of a group: who is opened, waited for and brought back, with runs made up here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from tinker_recovery import GroupAttempt, RecoveryPolicy, UsageError
from tinker_recovery.faults import RULES, DetectedBy, Fault, Kind
from tinker_recovery.run import group as group_
from tinker_recovery.run.group import GroupRounds, plan_group
from tinker_recovery.run.member import GroupMember, RunGroup
from tinker_recovery.run.options import StartPlan

FAULT = Fault("one", 1, "a", RULES[Kind.CORRUPTED], DetectedBy.POLL, 3)


class Attempts(list[Any]):
    """The attempts of a run, and that it has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = anyio.Event()


class Member:
    """A run of the group."""

    def __init__(self, world: World, name: str, start_step: int) -> None:
        self.name, self.start_step = name, start_step
        self._world = world
        self.attempts = Attempts()
        self.current: Any = None
        self.recovering = False
        self.failure: BaseException | None = None
        self.policy = RecoveryPolicy()
        self.budget = SimpleNamespace(refund=lambda: world.log.append(("refund", name)))
        http = SimpleNamespace(endpoint=None)
        self.collaborators = SimpleNamespace(reader=SimpleNamespace(http=http))
        self.later: list[int] = []
        """The steps that its next attempts begin at."""
        self.on_first: Callable[[], object] = lambda: None

    def begin(self, step: int) -> Any:
        self.current = SimpleNamespace(
            run=self, start_step=step, saver=f"saver of {self.name}", entered=False, fault=None
        )
        self.attempts.append(self.current)
        return self.current

    async def first_attempt(self) -> Any:
        self._world.log.append(("first", self.name))
        made = self.begin(self.start_step)
        self.on_first()
        return made

    async def next_attempt(self) -> Any:
        self._world.log.append(("next", self.name))
        if self.failure is not None:
            raise self.failure
        if self.recovering:
            self.recovering = False
            self.begin(self.later.pop(0))
        return self.current

    def waits(self, held: Any) -> bool:
        return self.recovering or self.failure is not None or self.current is not held

    def follow(self, why: str) -> None:
        self._world.log.append(("follow", self.name, why))
        self.recovering = True

    async def end(self, error: BaseException) -> None:
        self._world.log.append(("end", self.name, error))


class World:
    """The iterator, and its runs by their names."""

    def __init__(self, **start_steps: int) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.runs = {name: Member(self, name, step) for name, step in start_steps.items()}
        self.error: BaseException | None = None
        self.group: RunGroup | None = None
        plans = {name: cast("StartPlan", f"plan of {name}") for name in start_steps}
        self.rounds = GroupRounds(plans, cast("Any", self._open))

    async def _open(self, plan: object, name: str, make: Any) -> Any:
        assert (plan, make.func) == (f"plan of {name}", GroupMember)
        self.log.append(("open", name))
        if self.error is not None and name == "two":
            raise self.error
        (group,) = make.args
        assert self.group in (None, group)
        self.group = group
        begin = _logged(self.log, "saves")
        group.saves = SimpleNamespace(begin=begin)
        group.members.append(self.runs[name])

    async def next(self) -> GroupAttempt:
        with anyio.fail_after(5):
            return await anext(self.rounds)

    async def body(self, attempts: GroupAttempt) -> None:
        """It is entered, and left."""
        for each in self.runs.values():
            each.current.entered = True
        assert attempts.entered


def _logged(log: list[tuple[Any, ...]], what: str) -> Callable[[object], None]:
    return lambda given: log.append((what, given))


async def test_runs_are_opened_by_name_begun_in_the_given_order_and_handed_over_together() -> None:
    world = World(two=4, one=4)
    assert aiter(world.rounds) is world.rounds
    attempts = await world.next()
    assert world.log == [
        ("open", "one"),
        ("open", "two"),
        ("first", "two"),
        ("first", "one"),
        ("saves", ["saver of two", "saver of one"]),
    ]
    assert repr(attempts) == "<GroupAttempt of runs two, one from step 4>"
    assert not attempts.entered
    assert all(run.attempts.begun.is_set() for run in world.runs.values())


@pytest.mark.parametrize("error", [ValueError("no"), asyncio.CancelledError()])
async def test_where_one_cannot_be_opened_those_that_are_open_are_over_by_its_error(
    error: BaseException,
) -> None:
    world = World(one=4, two=4)
    world.error = error
    with pytest.raises(type(error)):
        await world.next()
    assert world.log == [("open", "one"), ("open", "two"), ("end", "one", error)]


async def test_runs_that_begin_at_different_steps_are_refused_with_each_of_them() -> None:
    world = World(one=4, two=5)
    with pytest.raises(UsageError, match=r"\{'one': 4, 'two': 5\}: say start_step=") as raised:
        await world.next()
    assert world.log[2:] == [("end", name, raised.value) for name in ("one", "two")]


async def test_a_round_that_was_not_entered_is_mentioned_and_nothing_is_over() -> None:
    world = World(one=4, two=4)
    await world.next()
    world.log.clear()
    with pytest.raises(UsageError, match="those before were never entered"):
        await world.next()
    assert world.log == []


async def test_after_a_body_that_no_fault_has_ended_there_is_no_other_round() -> None:
    world = World(one=4, two=4)
    await world.body(await world.next())
    world.log.clear()
    with pytest.raises(StopAsyncIteration):
        await world.next()
    assert world.log == []


@pytest.mark.parametrize("recovered", [True, False])
@pytest.mark.parametrize("which", ["one", "two"])
async def test_after_a_fault_of_one_there_is_a_round_once_it_has_a_new_attempt(
    which: str, *, recovered: bool
) -> None:
    """Its recovery may be done by the time that the body is left."""
    world = World(one=4, two=4)
    before = await world.next()
    await world.body(before)
    newest = [before.is_newest]
    faulty = world.runs[which]
    if recovered:
        faulty.begin(4)
    else:
        faulty.recovering = True
    newest.append(before.is_newest)
    assert newest == [True, False]
    faulty.later = [4]
    (other,) = (run for run in world.runs.values() if run is not faulty)
    other.begin(4)  # it went back as well
    world.log.clear()
    attempts = await world.next()
    saves = ("saves", ["saver of one", "saver of two"])
    assert world.log == [("next", "one"), ("next", "two"), saves]
    assert (attempts.start_step, attempts.is_newest) == (4, True)
    assert not before.is_newest
    with pytest.raises(UsageError, match="never entered"):
        await world.next()


async def test_who_is_brought_back_to_a_later_step_goes_back_further_at_no_cost() -> None:
    world = World(one=9, two=9, three=9)
    await world.body(await world.next())
    for name, later in (("one", [6, 2]), ("two", [2]), ("three", [4, 2])):
        world.runs[name].recovering = True
        world.runs[name].later = later
    world.log.clear()
    attempts = await world.next()
    why = "run 'two' of the same group was brought back to step 2"
    assert world.log[3:-1] == [
        ("refund", "one"),
        ("follow", "one", why),
        ("refund", "three"),
        ("follow", "three", why),
        ("next", "one"),
        ("next", "three"),
    ]
    assert world.log[-1][0] == "saves"
    assert attempts.start_step == 2
    assert attempts.is_newest


async def test_a_run_whose_first_client_failed_waits_for_its_recovery() -> None:
    world = World(one=4, two=4)
    two = world.runs["two"]
    two.later = [4]

    def fail() -> None:
        two.recovering = True

    world.runs["one"].on_first = fail
    await world.next()
    assert world.log[2:4] == [("first", "one"), ("next", "two")]


async def test_a_fault_of_one_while_another_begins_is_waited_for() -> None:
    world = World(one=4, two=4)
    one = world.runs["one"]
    one.later = [4]

    def fail() -> None:
        one.recovering = True

    world.runs["two"].on_first = fail
    attempts = await world.next()
    assert world.log[2:5] == [("first", "one"), ("first", "two"), ("next", "one")]
    assert attempts.is_newest


async def test_a_run_that_is_given_up_ends_the_rounds_and_each_run_with_its_error() -> None:
    world = World(one=4, two=4)
    await world.body(await world.next())
    error = ValueError("given up")
    for run in world.runs.values():
        run.failure = error
        run.recovering = True
    world.log.clear()
    with pytest.raises(ValueError, match="given up"):
        await world.next()
    assert world.log == [("next", "one"), ("end", "one", error), ("end", "two", error)]


# -- the body ------------------------------------------------------------------------------------


class Scope:
    """An attempt, as its group enters it."""

    def __init__(self, name: str, log: list[Any], *, enabled: bool = True) -> None:
        policy = SimpleNamespace(enabled=enabled)
        self.run = SimpleNamespace(name=name, policy=policy)
        self.start_step = 4
        self.entered = False
        self.fault: Fault | None = None
        self._log = log

    def share_body(self, others: list[Scope]) -> None:
        self._log.append(("shares", self.run.name, [each.run.name for each in others]))

    def enter(self, what: str) -> None:
        self._log.append(("enter", self.run.name, what))
        self.entered = True


class Body:
    """A group's attempt, with what is done around its body."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, enabled: bool = True) -> None:
        self.log: list[Any] = []
        self.scopes = [Scope(name, self.log, enabled=enabled) for name in ("one", "two")]
        self.group = RunGroup()
        monkeypatch.setattr(self.group, "rewind", self._rewind)
        monkeypatch.setattr(group_, "leave_body", self._leave)
        self.swallows = True
        self.error: BaseException | None = None
        self.attempt = GroupAttempt(self.group, cast("Any", self.scopes))

    def _rewind(self, run: Any, fault: Fault) -> None:
        assert self.group.in_body
        self.log.append(("rewind", run.name, fault))

    async def _leave(self, scopes: object, error: BaseException | None) -> bool:
        assert scopes is self.scopes
        assert self.group.in_body
        self.log.append(("leave", error))
        if self.error is not None:
            raise self.error
        return self.swallows


async def test_the_runs_of_a_group_share_one_body(monkeypatch: pytest.MonkeyPatch) -> None:
    body = Body(monkeypatch)
    async with body.attempt as entered:
        assert entered is body.attempt
        assert body.group.in_body
    said = "<GroupAttempt of runs one, two from step 4>"
    assert body.log == [("shares", "one", ["two"]), ("enter", "one", said), ("leave", None)]
    assert all(scope.entered for scope in body.scopes)
    assert not body.group.in_body


@pytest.mark.parametrize("swallows", [True, False])
async def test_what_its_body_is_left_with_is_raised_unless_it_is_recovered_from(
    monkeypatch: pytest.MonkeyPatch, *, swallows: bool
) -> None:
    body = Body(monkeypatch)
    body.swallows = swallows
    error = ValueError("of the body")
    raised = False
    try:
        async with body.attempt:
            raise error
    except ValueError:
        raised = True
    assert raised != swallows
    assert body.log[-1] == ("leave", error)


async def test_a_body_whose_end_fails_is_not_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    body = Body(monkeypatch)
    body.error = ValueError("of the end")
    with pytest.raises(ValueError, match="of the end"):
        async with body.attempt:
            pass
    assert not body.group.in_body


@pytest.mark.parametrize("which", [0, 1])
async def test_a_body_is_entered_once_whoever_of_its_attempts_was(
    monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    body = Body(monkeypatch)
    body.scopes[which].entered = True
    with pytest.raises(UsageError, match="from step 4>: its body was entered before, or that of"):
        await body.attempt.__aenter__()
    assert body.log == []


@pytest.mark.parametrize("enabled", [True, False])
async def test_a_fault_since_its_attempts_were_handed_over_takes_the_others_back(
    monkeypatch: pytest.MonkeyPatch, *, enabled: bool
) -> None:
    body = Body(monkeypatch, enabled=enabled)
    body.scopes[1].fault = FAULT
    async with body.attempt:
        pass
    assert [each for each in body.log if each[0] == "rewind"] == [("rewind", "two", FAULT)][
        : int(enabled)
    ]


# -- what a group is made of ---------------------------------------------------------------------


def group(*names: str | None, resumes: bool = True, **policy: Any) -> dict[str, StartPlan]:
    given: Any = [{"base_model": "m", "seed": at, "name": name} for at, name in enumerate(names)]
    return plan_group(given, RecoveryPolicy(**policy), resumes=resumes)


def test_a_group_is_of_runs_that_each_have_a_name_or_are_given_one() -> None:
    plans = group("one", "two")
    assert {name: plan.name for name, plan in plans.items()} == {"one": "one", "two": "two"}
    assert [plan.described["seed"] for plan in plans.values()] == [0, 1]
    assert len(group(None, None)) == 2
    assert list(group("c", "b", "a")) == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("names", "policy", "said"),
    [
        ((), {}, "two runs or more, and none was given"),
        (("one",), {}, "two runs or more, and 1 was given"),
        (("one", "two"), {"checkpoint_strategy": "tinker://a/weights/4"}, "not allowed with group"),
        (("one", None), {}, "either each run of a group has one"),
        (("one", "two", "one"), {}, "two runs of a group have the same; names are unique"),
    ],
)
def test_runs_that_make_no_group_are_refused(
    names: tuple[str | None, ...], policy: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        group(*names, **policy)
