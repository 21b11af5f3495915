"""Significant children and auto_shutdown, as OTP has them since version 24."""

from __future__ import annotations

import asyncio

import pytest
from virtual import World, states

CRASH = ValueError("crash")


@pytest.mark.parametrize(
    ("restart", "exit_", "ends"),
    [
        ("transient", None, True),
        ("transient", CRASH, False),  # it is restarted instead
        ("temporary", None, True),
        ("temporary", CRASH, True),
    ],
)
async def test_any_significant_ends_the_supervisor_with_the_first_that_ends_by_itself(
    world: World, restart: str, exit_: Exception | None, *, ends: bool
) -> None:
    kid, other = world.kid("kid"), world.kid("other")
    went_on = False
    specs = [other.spec(), kid.spec(restart=restart, significant=True)]
    async with world.tree(specs, auto_shutdown="any_significant"):
        if exit_ is None:
            kid.finish()
        else:
            kid.crash(exit_)
        await world.clock.sleep(10)
        went_on = True
    assert went_on is not ends
    assert world.log[-1] == "-other"


async def test_all_significant_waits_for_the_last(world: World) -> None:
    a, b, other = world.kid("a"), world.kid("b"), world.kid("other")
    specs = [
        a.spec(restart="transient", significant=True),
        other.spec(),
        b.spec(restart="temporary", significant=True),
    ]
    reached = []
    async with world.tree(specs, auto_shutdown="all_significant"):
        b.crash()
        await world.clock.sleep(10)
        reached.append("one down")
        a.finish()
        await world.clock.sleep(10)
        reached.append("all down")
    assert reached == ["one down"]
    assert other.alive == 0


async def test_the_end_of_a_child_that_is_not_significant_ends_nothing(world: World) -> None:
    a, b = world.kids("ab")
    specs = [a.spec(restart="transient", significant=True), b.spec(restart="transient")]
    async with world.tree(specs, auto_shutdown="any_significant") as tree:
        b.finish()
        await world.clock.sleep(10)
        assert states(tree) == {"a": "running", "b": "stopped"}


async def test_terminating_a_significant_child_ends_nothing(world: World) -> None:
    a = world.kid("a")
    specs = [a.spec(restart="transient", significant=True)]
    async with world.tree(specs, auto_shutdown="any_significant") as tree:
        await tree.terminate_child("a")
        await world.clock.sleep(10)
        assert states(tree) == {"a": "stopped"}


async def test_a_significant_temporary_child_taken_down_by_its_siblings_ends_nothing(
    world: World,
) -> None:
    a, b = world.kids("ab")
    specs = [a.spec(), b.spec(restart="temporary", significant=True)]
    settings = {"strategy": "one_for_all", "auto_shutdown": "any_significant"}
    async with world.tree(specs, **settings) as tree:
        a.crash()
        await world.clock.sleep(10)
        assert states(tree) == {"a": "running"}


async def test_a_significant_child_in_its_backoff_is_not_counted_as_ended(world: World) -> None:
    a, b = world.kids("ab")
    specs = [kid.spec(restart="transient", significant=True) for kid in (a, b)]
    async with world.tree(specs, auto_shutdown="all_significant") as tree:
        a.start_s = 5
        a.crash()
        await world.settle()
        b.finish()
        await world.clock.sleep(10)
        assert states(tree) == {"a": "running", "b": "stopped"}


async def test_a_significant_child_that_ends_while_others_start_ends_the_tree_once_it_is_up(
    world: World,
) -> None:
    a, slow = world.kid("a"), world.kid("slow", start_s=10)
    waited = []

    async def body() -> None:
        async with world.tree(
            [a.spec(restart="transient", significant=True), slow.spec()],
            auto_shutdown="any_significant",
        ):
            waited.append(world.clock.now)
            await world.clock.sleep(100)
            waited.append(world.clock.now)

    async def finish() -> None:
        await world.clock.sleep(1)
        a.finish()

    await asyncio.gather(body(), finish())
    assert waited == [10]
    assert (a.alive, slow.alive) == (0, 0)


async def test_as_a_child_ending_by_auto_shutdown_is_a_normal_exit(world: World) -> None:
    worker = world.kid("worker")
    inner = world.tree(
        [worker.spec(restart="transient", significant=True)],
        name="inner",
        auto_shutdown="any_significant",
    )
    async with world.tree([inner.as_child(restart="transient")], max_restarts=0) as outer:
        worker.finish()
        await world.settle()
        assert states(outer) == {"inner": "stopped"}
    async with world.tree([inner.as_child()], max_restarts=1) as outer:
        worker.finish()
        await world.settle()
        assert states(outer) == {"inner": "running"}  # permanent: started again
