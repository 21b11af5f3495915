"""DynamicSupervisor: many children of one kind, started on request."""

from __future__ import annotations

from typing import Any

import pytest
from virtual import Kid, World, states

from tinker_recovery.supervision import (
    Child,
    ChildAlreadyStarted,
    ChildNotFound,
    ChildSpec,
    DynamicSupervisor,
    RestartLimitReached,
    TooManyChildren,
)


class Crowd:
    """Makes a Kid for each child, and remembers it by id."""

    def __init__(self, world: World, **settings: Any) -> None:
        self.kids: dict[str, Kid] = {}
        self.world = world
        self.settings = settings

    async def serve(self, child: Child, *args: object) -> None:
        if child.id not in self.kids:
            self.kids[child.id] = self.world.kid(child.id, **self.settings)
        await self.kids[child.id].serve(child, *args)

    def template(self, **changes: Any) -> ChildSpec:
        return ChildSpec(id="w", start=self.serve, **changes)


def numbers(supervisor: DynamicSupervisor) -> list[str]:
    return [child.id for child in supervisor.which_children()]


async def test_it_starts_empty_and_each_child_gets_an_id_and_its_arguments(world: World) -> None:
    crowd = Crowd(world)
    async with world.dynamic(crowd.template()) as workers:
        assert workers.which_children() == []
        first = await workers.start_child("host", 8080)
        second = await workers.start_child("host", 8081)
        assert (first.id, first.value) == ("w-1", ("host", 8080))
        assert (second.id, second.value) == ("w-2", ("host", 8081))
        assert (await workers.start_child(id="mine")).id == "mine"


async def test_a_restarted_child_gets_its_own_arguments_again(world: World) -> None:
    crowd = Crowd(world)
    async with world.dynamic(crowd.template()) as workers:
        await workers.start_child("a")
        await workers.start_child("b")
        crowd.kids["w-1"].crash()
        await world.settle()
        assert [child.value for child in workers.which_children()] == [("a",), ("b",)]
        assert [child.incarnation for child in workers.which_children()] == [2, 1]


@pytest.mark.parametrize(
    ("restart", "exit_", "stays"),
    [
        ("permanent", None, True),
        ("permanent", ValueError(), True),
        ("transient", None, False),
        ("transient", ValueError(), True),
        ("temporary", None, False),
        ("temporary", ValueError(), False),
    ],
)
async def test_a_child_that_is_not_restarted_is_forgotten(
    world: World, restart: str, exit_: Exception | None, *, stays: bool
) -> None:
    crowd = Crowd(world)
    async with world.dynamic(crowd.template(restart=restart)) as workers:
        await workers.start_child()
        if exit_ is None:
            crowd.kids["w-1"].finish()
        else:
            crowd.kids["w-1"].crash(exit_)
        await world.settle()
        assert states(workers) == ({"w-1": "running"} if stays else {})


async def test_max_children_is_held_and_a_place_is_free_again_after_an_end(world: World) -> None:
    crowd = Crowd(world)
    async with world.dynamic(crowd.template(), max_children=2) as workers:
        await workers.start_child()
        await workers.start_child()
        with pytest.raises(TooManyChildren, match="max_children=2"):
            await workers.start_child()
        await workers.terminate_child("w-1")
        await workers.start_child()
        assert workers.count_children().active == 2


async def test_a_terminated_child_is_forgotten(world: World) -> None:
    crowd = Crowd(world)
    async with world.dynamic(crowd.template()) as workers:
        await workers.start_child()
        await workers.terminate_child("w-1")
        assert states(workers) == {}
        with pytest.raises(ChildNotFound):
            await workers.terminate_child("w-1")


async def test_a_failed_start_is_raised_and_takes_no_place(world: World) -> None:
    own = OSError("port taken")
    crowd = Crowd(world, failing=[own])
    async with world.dynamic(crowd.template(), max_children=1) as workers:
        with pytest.raises(OSError, match="port taken") as caught:
            await workers.start_child()
        assert caught.value is own
        await workers.start_child(id="w-1")
        with pytest.raises(TooManyChildren):
            await workers.start_child()


async def test_an_ignored_start_takes_no_place(world: World) -> None:
    crowd = Crowd(world, failing=["ignore"])
    async with world.dynamic(crowd.template()) as workers:
        assert (await workers.start_child()).state == "stopped"
        assert states(workers) == {}


async def test_an_id_that_is_taken_is_refused(world: World) -> None:
    crowd = Crowd(world)
    async with world.dynamic(crowd.template()) as workers:
        await workers.start_child(id="mine")
        with pytest.raises(ChildAlreadyStarted):
            await workers.start_child(id="mine")


async def test_all_are_stopped_side_by_side(world: World) -> None:
    crowd = Crowd(world, stop_s=4)
    async with world.dynamic(crowd.template(shutdown=5.0)) as workers:
        for _ in range(20):
            await workers.start_child()
    assert world.clock.now == 4
    assert sum(entry.startswith("~") for entry in world.log) == 20


async def test_side_by_side_each_that_ignores_its_stop_is_abandoned(world: World) -> None:
    crowd = Crowd(world, deaf=10**9)
    async with world.dynamic(crowd.template(shutdown=5.0)) as workers:
        for _ in range(3):
            await workers.start_child()
    assert world.clock.now == pytest.approx(6)
    assert [one.id for one in workers.abandoned] == ["w-1", "w-2", "w-3"]
    for kid, abandoned in zip(crowd.kids.values(), workers.abandoned, strict=True):
        kid.finish()
        await abandoned.task


async def test_the_budget_is_one_for_all_of_them(world: World) -> None:
    crowd = Crowd(world)
    with pytest.raises(RestartLimitReached):
        async with world.dynamic(crowd.template(), max_restarts=2) as workers:
            for _ in range(3):
                await workers.start_child()
            for kid in list(crowd.kids.values()):
                kid.crash()
            await world.clock.sleep(10)
    assert not any(kid.alive for kid in crowd.kids.values())


async def test_it_can_end_with_its_last_significant_child(world: World) -> None:
    crowd = Crowd(world)
    template = crowd.template(restart="transient", significant=True)
    went_on = []
    async with world.dynamic(template, auto_shutdown="all_significant") as workers:
        await workers.start_child()
        await workers.start_child()
        for kid in list(crowd.kids.values()):
            kid.finish()
            await world.settle()
            went_on.append(kid.id)
    assert went_on == ["w-1"]
