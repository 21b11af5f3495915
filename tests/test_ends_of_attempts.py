"""How the body of an attempt is left, and how its run is given free: decisions, with stand-ins."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from tinker_recovery import LeaseLost, StatusError
from tinker_recovery.faults import RULES, DetectedBy, Fault, Kind
from tinker_recovery.run.claiming import (
    claim_lost,
    end_and_give_free,
    end_when_lost,
    give_free,
)
from tinker_recovery.run.leaving import leave_body
from tinker_recovery.service.guard import ClaimGuard, Guard

OWN = LookupError("the loop's own")
FAILED = ValueError("of a request")


class Scope:
    """An attempt as far as leaving its body looks at it; the log has what was asked of which."""

    def __init__(self, name: str, log: list[object], **facts: Any) -> None:
        self.name, self._log = name, log
        self.kind: Kind | None = facts.get("kind")
        self.left_open: BaseException | None = facts.get("left_open")
        self.recovers: bool = facts.get("recovers", False)
        self.cancelled_it: bool = facts.get("cancelled_it", False)
        self.on_over: BaseException | None = facts.get("on_over")
        self.on_judge: BaseException | None = facts.get("on_judge")
        failed, saves, samples = facts.get("failed"), facts.get("saves"), facts.get("samples")
        self.client: Any = SimpleNamespace(
            save=lambda _: log.append(("save", name)),
            drain=self._drain,
            step=3,
            open_requests=0,
            failed=[("optim_step", failed)] if failed else [],
            failed_saves=[saves] if saves else [],
        )
        self.sampling = SimpleNamespace(failed=[samples] if samples else [])
        self.run: Any = SimpleNamespace(
            mailbox=SimpleNamespace(deliver=lambda: log.append("deliver")),
            policy=SimpleNamespace(
                enabled=facts.get("enabled", True),
                checkpoints=SimpleNamespace(save_on_stop_s=30.0),
            ),
            signals=SimpleNamespace(requested=facts.get("stopped", False)),
            attempt_over=self._over,
        )
        self.saver = SimpleNamespace(last=None, awaits_state=False)
        self.closed = False
        self.left = anyio.Event()
        self.ending = self.finished = False

    @property
    def fault(self) -> Fault | None:
        if self.kind is None:
            return None
        return Fault("r", 1, "a", RULES[self.kind], DetectedBy.POLL, 3, error=self.error())

    def error(self) -> BaseException:
        return RuntimeError(f"the fault of {self.name}")

    async def _drain(self) -> None:
        pass

    async def settle(self) -> BaseException | None:
        assert self.ending
        self._log.append(("settle", self.name))
        return self.left_open

    def close_body(self, seen: BaseException | None) -> bool:
        self._log.append(("close", self.name, seen))
        return self.cancelled_it

    async def belongs_to_incident(self, error: BaseException) -> bool:
        self._log.append(("judge", self.name, error))
        if self.on_judge is not None:
            raise self.on_judge
        return self.recovers

    async def _over(self, scope: object, error: BaseException | None) -> None:
        assert scope is self
        assert self.left.is_set()
        self._log.append(("over", self.name, str(error) if error else None, self.finished))
        if self.on_over is not None:
            raise self.on_over


class World:
    """The attempts that share a body."""

    def __init__(self, *facts: dict[str, Any]) -> None:
        self.log: list[Any] = []
        self.scopes = [
            Scope(name, self.log, **given) for name, given in zip("abc", facts, strict=False)
        ]

    async def leave(self, error: BaseException | None = None) -> bool:
        return await leave_body(cast("Any", self.scopes), error)

    def done(self, what: str) -> list[tuple[Any, ...]]:
        return [each[1:] for each in self.log if each[0] == what]


async def test_a_body_that_ends_well_has_what_is_open_waited_for_and_its_run_is_over() -> None:
    world = World({})
    assert await world.leave()
    assert world.log == [
        "deliver",
        ("settle", "a"),
        ("close", "a", None),
        ("over", "a", None, True),
    ]


async def test_of_a_group_none_is_finished_before_each_has_settled() -> None:
    world = World({}, {}, {})
    assert await world.leave()
    assert world.done("settle") == [("a",), ("b",), ("c",)]
    assert world.done("close") == [("a", None)], "they share one body"
    assert sorted(world.done("over")) == [(name, None, True) for name in "abc"]


@pytest.mark.parametrize("recovers", [False, True])
async def test_what_a_request_left_open_failed_with_is_of_the_run_whose_it_is(
    *, recovers: bool
) -> None:
    """Behind it nothing is waited for: all of the group go back, or are over."""
    kind = Kind.REQUEST_FAILED if recovers else None
    world = World({}, {"left_open": FAILED, "recovers": recovers, "kind": kind}, {})
    if recovers:
        assert await world.leave()
    else:
        with pytest.raises(ValueError, match="of a request"):
            await world.leave()
    assert world.done("settle") == [("a",), ("b",)]
    assert world.done("close") == [("a", FAILED)]
    assert world.done("judge") == [("b", FAILED)]
    over = [] if recovers else [(name, "of a request", False) for name in "abc"]
    assert sorted(world.done("over")) == over
    assert all(scope.left.is_set() and not scope.finished for scope in world.scopes)


async def test_a_body_left_by_an_error_has_nothing_waited_for() -> None:
    world = World({"left_open": FAILED})
    assert not await world.leave(OWN)
    assert world.done("settle") == []
    assert world.done("over") == [("a", "the loop's own", False)]


@pytest.mark.parametrize(
    ("error", "cancelled_it", "saves"),
    [(OWN, False, True), (OWN, True, False), (None, False, False), (None, True, False)],
)
async def test_who_is_stopped_has_the_last_step_of_each_run_saved_on_the_way_out(
    error: BaseException | None, *, cancelled_it: bool, saves: bool
) -> None:
    facts = {"stopped": True, "cancelled_it": cancelled_it}
    world = World(facts, facts)
    await world.leave(error)
    assert set(world.done("save")) == ({("a",), ("b",)} if saves else set())
    if saves:
        assert max(map(world.log.index, [("save", "a"), ("save", "b")])) < min(
            at for at, each in enumerate(world.log) if each[0] == "over"
        )


async def test_an_error_that_is_recovered_from_is_swallowed_and_the_run_is_not_over() -> None:
    world = World({"recovers": True, "kind": Kind.CORRUPTED})
    assert await world.leave(FAILED)
    assert world.done("over") == []
    assert world.scopes[0].left.is_set()


async def test_an_error_of_the_loops_own_ends_a_run_at_fault_with_that_error() -> None:
    world = World({"kind": Kind.CORRUPTED})
    assert not await world.leave(OWN)
    assert world.done("over") == [("a", "the loop's own", False)]


async def test_a_body_that_a_fault_has_cancelled_is_not_judged() -> None:
    world = World({"cancelled_it": True, "kind": Kind.CORRUPTED})
    assert await world.leave(OWN)
    assert (world.done("judge"), world.done("over")) == ([], [])


@pytest.mark.parametrize("error", [None, OWN])
async def test_a_fault_that_gives_the_run_up_is_raised_in_place_of_what_it_left_behind(
    error: BaseException | None,
) -> None:
    world = World({}, {"kind": Kind.UNPAID, "recovers": True, "failed": error})
    with pytest.raises(RuntimeError, match="the fault of b"):
        await world.leave(error)
    said = "the fault of b" if error is None else str(error)
    assert sorted(world.done("over")) == [("a", said, False), ("b", said, False)]


async def test_an_error_of_the_loops_own_is_not_replaced_by_a_fault_that_gives_the_run_up() -> None:
    world = World({"kind": Kind.UNPAID})
    assert not await world.leave(OWN)
    assert world.done("over") == [("a", "the loop's own", False)]


async def test_with_recovery_off_a_fault_does_not_keep_a_body_from_ending_well() -> None:
    world = World({"kind": Kind.CORRUPTED, "enabled": False})
    assert await world.leave()
    assert world.done("over") == [("a", None, True)]


async def test_that_the_end_of_one_failed_is_raised_once_each_of_the_group_is_over() -> None:
    world = World({}, {"on_over": OWN}, {})
    with pytest.raises(LookupError):
        await world.leave()
    assert len(world.done("over")) == 3


async def test_each_run_of_a_group_is_over_though_the_end_of_one_fails() -> None:
    world = World({"on_over": OWN}, {}, {"on_over": FAILED})
    with pytest.raises((LookupError, ValueError)):
        await world.leave()
    assert len(world.done("over")) == 3


async def test_who_is_cancelled_while_an_error_is_looked_into_leaves_runs_that_are_over() -> None:
    """No other attempt is asked for, so each of the group is given free."""
    gone = anyio.get_cancelled_exc_class()("from outside")
    world = World({"on_judge": gone}, {})
    with pytest.raises(type(gone), match="from outside"):
        await world.leave(OWN)
    assert sorted(world.done("over")) == [(name, "from outside", False) for name in "ab"]
    assert all(scope.left.is_set() for scope in world.scopes)


def _caused(error: BaseException) -> BaseException:
    made = TypeError("the loop's words for it")
    made.__cause__ = error
    return made


@pytest.mark.parametrize("where", ["failed", "saves", "samples"])
@pytest.mark.parametrize(
    "left_with",
    [lambda error: error, _caused, lambda error: ExceptionGroup("of tasks", [OWN, error])],
)
async def test_an_error_is_judged_by_the_run_of_the_group_whose_request_it_is(
    where: str, left_with: Callable[[BaseException], BaseException]
) -> None:
    world, error = World({}, {where: FAILED}, {}), left_with(FAILED)
    assert not await world.leave(error)
    assert world.done("judge") == [("b", error)]
    world = World({}, {where: ValueError("another")}, {})
    assert not await world.leave(error)
    assert world.done("judge") == [("a", error)], "it is of none"


@pytest.mark.parametrize(("kind", "by"), [(Kind.CORRUPTED, "b"), (Kind.GROUP_REWOUND, "c")])
async def test_an_error_is_judged_by_the_run_that_has_a_fault_of_its_own(
    kind: Kind, by: str
) -> None:
    world = World({}, {"kind": kind}, {"failed": FAILED})
    assert not await world.leave(FAILED)
    assert world.done("judge") == [(by, FAILED)]


# -- giving a run free ---------------------------------------------------------------------------


class Held:
    """A run that is over, and its attempts."""

    def __init__(
        self, *, claim: bool = True, released: bool = False, limit_s: float = 30.0
    ) -> None:
        self.limit_s = limit_s
        self.log: list[object] = []
        self.on_settle: BaseException | None = None
        event = anyio.Event()
        if released:
            event.set()
        self.run: Any = SimpleNamespace(
            guard=SimpleNamespace(
                claim=object() if claim else None, released=event, release=self._release
            ),
            policy=SimpleNamespace(close_timeout_s=limit_s),
            retention=SimpleNamespace(settle_run=self._settle),
        )

    async def _release(self) -> None:
        self.log.append("release")

    async def _settle(self, run: object, limit_s: float) -> None:
        assert run is self.run
        assert limit_s == self.limit_s
        self.log.append("settle")
        if self.on_settle is not None:
            raise self.on_settle

    def attempt(self, name: str, *, faulty: bool = False, goes: bool = True) -> Any:
        made = SimpleNamespace(faulty=faulty, gone=anyio.Event())

        async def close(outcome: str, why: str) -> None:
            assert (outcome, why) == ("interrupted", "the run is over")
            self.log.append((name, made.gone.is_set()))
            if goes:
                made.gone.set()

        made.close = close
        return made


@pytest.mark.parametrize("facts", [{"claim": False}, {"released": True}])
async def test_a_run_without_a_claim_or_given_free_before_has_nothing_to_give(
    facts: dict[str, bool],
) -> None:
    held = Held(**facts)
    await give_free(held.run, [held.attempt("a")], well=True)
    assert held.log == []


@pytest.mark.parametrize("well", [False, True])
async def test_a_run_is_given_free_once_its_sessions_are_closed(*, well: bool) -> None:
    held = Held()
    await give_free(held.run, [held.attempt("a"), None, held.attempt("b")], well=well)
    assert held.log == [*(["settle"] if well else []), ("a", False), ("b", False), "release"]


async def test_one_that_is_being_replaced_is_waited_for_before_it_is_closed() -> None:
    held = Held()
    replaced = held.attempt("a", faulty=True)
    async with anyio.create_task_group() as group:
        group.start_soon(give_free, held.run, [replaced])
        await anyio.wait_all_tasks_blocked()
        assert held.log == []
        replaced.gone.set()
    assert held.log == [("a", True), "release"]


async def test_a_session_that_does_not_close_keeps_nobody_from_the_run_for_long() -> None:
    held = Held(limit_s=0.01)
    with anyio.fail_after(5):
        await give_free(held.run, [held.attempt("a", faulty=True, goes=False)])
    assert held.log[-1] == "release"


async def test_a_run_whose_checkpoints_could_not_be_settled_is_given_free_all_the_same() -> None:
    held = Held()
    held.on_settle = OWN
    with pytest.raises(LookupError):
        await give_free(held.run, [held.attempt("a")], well=True)
    assert held.log[-1] == "release"


@pytest.mark.parametrize("fails", [False, True])
async def test_what_a_runs_end_needs_is_carried_out_before_the_run_is_given_free(
    *, fails: bool
) -> None:
    held = Held()

    async def ending() -> None:
        held.log.append("ending")
        if fails:
            raise OWN

    end = end_and_give_free(ending(), held.run, [held.attempt("a")], well=True)
    if fails:
        with pytest.raises(LookupError):
            await end
    else:
        await end
    assert held.log == ["ending", "settle", ("a", False), "release"]


async def test_what_no_body_has_entered_of_a_run_without_a_claim_is_closed_in_the_background() -> (
    None
):
    held = Held(claim=False)
    spawned: list[Any] = []
    held.run.spawn = spawned.append
    ready, left, closed = map(held.attempt, ("ready", "left", "closed"))
    ready.entered, left.entered, closed.entered = False, True, False
    ready.closed, closed.closed = False, True

    async def ending() -> None:
        held.log.append("ending")

    await end_and_give_free(ending(), held.run, [left, ready, closed, None])
    assert held.log == ["ending"]
    for each in spawned:
        await each()
    assert held.log == ["ending", ("ready", False)]


# -- a claim that is lost ------------------------------------------------------------------------


class Claimed:
    """A run with a claim, and what it was ended with."""

    def __init__(self, *, ended: bool = False, held: bool | Exception = True) -> None:
        async def still_held() -> bool:
            if isinstance(held, Exception):
                raise held
            return held

        async def holder_now() -> str:
            return "process 7 on another machine"

        self.lost = anyio.Event()
        claim = SimpleNamespace(
            lost=self.lost,
            name="r",
            session_id="s",
            holder_now=holder_now,
            still_held=still_held,
        )
        self.guard = ClaimGuard(cast("Any", claim), cast("Any", None))
        self.ended_by: list[tuple[LeaseLost, DetectedBy]] = []
        self.run: Any = SimpleNamespace(
            guard=self.guard,
            ended=ended,
            lease_lost=lambda error, by: self.ended_by.append((error, by)),
        )


@pytest.mark.parametrize("ended", [False, True])
async def test_a_run_whose_claim_is_lost_is_ended_with_who_has_it_unless_it_is_over(
    *, ended: bool
) -> None:
    claimed = Claimed(ended=ended)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(end_when_lost, claimed.run)
            await anyio.wait_all_tasks_blocked()
            assert claimed.ended_by == []
            claimed.lost.set()
    assert len(claimed.ended_by) == (not ended)
    for error, by in claimed.ended_by:
        assert "taken over by another process, process 7 on another machine" in str(error)
        assert by is DetectedBy.CLAIM


async def test_nobody_waits_for_the_loss_of_a_claim_that_was_given_free_or_that_there_is_not() -> (
    None
):
    claimed = Claimed()
    with anyio.fail_after(5):
        await end_when_lost(cast("Any", SimpleNamespace(guard=Guard())))
        async with anyio.create_task_group() as group:
            group.start_soon(end_when_lost, claimed.run)
            await anyio.wait_all_tasks_blocked()
            claimed.guard.released.set()
    assert claimed.ended_by == []


@pytest.mark.parametrize(
    ("held", "lost"), [(True, False), (False, True), (StatusError("cannot be asked"), False)]
)
async def test_a_run_at_its_end_is_lost_only_if_the_service_says_so(
    *, held: bool | Exception, lost: bool
) -> None:
    assert ((await claim_lost(Claimed(held=held).run)) is not None) == lost
