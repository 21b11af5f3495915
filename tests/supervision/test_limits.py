"""How often is too often: the restart limit, the backoff, and giving up."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable

import pytest
from virtual import World, states

from tinker_recovery.supervision import (
    Backoff,
    Child,
    ChildSpec,
    Escalated,
    RestartLimitReached,
    RestartScheduled,
)
from tinker_recovery.supervision.intensity import healthy_after


def mortal(world: World, lives_s: Iterable[float]) -> ChildSpec:
    """A child whose lives last this long, one after the other."""
    lives = iter(lives_s)

    async def serve(child: Child) -> None:
        child.started()
        await world.clock.sleep(next(lives))
        raise ValueError("crash")

    return ChildSpec(id="mortal", start=serve)


async def test_up_to_the_limit_crashes_are_restarted_and_one_more_escalates(world: World) -> None:
    kid, other = world.kid("kid"), world.kid("other")
    own = OSError("disk full")
    with pytest.raises(RestartLimitReached) as caught:
        async with world.tree([other, kid], max_restarts=3):
            for _ in range(3):
                kid.crash()
                await world.settle()
                assert kid.alive
            kid.crash(own)
            await world.clock.sleep(10)
            raise AssertionError
    error = caught.value
    assert error.__cause__ is own
    assert error.root_cause is own
    assert (error.supervisor, error.child, error.max_restarts) == ("tree", "kid", 3)
    assert str(error) == (
        "supervisor 'tree' gave up: its children needed more than 3 restarts within 60 s; "
        "the last crash was that of 'kid': OSError('disk full')"
    )
    assert world.log[-1] == "-other"
    assert (kid.alive, other.alive) == (0, 0)


async def test_the_budget_is_one_for_all_children_together(world: World) -> None:
    a, b = world.kids("ab")
    with pytest.raises(RestartLimitReached):
        async with world.tree([a, b], max_restarts=3):
            for kid in (a, b, a, b):
                kid.crash()
                await world.settle()
            await world.clock.sleep(1)


async def test_the_window_slides(world: World) -> None:
    kid = world.kid("kid")
    async with world.tree([kid], max_restarts=2, max_seconds=10):
        for _ in range(20):
            kid.crash()
            await world.clock.sleep(5.1)
        assert kid.starts == 21
    with pytest.raises(RestartLimitReached):
        async with world.tree([kid], max_restarts=2, max_seconds=10):
            for _ in range(20):
                kid.crash()
                await world.clock.sleep(4.9)


async def test_no_restarts_at_all_can_be_asked_for(world: World) -> None:
    kid = world.kid("kid")
    with pytest.raises(RestartLimitReached, match="more than 0 restarts"):
        async with world.tree([kid], max_restarts=0):
            kid.crash()
            await world.clock.sleep(1)
    assert kid.starts == 1


async def test_a_permanent_child_that_returns_too_often_has_a_cause_too(world: World) -> None:
    kid = world.kid("kid")
    with pytest.raises(RestartLimitReached) as caught:
        async with world.tree([kid], max_restarts=0):
            kid.finish()
            await world.clock.sleep(1)
    assert "permanent child 'kid' returned" in str(caught.value.__cause__)


async def test_the_backoff_grows_to_its_cap_and_jitter_only_lengthens_it(world: World) -> None:
    kid = world.kid("kid")
    backoff = Backoff(initial_s=1, max_s=4, factor=2, jitter=0.5)
    changes = {"max_restarts": 5, "max_seconds": 600.0, "healthy_after_s": 50.0}
    async with world.tree([kid], backoff=backoff, random=lambda: 0.5, **changes):
        for _ in range(5):
            kid.crash()
            await world.clock.sleep(7)
        assert kid.starts == 6
    scheduled = [event for event in world.events if isinstance(event, RestartScheduled)]
    assert [event.delay_s for event in scheduled] == [1.25, 2.5, 5, 5, 5]
    assert [event.failures for event in scheduled] == [1, 2, 3, 4, 5]
    assert [event.restarts for event in scheduled] == [1, 2, 3, 4, 5]


async def test_the_backoff_starts_again_after_a_healthy_life(world: World) -> None:
    spec = mortal(world, lives_s=[0, 0, 9.9, 10.1, 1000])
    backoff = Backoff(initial_s=1, max_s=8, jitter=0)
    settings = {"max_restarts": 4, "max_seconds": 100.0, "healthy_after_s": 10.0}
    async with world.tree([spec], backoff=backoff, **settings):
        await world.clock.sleep(50)
    delays = [event.delay_s for event in world.events if isinstance(event, RestartScheduled)]
    assert delays == [1, 2, 4, 1]


async def test_a_child_has_a_backoff_of_its_own_if_its_spec_says_so(world: World) -> None:
    kid = world.kid("kid")
    own = Backoff(initial_s=3, max_s=3, jitter=0)
    async with world.tree([kid.spec(backoff=own)]) as tree:
        kid.crash()
        await world.clock.sleep(2.9)
        assert states(tree) == {"kid": "restarting"}
        await world.clock.sleep(0.2)
        assert states(tree) == {"kid": "running"}


@pytest.mark.parametrize("factor", [1.0, 2.0])
@pytest.mark.parametrize("life", [0.0, 0.5, 0.99, 1.0, 1.01, 1.5])
async def test_a_child_in_a_crash_loop_exceeds_the_limit_on_either_side_of_healthy(
    world: World, factor: float, life: float
) -> None:
    """Living just past healthy keeps the delays short; just below, it lets them grow."""
    backoff = Backoff(initial_s=0.1, max_s=5, factor=factor)
    healthy_s = healthy_after(None, max_restarts=10, max_seconds=60.0, backoff=backoff)
    assert healthy_s > 1
    spec = mortal(world, lives_s=itertools.repeat(life * healthy_s))
    tree = world.tree([spec], backoff=backoff, max_restarts=10, random=lambda: 0.999)
    with pytest.raises(RestartLimitReached):
        async with tree:
            await world.clock.sleep(10_000)
    assert world.clock.now <= 60


async def test_giving_up_ends_a_body_that_waits_and_one_that_swallows_it(world: World) -> None:
    kid = world.kid("kid")
    with pytest.raises(RestartLimitReached):
        async with world.tree([kid], max_restarts=0):
            kid.crash()
            with contextlib.suppress(BaseException):  # a rude body
                await world.clock.sleep(10)


async def test_giving_up_is_reported_once(world: World) -> None:
    a, b = world.kids("ab")
    with pytest.raises(RestartLimitReached):
        async with world.tree([a, b], max_restarts=0):
            a.crash()
            b.crash()
            await world.clock.sleep(1)
    escalations = [event for event in world.events if isinstance(event, Escalated)]
    assert [event.child for event in escalations] == ["a"]


async def test_giving_up_while_coming_up_surfaces_the_reason(world: World) -> None:
    kid, slow = world.kid("kid"), world.kid("slow", start_s=100)
    own = OSError("disk full")

    async def serve(child: Child) -> None:
        child.started()
        raise own

    with pytest.raises(RestartLimitReached) as caught:
        async with world.tree([kid, ChildSpec(id="x", start=serve), slow], max_restarts=2):
            raise AssertionError
    assert caught.value.__cause__ is own
    assert world.clock.now == 0
    assert (kid.alive, slow.alive) == (0, 0)


async def test_a_limit_reached_while_a_child_ignores_its_stop_waits_for_that_limit_only(
    world: World,
) -> None:
    kid, slow = world.kid("kid"), world.kid("slow", stop_s=1000)
    with pytest.raises(RestartLimitReached):
        async with world.tree([kid, slow.spec(shutdown=2.0)], max_restarts=0):
            kid.crash()
            await world.clock.sleep(10)
    assert world.clock.now == 2
