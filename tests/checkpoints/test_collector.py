"""What one collection deletes, renews and says, request by request, at a service made up here."""

from __future__ import annotations

import logging
import math
from datetime import datetime, timedelta
from typing import Any

import anyio.to_thread
import httpx
import pytest
from collected import START_S, World
from made import LINEAGE, path, segment

from tinker_recovery import CheckpointPolicy, LeaseLost, StatusError, StatusRefused
from tinker_recovery.checkpoints import (
    Deletion,
    Finding,
)
from tinker_recovery.checkpoints.deletion import SETTLE_S
from tinker_recovery.journal.holder import Holder
from tinker_recovery.journal.lease import HeldLease, take
from tinker_recovery.retention.verifier import Verifier
from tinker_recovery.service.guard import Guard
from tinker_recovery.telemetry import names

DAY_S = 86_400.0


async def test_each_deletion_is_counted_with_its_size_and_told() -> None:
    world, seen = World(1, 2, 3), list[int]()
    async with world.collector() as collector:
        done = await collector.collect(world, lambda so_far: seen.append(len(so_far.deleted)))
    assert done.deleted == {path("a", 1): 10, path("a", 2): 20}
    assert (done.failed, done.renewed, done.kept) == ({}, [], 1)
    assert done.next_at == math.inf
    assert seen == [1, 2]
    told = world.said(names.EVENT_CHECKPOINT_DELETED)
    assert [event.fields[names.CHECKPOINT_PATH] for event in told] == list(done.deleted)
    assert {event.run for event in told} == {"r"}


async def test_what_is_left_is_counted_in_tinker_runs_that_nothing_relies_on_any_more() -> None:
    world = World(1, 2)
    for step, run, parent in ((3, "b", path("a", 2)), (4, "c", path("b", 3))):
        world.save(step, run, parent=parent)
        world.segments.append(segment(run, step - 1, parent))
    async with world.collector() as collector:
        for _ in range(2):  # what was listed twice alike is remembered
            await collector.look(world)
        done = await collector.collect(world)
    assert world.deletions == [path("a", 1), path("a", 2)]
    assert (world.steps(), done.kept) == ([3, 4], 2)


def _with_earlier_runs(by: str, **policy: Any) -> World:
    """Steps 1 and 2 in a Tinker run that nothing relies on any more, and then 3, and 4 and 5."""
    world = World(**policy)
    for step in (1, 2):
        world.save(step, by=by)
    for step, run, parent in (
        *((3, "b", path("a", 2)), (4, "c", path("b", 3)), (5, "c", path("b", 3))),
    ):
        world.save(step, run, parent=parent)
    world.segments += [segment("b", 2, path("a", 2)), segment("c", 3, path("b", 3))]
    return world


@pytest.mark.parametrize("by", ["schedule", "user"])
async def test_what_another_process_has_deleted_fills_no_place_though_it_is_remembered(
    by: str,
) -> None:
    """Otherwise a fifth would go, and three would be left of the four that are to be kept."""
    world = _with_earlier_runs(by, keep_last=4, delete_user_saves=by == "user")
    async with world.collector() as collector:
        world.protected = {path("a", 1): "it is being read"}
        for _ in range(3):
            await collector.collect(world)
        world.protected = {}
        del world.stored[path("a", 2)]
        world.listings.clear()
        done = await collector.collect(world)
    assert (world.steps(), done.kept) == ([1, 3, 4, 5], 4)
    assert sorted(world.listings) == ["a", "b", "c"], "each is listed again once"


async def test_what_is_the_users_own_is_not_listed_again_to_delete_something_else() -> None:
    world = _with_earlier_runs("user", keep_last=2)
    async with world.collector() as collector:
        world.protected = {path("b", 3): "it is being read"}
        for _ in range(3):
            await collector.collect(world)
        world.save(6, "c", parent=path("b", 3))
        world.listings.clear()
        await collector.collect(world)
    assert world.steps() == [1, 2, 3, 5, 6]
    assert "a" not in world.listings


