"""A child that hangs in its start is noticed, and its siblings do not stay down with it."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual import World, states

from tinker_recovery.supervision import (
    Child,
    ChildSpec,
    CrashReport,
    RestartLimitReached,
    SpecError,
    StartTimedOut,
    SupervisionTree,
)


async def test_a_restart_that_hangs_is_tried_again_at_its_deadline(world: World) -> None:
    kid = world.kid("kid", failing=[None, "hang", "hang"])
    async with world.tree([kid.spec(start_timeout_s=10.0)], max_seconds=100) as tree:
        kid.crash()
        await world.clock.sleep(9.9)
        assert (kid.starts, states(tree)["kid"]) == (2, "restarting")
        await world.clock.sleep(0.2)
        assert kid.starts == 3
        await world.clock.sleep(10.1)
        assert (kid.starts, kid.most_alive, states(tree)["kid"]) == (4, 1, "running")
    reasons = [each.reason for each in world.events if isinstance(each, CrashReport)][1:]
    assert all(isinstance(reason, StartTimedOut) for reason in reasons)
    assert "neither started() nor ignore() within 10 s (start_timeout_s)" in str(reasons[0])


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
async def test_the_siblings_of_a_child_that_hangs_at_a_restart_come_up_again(
    world: World, strategy: str
) -> None:
    first, kid, last = world.kid("first"), world.kid("kid", failing=[None, "hang"]), world.kid("z")
    specs = [first, kid, last]
    async with world.tree(specs, strategy=strategy, max_seconds=1000) as tree:
        kid.crash()
        await world.clock.sleep(59)
        assert states(tree)["z"] == "restarting"
        await world.clock.sleep(2)
        assert set(states(tree).values()) == {"running"}
        assert last.starts == 2


async def test_a_first_start_that_hangs_is_refused_and_those_before_it_are_stopped(
    world: World,
) -> None:
    first, kid = world.kid("first"), world.kid("kid", failing=["hang"])
    with pytest.raises(StartTimedOut) as caught:
        async with world.tree([first, kid]):
            raise AssertionError
    assert world.clock.now == pytest.approx(60)
    assert caught.value.waited_s == pytest.approx(60)
    assert caught.value.__notes__ == ["child 'kid' of supervisor 'tree' failed to start"]
    assert (first.alive, kid.alive, first.starts) == (0, 0, 1)


async def test_start_child_raises_what_it_has_waited_for_and_forgets_the_child(
    world: World,
) -> None:
    kid = world.kid("kid", failing=["hang"])
    async with world.tree([]) as tree:
        with pytest.raises(StartTimedOut):
            await tree.start_child(kid.spec(start_timeout_s=1.0))
        assert states(tree) == {}


async def test_starts_that_hang_again_and_again_spend_the_budget(world: World) -> None:
    kid = world.kid("kid", failing=[None, *["hang"] * 5])
    with pytest.raises(RestartLimitReached) as caught:
        async with world.tree([kid.spec(start_timeout_s=5.0)], max_restarts=2, max_seconds=100):
            kid.crash()
            await world.clock.sleep(1000)
    assert isinstance(caught.value.__cause__, StartTimedOut)
    assert world.clock.now == pytest.approx(10)
    assert kid.alive == 0


async def test_one_that_ignores_its_stop_too_is_abandoned_and_replaced(world: World) -> None:
    kid = world.kid("kid", failing=[None, None])
    deaf, over = iter([False, True, False]), anyio.Event()

    async def start(child: Child) -> None:
        if not next(deaf):
            await kid.serve(child)
            return
        while not over.is_set():
            with suppress(asyncio.CancelledError):  # it ignores every cancellation
                await over.wait()

    spec = ChildSpec(id="kid", start=start, shutdown=1.0, start_timeout_s=5.0)
    with ExitStack() as stack:
        stack.callback(over.set)
        async with world.tree([spec], max_seconds=100) as tree:
            kid.crash()
            await world.clock.sleep(5.5)
            assert (states(tree)["kid"], kid.alive) == ("stopping", 0)
            await world.clock.sleep(2.0)  # its shutdown, and a second of further cancellations
            assert (states(tree)["kid"], kid.starts, kid.alive) == ("running", 2, 1)
            assert [each.incarnation for each in tree.abandoned] == [2]
            left = tree.abandoned[0].task
            assert not left.done()
            over.set()
            await left
            assert states(tree)["kid"] == "running"
    reasons = [each.reason for each in world.events if isinstance(each, CrashReport)]
    assert isinstance(reasons[-1], StartTimedOut)


async def test_a_first_start_that_ignores_its_stop_too_is_refused_all_the_same(
    world: World,
) -> None:
    over = anyio.Event()

    async def deaf(child: Child) -> None:
        del child
        while not over.is_set():
            with suppress(asyncio.CancelledError):  # it ignores every cancellation
                await over.wait()

    spec = ChildSpec(id="kid", start=deaf, shutdown=1.0, start_timeout_s=5.0)
    with pytest.raises(StartTimedOut):
        async with world.tree([spec]) as tree:
            raise AssertionError(tree)
    over.set()
    await anyio.lowlevel.checkpoint()


async def test_a_start_that_takes_long_is_mentioned_before_its_deadline(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    slow = world.kid("slow", start_s=30)
    async with world.tree([slow]):
        assert world.clock.now == pytest.approx(30)
    (said,) = [each.getMessage() for each in caplog.records if "started()" in each.getMessage()]
    assert said == (
        "supervisor tree: child slow (incarnation 1) has not called started() for 10 s, and "
        "whatever is started behind it waits; after 60 s (start_timeout_s) its start has failed"
    )


async def test_without_a_deadline_it_is_waited_for_and_that_is_said(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    slow = world.kid("slow", start_s=10_000)
    async with world.tree([slow.spec(start_timeout_s=None)]):
        assert world.clock.now == pytest.approx(10_000)
    assert "it has no start_timeout_s" in caplog.text


async def test_a_supervisor_inside_waits_as_long_as_its_own_children_may_take(
    world: World,
) -> None:
    kids = [world.kid(one, start_s=50) for one in "abc"]
    inner = world.tree(kids, name="inner")
    async with world.tree([inner.as_child()]) as tree:
        assert world.clock.now == pytest.approx(150)
        assert states(tree)["inner"] == "running"


async def test_time_in_which_the_event_loop_stood_still_is_no_hang(world: World) -> None:
    async def serve(child: Child) -> None:
        await world.clock.sleep(6)
        world.clock.jump(30)
        await world.clock.sleep(1)
        child.started()
        await world.clock.sleep(10**6)

    async with world.tree([ChildSpec(id="kid", start=serve, start_timeout_s=10.0)]) as tree:
        assert world.clock.now == pytest.approx(37)
        assert [each.incarnation for each in tree.which_children()] == [1]


async def test_terminating_a_child_that_hangs_is_no_failed_start(world: World) -> None:
    kid = world.kid("kid", failing=[None, "hang"])
    async with world.tree([kid.spec(start_timeout_s=10.0)]) as tree:
        kid.crash()
        await world.clock.sleep(5)
        await tree.terminate_child("kid")
        await world.clock.sleep(100)
        assert (states(tree)["kid"], kid.starts) == ("stopped", 2)


@given(
    hangs=st.lists(st.sampled_from([None, "hang"]), min_size=1, max_size=6),
    deadline_s=st.sampled_from([1.0, 10.0, 45.0]),
)
def test_whatever_its_starts_do_it_is_up_in_the_end_after_one_deadline_for_each_hang(
    hangs: list[str | None], deadline_s: float
) -> None:
    async def play() -> None:
        world = World()
        kid = world.kid("kid", failing=[None, *hangs])
        leading = next((n for n, each in enumerate(hangs) if each is None), len(hangs))
        async with world.tree(
            [kid.spec(start_timeout_s=deadline_s)], max_restarts=10, max_seconds=10**6
        ) as tree:
            kid.crash()
            await world.clock.sleep(leading * deadline_s + 0.5)
            assert states(tree)["kid"] == "running"
            assert (kid.starts, kid.most_alive) == (2 + leading, 1)

    anyio.run(play)


# A budget of its own


async def test_a_child_with_a_budget_of_its_own_leaves_that_of_the_others_alone(
    world: World,
) -> None:
    own, other = world.kid("own"), world.kid("other")
    specs = [own.spec(max_restarts=5), other.spec()]
    async with world.tree(specs, max_restarts=1) as tree:
        for _ in range(5):
            own.crash()
            await world.settle()
        other.crash()
        await world.settle()
        assert set(states(tree).values()) == {"running"}
    assert (own.starts, other.starts) == (6, 2)


async def test_beyond_its_own_budget_the_supervisor_gives_up_and_names_it(world: World) -> None:
    own, other = world.kid("own"), world.kid("other")
    specs = [own.spec(max_restarts=1, max_seconds=10.0), other.spec()]
    with pytest.raises(RestartLimitReached) as caught:
        async with world.tree(specs, max_restarts=100, max_seconds=10**6):
            own.crash()
            await world.clock.sleep(11)
            for _ in range(2):
                own.crash()
                await world.clock.sleep(1)
    error = caught.value
    assert (error.child, error.max_restarts, error.max_seconds, error.own) == ("own", 1, 10.0, True)
    assert "child 'own' needed more than 1 restarts within 10 s" in str(error)
    assert other.alive == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("start_timeout_s", 0),
        ("start_timeout_s", "1"),
        ("max_restarts", -1),
        ("max_restarts", 1.5),
        ("max_seconds", 0),
        ("max_seconds", 5.0),
    ],
)
def test_what_cannot_work_is_refused(world: World, field: str, value: object) -> None:
    with pytest.raises(SpecError) as caught:
        world.kid("kid").spec(**{field: value})
    assert caught.value.field == field


def test_a_budget_of_its_own_that_its_backoff_can_never_exceed_is_refused(world: World) -> None:
    spec = world.kid("kid").spec(max_restarts=100, max_seconds=1.0)
    with pytest.raises(SpecError, match="max_seconds"):
        SupervisionTree([spec])
