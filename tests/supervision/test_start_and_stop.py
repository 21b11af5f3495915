"""How a supervisor comes up, and how it goes down."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import anyio
import pytest
from virtual import World, states

from tinker_recovery.supervision import (
    Backoff,
    Child,
    ChildNotReady,
    ChildSpec,
    StopTimedOut,
    SupervisionTree,
    SupervisorStopped,
)


async def test_children_start_in_order_and_stop_in_reverse(world: World) -> None:
    async with world.tree(world.kids("abc")):
        assert world.cleared() == ["+a", "+b", "+c"]
    assert world.cleared() == ["-c", "-b", "-a"]


async def test_each_child_starts_only_after_the_one_before_is_ready(world: World) -> None:
    slow, quick = world.kid("slow", start_s=10), world.kid("quick")
    async with world.tree([slow, quick]):
        assert world.clock.now == 10
        assert world.log == ["+slow", "+quick"]


async def test_an_empty_supervisor_is_fine(world: World) -> None:
    async with world.tree([]) as tree:
        assert tree.which_children() == []
        assert tree.count_children().specs == 0


async def test_without_a_clock_it_uses_the_real_one() -> None:
    ready = anyio.Event()

    async def serve(child: Child) -> None:
        child.started()
        ready.set()
        await anyio.sleep_forever()

    async with SupervisionTree([ChildSpec(id="a", start=serve)]):
        assert ready.is_set()


async def test_what_a_child_hands_to_started_is_seen_by_its_owner(world: World) -> None:
    async with world.tree(world.kids("a")) as tree:
        assert tree.which_children()[0].value == "a"


async def test_a_failing_start_rolls_back_in_reverse_and_the_body_never_runs(world: World) -> None:
    own = OSError("port taken")
    a, b = world.kids("ab")
    broken, never = world.kid("broken", failing=[own]), world.kid("never")
    ran = False
    with pytest.raises(OSError, match="port taken") as caught:
        async with world.tree([a, b, broken, never]):
            ran = True
    assert caught.value is own
    assert own.__notes__ == ["child 'broken' of supervisor 'tree' failed to start"]
    assert not ran
    assert world.log == ["+a", "+b", "+broken", "-b", "-a"]


async def test_returning_before_ready_is_a_failed_start(world: World) -> None:
    with pytest.raises(ChildNotReady, match=r"child 'a' returned without .* started\(\)"):
        async with world.tree([world.kid("a", failing=["return"])]):
            raise AssertionError


async def test_a_start_that_is_no_coroutine_function_fails_as_any_start(world: World) -> None:
    start: Any = lambda child: None  # noqa: ARG005,E731 - a user's mistake
    with pytest.raises(TypeError):
        async with world.tree([ChildSpec(id="a", start=start)]):
            raise AssertionError


async def test_a_child_may_call_ignore_and_the_others_start(world: World) -> None:
    ignoring = world.kid("ignoring", failing=["ignore"])
    async with world.tree([ignoring, world.kid("b")]) as tree:
        assert states(tree) == {"ignoring": "stopped", "b": "running"}
        assert tree.count_children().active == 1


async def test_a_temporary_child_that_calls_ignore_is_forgotten(world: World) -> None:
    ignoring = world.kid("ignoring", failing=["ignore"])
    async with world.tree([ignoring.spec(restart="temporary")]) as tree:
        assert states(tree) == {}


async def test_cancelling_the_entry_stops_what_is_up_and_what_is_starting(world: World) -> None:
    a, hanging = world.kid("a"), world.kid("hanging", failing=["hang"])
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:

            async def cancel_later() -> None:
                await world.settle()
                scope.cancel()

            group.start_soon(cancel_later)
            async with world.tree([a, hanging]):
                raise AssertionError
    assert scope.cancelled_caught
    assert (a.alive, hanging.alive) == (0, 0)
    assert world.log == ["+a", "+hanging", "-a"]


async def test_a_child_that_dies_while_a_sibling_starts_is_restarted(world: World) -> None:
    first, slow = world.kid("first"), world.kid("slow", start_s=10)

    async def crash_it() -> None:
        await world.clock.sleep(1)
        first.crash()

    crashing = asyncio.ensure_future(crash_it())
    async with world.tree([first, slow]) as tree:
        assert states(tree) == {"first": "running", "slow": "running"}
        assert first.starts == 2
    await crashing


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
async def test_a_group_restart_waits_until_everyone_was_up_once(
    world: World, strategy: str
) -> None:
    first, slow = world.kid("first"), world.kid("slow", start_s=10)

    async def crash_it() -> None:
        await world.clock.sleep(1)
        first.crash()

    crashing = asyncio.ensure_future(crash_it())
    async with world.tree([first, slow], strategy=strategy) as tree:
        await world.clock.sleep(20)
        assert states(tree) == {"first": "running", "slow": "running"}
        assert world.log == ["+first", "+slow", "-slow", "+first", "+slow"]
    await crashing


async def test_a_tree_can_be_entered_again_but_not_twice_at_once(world: World) -> None:
    tree = world.tree(world.kids("a"))
    async with tree:
        with pytest.raises(RuntimeError, match="already been entered"):
            async with tree:
                raise AssertionError
    async with tree:
        assert states(tree) == {"a": "running"}
    assert world.log == ["+a", "-a", "+a", "-a"]


async def test_a_tree_that_is_not_entered_says_so(world: World) -> None:
    tree = world.tree([])
    with pytest.raises(SupervisorStopped, match="enter it first"):
        tree.which_children()
    async with tree:
        pass
    with pytest.raises(SupervisorStopped, match="is stopping"):
        tree.count_children()


async def test_clean_up_may_await_within_the_shutdown_limit(world: World) -> None:
    tidy = world.kid("tidy", stop_s=4)
    async with world.tree([tidy.spec(shutdown=5.0)]) as tree:
        pass
    assert world.log == ["+tidy", "-tidy", "~tidy"]
    assert world.clock.now == 4
    assert tree.abandoned == ()


async def test_past_its_limit_a_child_is_cancelled_again(world: World) -> None:
    slow = world.kid("slow", stop_s=60)
    async with world.tree([slow.spec(shutdown=5.0)]) as tree:
        pass
    assert world.log == ["+slow", "-slow"]
    assert world.clock.now == 5
    assert tree.abandoned == ()
    timed_out = [event for event in world.events if isinstance(event, StopTimedOut)]
    assert [(event.waited_s, event.abandoned) for event in timed_out] == [(5.0, False)]


async def test_what_ignores_every_cancellation_is_abandoned_and_listed(world: World) -> None:
    deaf, last = world.kid("deaf", deaf=10**9), world.kid("last")
    async with world.tree([last.spec(), deaf.spec(shutdown=5.0)]) as tree:
        pass
    # The ones behind it in the order of stopping are stopped all the same.
    assert world.log == ["+last", "+deaf", "-last"]
    (abandoned,) = tree.abandoned
    assert (abandoned.id, abandoned.incarnation) == ("deaf", 1)
    assert abandoned.waited_s == pytest.approx(6)
    assert not abandoned.task.done()
    deaf.finish()  # ending late, it has no effect
    await abandoned.task


async def test_brutal_kill_gives_no_time(world: World) -> None:
    slow = world.kid("slow", stop_s=60)
    async with world.tree([slow.spec(shutdown="brutal_kill")]):
        pass
    assert world.log == ["+slow", "-slow"]
    assert world.clock.now == 0


async def test_infinity_waits_as_long_as_it_takes(world: World) -> None:
    slow = world.kid("slow", stop_s=10_000)
    async with world.tree([slow.spec(shutdown="infinity")]):
        pass
    assert world.log == ["+slow", "-slow", "~slow"]
    assert world.clock.now == 10_000


async def test_each_child_has_its_own_shutdown_limit(world: World) -> None:
    a, b = world.kid("a", stop_s=60), world.kid("b", stop_s=60)
    async with world.tree([a.spec(shutdown=1.0), b.spec(shutdown=20.0)]):
        pass
    assert world.log == ["+a", "+b", "-b", "-a"]
    assert world.clock.now == 21


async def test_a_child_that_swallows_one_cancellation_is_cancelled_after_its_limit(
    world: World,
) -> None:
    stubborn = world.kid("stubborn", deaf=1)
    async with world.tree([stubborn.spec(shutdown=5.0)]) as tree:
        pass
    assert world.clock.now == 5
    assert tree.abandoned == ()


async def test_a_crash_during_the_stop_is_reported_and_restarts_nothing(world: World) -> None:
    async def serve(child: Child) -> None:
        child.started()
        try:
            await anyio.sleep_forever()
        finally:
            raise OSError("flush failed")

    async with world.tree([ChildSpec(id="a", start=serve)]):
        pass
    reports = [e.as_attributes() for e in world.events if e.name == "supervision.crash_report"]
    assert [report["supervision.context"] for report in reports] == ["shutdown_error"]


async def test_a_child_that_dies_before_its_turn_to_stop_is_not_restarted(world: World) -> None:
    a, slow = world.kid("a"), world.kid("slow", stop_s=3)

    async def crash_later() -> None:
        await world.clock.sleep(1)
        a.crash()

    async with world.tree([a, slow]):
        crashing = asyncio.ensure_future(crash_later())
    assert a.starts == 1
    await crashing


async def test_a_tree_whose_tasks_are_cancelled_before_their_first_step_still_ends(
    world: World,
) -> None:
    """As asyncio.run does with everything that is left."""
    a = world.kid("a")
    before = asyncio.all_tasks()
    entering = asyncio.ensure_future(world.tree([a]).__aenter__())
    await asyncio.sleep(0)
    born = asyncio.all_tasks() - before - {entering}
    assert born
    for task in born:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert a.starts == 0


async def test_a_child_made_of_a_task_group_ends_with_it_and_its_shields_hold(
    world: World,
) -> None:
    async def part() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await world.clock.sleep(3)
                world.log.append("flushed")

    async def serve(child: Child) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(part)
            group.start_soon(part)
            child.started()

    async with world.tree([ChildSpec(id="a", start=serve, shutdown=5.0)]) as tree:
        await world.settle()
    assert world.log == ["flushed", "flushed"]
    assert world.clock.now == 3
    assert tree.abandoned == ()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_an_eager_task_factory_of_the_loop_changes_nothing(world: World) -> None:
    """It runs a new task's first step before anyone holds the task."""
    asyncio.get_running_loop().set_task_factory(getattr(asyncio, "eager_task_factory", None))
    a, b = world.kids("ab")
    backoff = Backoff(1, 1, jitter=0)
    async with world.tree([a, b], strategy="one_for_all", backoff=backoff, max_restarts=5) as tree:
        for _ in range(5):
            a.crash()
            await world.clock.sleep(2)
        assert states(tree) == {"a": "running", "b": "running"}
    assert (a.starts, b.starts) == (6, 6)


async def test_children_are_not_made_by_the_loops_task_factory(world: World) -> None:
    made: list[str] = []

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        made.append(coroutine.__qualname__)
        return asyncio.Task(coroutine, loop=loop, **options)

    asyncio.get_running_loop().set_task_factory(factory)
    kid = world.kid("kid")
    async with world.tree([kid]):
        kid.crash()
        await world.settle()
        assert kid.starts == 2
    assert "Engine._live" not in made
