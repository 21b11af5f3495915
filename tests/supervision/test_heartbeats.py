"""A child with a heartbeat deadline that falls silent is treated as crashed."""

from __future__ import annotations

import pytest
from virtual import World, states

from tinker_recovery.supervision import (
    Child,
    ChildSpec,
    CrashReport,
    HeartbeatMissed,
    RestartLimitReached,
)


async def test_a_child_that_beats_in_time_is_left_alone(world: World) -> None:
    kid = world.kid("kid")
    async with world.tree([kid.spec(heartbeat_s=10.0)]):
        for _ in range(50):
            await world.clock.sleep(9)
            assert kid.child
            kid.child.heartbeat()
        assert kid.starts == 1


async def test_a_silent_child_is_replaced_at_its_deadline(world: World) -> None:
    kid, other = world.kid("kid"), world.kid("other")
    async with world.tree([kid.spec(heartbeat_s=10.0), other]) as tree:
        await world.clock.sleep(7)
        assert kid.child
        kid.child.heartbeat()
        await world.clock.sleep(9.9)
        assert kid.starts == 1
        await world.clock.sleep(0.2)
        assert (kid.starts, other.starts) == (2, 1)
        assert states(tree)["kid"] == "running"
    (report,) = [event for event in world.events if isinstance(event, CrashReport)]
    assert isinstance(report.reason, HeartbeatMissed)
    assert report.reason.silent_s == pytest.approx(10)
    assert "silent for 10 s; its heartbeat deadline is 10 s" in str(report.reason)


async def test_the_deadline_runs_from_ready_not_from_the_start(world: World) -> None:
    kid = world.kid("kid", start_s=100)
    async with world.tree([kid.spec(heartbeat_s=10.0, start_timeout_s=None)]):
        await world.clock.sleep(9)
        assert kid.starts == 1


async def test_a_silent_child_that_ignores_its_stop_is_abandoned_and_replaced(
    world: World,
) -> None:
    kid = world.kid("kid", deaf=10**9)
    async with world.tree([kid.spec(heartbeat_s=10.0, shutdown=2.0)]) as tree:
        await world.clock.sleep(14)
        assert (kid.starts, kid.alive) == (2, 2)
        assert [one.incarnation for one in tree.abandoned] == [1]
        kid.deaf = 0
        tree.abandoned[0].task.cancel()


async def test_silence_counts_against_the_limit(world: World) -> None:
    kid = world.kid("kid")
    with pytest.raises(RestartLimitReached) as caught:
        async with world.tree([kid.spec(heartbeat_s=10.0)], max_restarts=2, max_seconds=100):
            await world.clock.sleep(1000)
    assert isinstance(caught.value.__cause__, HeartbeatMissed)
    assert world.clock.now == pytest.approx(30)


async def test_a_temporary_child_that_falls_silent_is_stopped_and_gone(world: World) -> None:
    kid = world.kid("kid")
    async with world.tree([kid.spec(heartbeat_s=10.0, restart="temporary")]) as tree:
        await world.clock.sleep(11)
        assert (states(tree), kid.alive) == ({}, 0)


async def test_silence_restarts_the_siblings_where_the_strategy_says_so(world: World) -> None:
    kid, other = world.kid("kid"), world.kid("other")
    async with world.tree([kid.spec(heartbeat_s=10.0), other], strategy="one_for_all"):
        await world.clock.sleep(11)
        assert (kid.starts, other.starts) == (2, 2)


async def test_a_silent_child_terminated_while_it_is_stopped_stays_down(
    world: World,
) -> None:
    kid = world.kid("kid", stop_s=3)
    async with world.tree([kid.spec(heartbeat_s=10.0)]) as tree:
        await world.clock.sleep(11)
        assert states(tree) == {"kid": "stopping"}
        await tree.terminate_child("kid")
        await world.clock.sleep(100)
        assert (states(tree), kid.starts) == ({"kid": "stopped"}, 1)


async def test_a_blocked_event_loop_is_not_the_childs_silence(world: World) -> None:
    async def serve(child: Child) -> None:
        starts.append(child.incarnation)
        child.started()
        while True:
            await world.clock.sleep(5)
            child.heartbeat()

    starts: list[int] = []
    async with world.tree([ChildSpec(id="a", start=serve, heartbeat_s=6.0)]):
        await world.clock.sleep(1)
        world.clock.jump(3600)
        await world.clock.sleep(50)
        assert starts == [1]


async def test_a_heartbeat_without_a_deadline_is_without_effect(world: World) -> None:
    kid = world.kid("kid")
    async with world.tree([kid]):
        assert kid.child
        kid.child.heartbeat()
        await world.clock.sleep(10_000)
        assert kid.starts == 1