async def test_a_run_that_has_no_tinker_run_yet_has_nothing_to_collect() -> None:
    world = World(1, 2)
    world.segments = []
    done = await world.collect()
    assert (world.steps(), done.kept, world.listings) == ([1, 2], 0, [])


async def test_a_deletion_that_fails_again_and_again_is_told_once_and_tried_when_it_is_due() -> (
    None
):
    world = World(1, 2, 3)
    world.on_delete = lambda where: 500 if where == path("a", 1) else 200
    async with world.collector() as collector:
        first = await collector.collect(world)
        assert list(first.failed) == [path("a", 1)]
        assert list(first.deleted) == [path("a", 2)]
        assert first.kept == 2
        assert first.next_at == START_S + 30.0
        assert len(world.said(names.EVENT_CHECKPOINT_DELETE_FAILED)) == 1
        world.now_s += 29.0
        assert (await collector.collect(world)).failed == {}
        assert world.deletions.count(path("a", 1)) == 1, "it is not due"
        world.now_s += 1.0
        again = await collector.collect(world)
        assert list(again.failed) == [path("a", 1)]
        assert again.next_at == world.now_s + 60.0
        assert len(world.said(names.EVENT_CHECKPOINT_DELETE_FAILED)) == 1
        world.on_delete = lambda _: 200
        world.now_s = again.next_at
        last = await collector.collect(world)
    assert (last.failed, last.deleted) == ({}, {path("a", 1): 10})
    assert last.next_at == math.inf


async def test_what_has_failed_and_succeeded_in_one_collection_has_not_failed() -> None:
    """The retry falls due while others wait for their turn."""
    world = World(1, 2, 3, 4, max_deletes_per_s=0.02)
    world.on_delete = lambda _: 500 if len(world.deletions) == 1 else 200
    done = await world.collect()
    assert (done.failed, world.steps()) == ({}, [4])
    assert world.deletions.count(path("a", 1)) == 2
    assert done.deleted.keys() == {path("a", 1), path("a", 2), path("a", 3)}


@pytest.mark.parametrize("rate", [0.1, 0.5, 4.0])
async def test_no_more_is_deleted_in_a_time_than_the_policy_allows(rate: float) -> None:
    world = World(*range(1, 14), max_deletes_per_s=rate)
    await world.collect()
    assert world.steps() == [13]
    at_once = max(1, math.ceil(2.0 * rate))
    assert sum(world.slept) == pytest.approx((12 - at_once) / rate)


async def test_what_was_decided_long_ago_is_decided_anew_before_it_is_asked_for() -> None:
    """Each request takes 1.5 s; what is protected meanwhile stays."""
    world = World(1, 2, 3, 4)

    def slowly(_: str) -> int:
        world.now_s += 1.5
        world.protected = {path("a", 3): "it is being read"}
        return 200

    world.on_delete = slowly
    await world.collect()
    assert world.steps() == [3, 4]


async def test_what_two_seconds_ago_was_decided_is_fresh_enough() -> None:
    world = World(1, 2, 3)

    def slowly(_: str) -> int:
        world.now_s += 2.0
        world.protected = {path("a", 2): "it is being read"}
        return 200

    world.on_delete = slowly
    await world.collect()
    assert world.steps() == [3]


async def test_a_run_that_begins_to_recover_keeps_what_is_left() -> None:
    world = World(1, 2, 3, 4)

    def fault(_: str) -> int:
        world.recovering = True
        return 200

    world.on_delete = fault
    done = await world.collect()
    assert world.steps() == [2, 3, 4]
    assert list(done.deleted) == [path("a", 1)]
    assert world.deletions == [path("a", 1)]


async def test_a_run_that_is_recovering_is_not_even_looked_at() -> None:
    world = World(1, 2)
    world.recovering = True
    done = await world.collect()
    assert (world.steps(), done.kept, done.next_at) == ([1, 2], 0, math.inf)


class _LosesIt(Guard):
    """A claim that cannot be asked for from some time on."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    async def check(self, *, for_certain: bool = False) -> None:
        self.left -= 1
        if self.left < 0 and for_certain:
            raise StatusError("the service cannot be asked")


@pytest.mark.parametrize("checks", range(7))
async def test_each_line_and_each_request_has_the_claim_asked_for_before(checks: int) -> None:
    """Two deletions: two times intended, two times deleting, two requests."""
    world = World(1, 2, 3)
    async with world.collector() as collector:
        if checks < 6:
            with pytest.raises(StatusError):
                await collector.collect(world, guard=_LosesIt(checks))
        else:
            await collector.collect(world, guard=_LosesIt(checks))
        lines = map(Deletion.from_line, (await world.notebook.notes()).deletions.values())
        states = sorted(line.state for line in lines)
    assert len(world.deletions) == max(0, checks - 4)
    expected = {
        0: [],
        1: ["intended"],
        2: ["intended", "intended"],
        3: ["deleting", "intended"],
        4: ["deleting", "deleting"],
        5: ["deleted", "deleting"],
        6: ["deleted", "deleted"],
    }
    assert states == expected[checks]


class _TakenOver(_LosesIt):
    """No claim, and a lease that another process takes after so many times of asking."""

    def __init__(self, after: int, world: World) -> None:
        super().__init__(after)
        self._world = world

    async def check(self, *, for_certain: bool = False) -> None:
        try:
            await super().check(for_certain=for_certain)
        except StatusError:
            await hold(self._world, "another")


async def hold(world: World, by: str) -> int:
    """Have the run held by somebody; returns the token."""
    here = Holder("host", "machine", 1, "1", 0.0, 0.0)

    def hold_now() -> int | HeldLease:
        with world.journal.database.transaction() as database:
            return take(database, 1, holder=by, here=here, seen=None, now=0.0, rob=True)

    token = await anyio.to_thread.run_sync(hold_now)
    assert isinstance(token, int)
    return token


@pytest.mark.parametrize("checks", range(7))
async def test_each_line_and_each_request_needs_the_lease_in_the_journal(checks: int) -> None:
    """The same where there is no claim that could be asked."""
    world = World(1, 2, 3)
    async with world.collector() as collector:
        world.lease = 1, await hold(world, "us")
        guard = _TakenOver(checks, world)
        if checks < 6:
            with pytest.raises(LeaseLost):
                await collector.collect(world, guard=guard)
        else:
            await collector.collect(world, guard=guard)
    assert len(world.deletions) == max(0, checks - 4)


async def test_what_is_deleted_is_forgotten_once_it_is_settled_and_no_longer_listed() -> None:
    world = World(1, 2, 3)
    async with world.collector() as collector:
        again = world.stored[path("a", 1)]
        await collector.collect(world)
        gone = {path("a", 1), path("a", 2)}
        assert (await world.notebook.notes()).deletions.keys() == gone
        world.now_s += SETTLE_S
        await collector.collect(world)
        assert (await world.notebook.notes()).deletions.keys() == gone, "it may be listed yet"
        world.now_s += 1.0
        world.stored[path("a", 1)] = again
        world.protected = {path("a", 1): "it is being read"}
        world.checkpoints.listings.forget("a")
        await collector.collect(world)
        assert (await world.notebook.notes()).deletions.keys() == {path("a", 1)}


async def test_what_is_found_gone_is_kept_in_mind_though_a_recovery_begins_meanwhile() -> None:
    """It may be listed again for a while, and nothing may rely on it then."""
    gone = path("a", 1)

    class Begins(Guard):
        async def check(self, *, for_certain: bool = False) -> None:
            del for_certain
            world.recovering = True

    world = World(2)
    async with world.collector() as collector:
        entry = Deletion(gone, "deleting", "x", START_S - 2 * SETTLE_S, sent=True)
        await world.notebook.write_deletion(gone, entry.to_line(), LINEAGE, None)
        await collector.collect(world, guard=Begins())
        assert (await world.notebook.notes()).deletions.keys() == {gone}
    assert world.checkpoints.being_deleted.keys() == {gone}


async def test_no_process_goes_back_to_what_it_has_stored_and_deleted() -> None:
    world = World(1, 2, 3)
    world.checkpoints.stored = {path("a", step): ("a", step) for step in (1, 2, 3)}
    await world.collect()
    assert world.checkpoints.settled_on(world.segments) == {3: [path("a", 3)]}


async def test_no_lifetime_is_renewed_of_a_run_that_may_be_lost() -> None:
    world = World(ttl_s=7200.0)
    world.save(1, lives_s=100.0 * 60)
    async with world.collector() as collector:
        world.now_s += 50 * 60
        with pytest.raises(StatusError):
            await collector.collect(world, guard=_LosesIt(0))
    assert world.lifetimes == []


# -- lifetimes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "renewed"), [(200, True), (299, True), (300, False), (500, False)]
)
async def test_a_lifetime_is_renewed_when_it_is_due_and_the_answer_is_told(
    status: int, *, renewed: bool
) -> None:
    world = World(ttl_s=7200.0)
    newest = world.save(5, lives_s=7200.0)
    world.on_ttl = lambda _: status
    async with world.collector() as collector:
        early = await collector.collect(world)
        assert early.next_at == START_S + 3600.0
        assert world.lifetimes == []
        world.now_s = early.next_at
        done = await collector.collect(world)
    assert world.lifetimes == [(newest, 7200)]
    assert done.renewed == ([newest] if renewed else [])
    (told,) = world.said(
        names.EVENT_CHECKPOINT_RENEWED if renewed else names.EVENT_CHECKPOINT_RENEWAL_FAILED
    )
    assert told.fields[names.CHECKPOINT_PATH] == newest
    assert ("lives for 7200 s more" in told.message) == renewed
    assert (f"the service answered {status}" in told.message) == (not renewed)
    assert len(world.events) == 1


async def test_a_lifetime_is_asked_for_once_in_a_collection_though_the_service_ignores_it() -> None:
    world = World(1, 2, ttl_s=7200.0)
    newest = world.save(5, lives_s=3500.0)
    world.ignores_lifetimes = True
    done = await world.collect()
    assert world.deletions == [path("a", 1), path("a", 2)]
    assert (world.lifetimes, done.renewed) == ([(newest, 7200)], [newest])


@pytest.mark.usefixtures("no_waiting_between_tries")
async def test_a_renewal_without_an_answer_is_said_to_have_had_none() -> None:
    def nothing(_: str) -> int:
        raise httpx.ConnectError("refused")

    world = World(ttl_s=7200.0)
    world.save(5, lives_s=3500.0)
    world.on_ttl = nothing
    done = await world.collect()
    (event,) = world.said(names.EVENT_CHECKPOINT_RENEWAL_FAILED)
    assert event.message.endswith("could not be renewed: no answer came")
    assert done.renewed == []


@pytest.mark.parametrize("ahead_s", [600, -600])
async def test_what_is_due_by_the_services_clock_is_said_by_ours(ahead_s: int) -> None:
    world = World(ttl_s=7200.0)
    world.save(5, lives_s=7200.0)
    world.ahead_s = ahead_s
    assert (await world.collect()).next_at == pytest.approx(START_S + 3600.0 - ahead_s, abs=1.0)


async def test_the_next_thing_due_is_the_earliest_of_all() -> None:
    world = World(1, 2, ttl_s=7200.0)
    world.save(5, lives_s=7200.0)
    world.on_delete = lambda _: 500
    assert (await world.collect()).next_at == START_S + 30.0


async def test_a_lifetime_that_the_policy_does_not_want_is_taken_away() -> None:
    world = World()
    newest = world.save(5, lives_s=3600.0)
    async with world.collector() as collector:
        done = await collector.collect(world)
        assert (await collector.collect(world)).next_at == math.inf
    assert world.lifetimes == [(newest, None)]
    assert done.renewed == [newest]
    assert "lives for ever" in world.events[0].message


async def test_what_is_pinned_or_to_be_published_is_renewed_as_well() -> None:
    world = World(ttl_s=7200.0)
    pinned, published, other = (world.save(step, lives_s=1800.0) for step in (1, 2, 3))
    newest = world.save(5, lives_s=7200.0)
    async with world.collector(keeps=lambda _: {published: "it is to be published"}) as collector:
        await world.notebook.pin(pinned, "the one of the paper")
        done = await collector.collect(world)
    assert sorted(done.renewed) == [pinned, published]
    assert dict(world.lifetimes) == {pinned: None, published: 7200}, "no listing gives it one back"
    assert world.deletions == [other]
    assert newest in world.stored


async def test_a_collection_by_hand_renews_nothing() -> None:
    world = World()
    world.save(5, lives_s=3600.0)
    done = await world.collect(keeps_alive=False)
    assert (world.lifetimes, done.renewed, done.next_at) == ([], [], math.inf)


async def test_a_renewed_lifetime_is_known_to_a_recovery() -> None:
    world = World(ttl_s=7200.0)
    name = f"tinker://a/weights/step-{5:08d}"
    world.stored[name] = {**world.stored.pop(world.save(5, lives_s=1800.0)), "tinker_path": name}
    await world.collect()
    assert world.lifetimes == [(name, 7200)]
    assert world.checkpoints.ended(name, now_s=START_S + 7199.0) is None
    assert world.checkpoints.ended(name, now_s=START_S + 7200.0) is not None


# -- what is relied on ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ttl_s", "lasting_s"), [(None, DAY_S), (30 * DAY_S, DAY_S), (7200.0, 2400.0)]
)
@pytest.mark.parametrize("more_s", [0.0, 1.0])
async def test_one_that_expires_soon_has_an_earlier_one_kept_that_lasts(
    ttl_s: float | None, lasting_s: float, more_s: float
) -> None:
    world = World(1, 2, ttl_s=ttl_s)
    newest = world.save(3, lives_s=lasting_s + more_s)
    async with world.collector(keeps_alive=False) as collector:
        found = await collector.look(world)
    wanted = {newest, path("a", 2)} if more_s == 0.0 else {newest}
    assert found.needed.keys() == wanted
    assert [each.path for each in found.plan.deletions] == [
        path("a", step) for step in (1, 2) if path("a", step) not in wanted
    ]


@pytest.mark.parametrize("delete_user_saves", [False, True])
async def test_a_save_of_the_users_is_relied_on_alone_only_if_it_is_ours_to_delete(
    *, delete_user_saves: bool
) -> None:
    """The user may delete it at any time."""
    world = World(1, 2, delete_user_saves=delete_user_saves)
    mine = world.save(3, by="user")
    async with world.collector() as collector:
        found = await collector.look(world)
    assert found.needed.keys() == ({mine} if delete_user_saves else {mine, path("a", 2)})


@pytest.mark.parametrize("against", ["other weights", "another size", "rejected", "not trusted"])
async def test_what_something_speaks_against_is_not_relied_on(against: str) -> None:
    world = World(1, 2, 3)
    if against == "other weights":
        world.rank[path("a", 3)] = 16
    if against == "rejected":
        world.checkpoints.bad[path("a", 3)] = "its weights are others"
    if against == "not trusted":
        world.checkpoints.distrust("a", 2)
    async with world.collector() as collector:
        if against == "another size":
            await world.notebook.note_sizes({path("a", 3): 7})
        found = await collector.look(world)
        assert found.needed == {path("a", 2): "the newest one known to be sound"}
        await collector.collect(world)
    assert 2 in world.steps()


@pytest.mark.parametrize("status", [403, 404, 501])
async def test_what_is_relied_on_has_to_be_vouched_for_by_the_service(status: int) -> None:
    """A refusal to say what its weights are is no objection to a restore, and one to a deletion."""
    world = World(1, 2, 3)
    world.weights_status[path("a", 3)] = status
    async with world.collector() as collector:
        if status == 403:
            with pytest.raises(StatusRefused):
                await collector.look(world)
            return
        found = await collector.look(world)
    assert found.needed.keys() == {path("a", 3 if status == 501 else 2)}


@pytest.mark.parametrize("delete_user_saves", [False, True])
async def test_of_what_a_fault_may_yet_cost_the_newest_and_what_it_leaves_are_both_relied_on(
    *, delete_user_saves: bool
) -> None:
    world = World(1, 2, 3, 4, delete_user_saves=delete_user_saves)
    world.checkpoints.watch(lambda _: math.inf, lambda _: 2, set)
    async with world.collector() as collector:
        found = await collector.look(world)
    assert found.needed == {
        path("a", 4): "the newest valid one",
        path("a", 2): "the newest one known to be sound",
    }


@pytest.mark.parametrize("how", ["protected", "pending", "keeps"])
@pytest.mark.parametrize("kept_step", [1, 2, 3])
async def test_what_is_protected_pending_or_kept_from_outside_stays(
    how: str, kept_step: int
) -> None:
    world, kept = World(1, 2, 3), {path("a", kept_step): "it is being read"}
    more: dict[str, Any] = {}
    if how == "protected":
        world.protected = kept
    elif how == "pending":
        world.pending = set(kept)
    else:
        more["keeps"] = lambda run: kept if run is world else {}
    await world.collect(**more)
    assert world.steps() == sorted({3, kept_step})


async def test_the_sizes_that_are_said_are_noted_at_first_sight() -> None:
    world = World(1, 2)
    world.stored[world.save(3)]["size_bytes"] = None
    async with world.collector() as collector:
        await collector.look(world)
        assert (await world.notebook.notes()).sizes == {path("a", 1): 10, path("a", 2): 20}


async def test_what_is_not_ours_stays_and_is_no_trouble() -> None:
    world = World(1, 2, 3)
    foreign = world.save(4)
    world.stored[foreign]["user_metadata"] = {}
    await world.collect()
    assert world.steps() == [3, 4]


async def test_where_it_was_recovered_from_is_needed() -> None:
    world = World(1, 2, 3)
    world.segments.append(segment("b", 1, path("a", 1)))
    async with world.collector() as collector:
        found = await collector.look(world)
    assert found.needed[path("a", 1)] == "the one recovered from"
    assert [each.path for each in found.plan.deletions] == []


# -- by bytes ------------------------------------------------------------------------------------


class _Verdicts(Verifier):
    """Says of each checkpoint what it was given; a sound one by default."""

    def __init__(self, **findings: Finding) -> None:
        self.findings = findings
        self.asked: list[str] = []

    async def verify(self, path: str, **asked: Any) -> list[Finding]:
        assert asked == {"deep": True, "lineage": LINEAGE}
        self.asked.append(path)
        found = self.findings.get(f"s{path.rpartition('/')[2]}")
        return [
            Finding("listing", ok=True, reason=""),
            found or Finding("bytes", ok=True, reason=""),
        ]


async def test_what_is_relied_on_is_looked_at_to_its_bytes_once() -> None:
    world, verdicts = World(1, 2, 3, verify_deep=True), _Verdicts()
    async with world.collector() as collector:
        collector._verifier = verdicts
        for _ in range(2):
            await collector.collect(world)
    assert verdicts.asked == [path("a", 3)]
    assert world.steps() == [3]


async def test_a_save_written_to_the_same_path_since_is_looked_at_as_well() -> None:
    """By the user, who may delete it at any time, so the one before is relied on as well."""
    world, verdicts = World(1, 2, verify_deep=True), _Verdicts()
    where = world.save(3, by="user")
    async with world.collector() as collector:
        collector._verifier = verdicts
        await collector.look(world)
        saved_again = datetime.fromisoformat(world.stored[where]["time"]) + timedelta(seconds=1)
        world.stored[where]["time"] = saved_again.isoformat()
        for _ in range(2):
            await collector.look(world)
    assert verdicts.asked == [where, path("a", 2), where]


async def test_what_is_not_whole_is_rejected_and_the_one_before_is_relied_on() -> None:
    world = World(1, 2, 3, verify_deep=True)
    verdicts = _Verdicts(s3=Finding("bytes", ok=False, reason="a zero tail"))
    async with world.collector() as collector:
        collector._verifier = verdicts
        await collector.collect(world)
        assert (await world.notebook.notes()).bad == {path("a", 3): "a zero tail"}
    assert world.steps() == [2, 3], "no valid one has got as far as the bad one"
    assert world.checkpoints.bad == {path("a", 3): "a zero tail"}
    assert verdicts.asked == [path("a", 3), path("a", 2)]


async def test_what_is_not_listed_when_its_bytes_are_to_be_looked_at_is_neither_used_nor_bad() -> (
    None
):
    """Asked of the verifier itself, which lists it again: one listing can be short by accident."""
    world = World(3, verify_deep=True)
    world.on_weights = lambda where: world.stored.pop(where, None)
    async with world.collector() as collector:
        found = await collector.look(world)
    assert found.needed == {}
    assert world.checkpoints.bad == {}
    assert (await world.notebook.notes()).bad == {}


async def test_where_there_is_no_export_nothing_is_deleted_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(1, 2, 3, verify_deep=True)
    unseen = Finding("bytes", ok=True, reason="no export", looked=False)
    verdicts = _Verdicts(s1=unseen, s2=unseen, s3=unseen)
    with caplog.at_level(logging.WARNING):
        async with world.collector() as collector:
            collector._verifier = verdicts
            assert (await collector.look(world)).needed == {}
            for _ in range(2):
                await collector.collect(world)
    assert world.steps() == [1, 2, 3]
    assert verdicts.asked == [path("a", 3)]
    assert caplog.text.count("this service has no export") == 1
    assert world.checkpoints.bad == {}


async def test_without_verify_deep_no_bytes_are_looked_at() -> None:
    world, verdicts = World(1, 2), _Verdicts()
    async with world.collector() as collector:
        collector._verifier = verdicts
        await collector.collect(world)
    assert (verdicts.asked, world.steps()) == ([], [2])


# -- the metric to choose by ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "saves", "metrics", "warns"),
    [
        ({"keep_last": 0, "keep_best": 2}, 3, {}, True),
        ({"keep_last": 0, "keep_best": 2}, 2, {}, False),
        ({"keep_last": 0, "keep_best": 2}, 3, {"loss": 1.0}, False),
        ({"keep_last": 0, "keep_best": 2}, 3, {"los": 1.0}, True),
        ({"keep_last": 0, "keep_best": 2}, 3, {"loss": math.nan}, True),
        ({"keep_last": 1, "keep_best": 2}, 3, {}, False),
        ({"keep_last": 0, "keep_every": 2, "save_best": False}, 3, {}, False),
        ({"strategy": "last"}, 9, {}, False),
        ({"strategy": "all"}, 9, {}, False),
    ],
)
async def test_it_is_said_once_that_no_checkpoint_has_the_metric(
    policy: dict[str, Any],
    saves: int,
    metrics: dict[str, float],
    caplog: pytest.LogCaptureFixture,
    *,
    warns: bool,
) -> None:
    world = World(policy=CheckpointPolicy(**policy))
    for step in range(1, saves + 1):
        world.save(step, metrics=metrics if step != 1 else {})
    async with world.collector() as collector:
        for _ in range(2):
            await collector.collect(world)
    assert caplog.text.count("finite value of the metric") == warns
