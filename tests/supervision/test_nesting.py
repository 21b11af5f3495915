"""Supervisors under supervisors."""

from __future__ import annotations

import pytest
from virtual import Kid, World, states

from tinker_recovery.supervision import (
    Child,
    ChildCounts,
    ChildSpec,
    RestartLimitReached,
    SupervisionError,
)


async def test_trees_start_depth_first_and_stop_in_reverse(world: World) -> None:
    a, b, c, d = world.kids("abcd")
    inner = world.tree([b, c], name="inner")
    async with world.tree([a.spec(), inner.as_child(), d.spec()]) as outer:
        assert world.cleared() == ["+a", "+b", "+c", "+d"]
        assert states(outer) == {"a": "running", "inner": "running", "d": "running"}
        assert states(inner) == {"b": "running", "c": "running"}
        assert outer.count_children() == ChildCounts(3, 3, 1, 2)
    assert world.cleared() == ["-d", "-c", "-b", "-a"]


async def test_a_crash_inside_is_handled_inside(world: World) -> None:
    a, b = world.kids("ab")
    inner = world.tree([b], name="inner")
    async with world.tree([a.spec(), inner.as_child()], max_restarts=0) as outer:
        b.crash()
        await world.settle()
        assert (a.starts, b.starts) == (1, 2)
        assert [child.incarnation for child in outer.which_children()] == [1, 1]


async def test_an_exhausted_inner_supervisor_is_one_crash_of_the_outer(world: World) -> None:
    a, b, c = world.kids("abc")
    inner = world.tree([b, c], name="inner", max_restarts=2)
    async with world.tree([a.spec(), inner.as_child()], max_restarts=1) as outer:
        for _ in range(3):
            b.crash()
            await world.settle()
        assert [child.incarnation for child in outer.which_children()] == [1, 2]
        assert (b.starts, c.starts) == (4, 2)
        # The new incarnation begins with a fresh budget.
        for _ in range(2):
            b.crash()
            await world.settle()
        assert (b.alive, c.alive) == (1, 1)


async def test_escalation_goes_up_level_by_level_to_the_root_with_the_real_cause(
    world: World,
) -> None:
    kid, innocent = world.kid("kid"), world.kid("innocent")
    own = OSError("disk full")
    inner = world.tree([kid], name="inner", max_restarts=1)
    middle = world.tree([inner.as_child()], name="middle", max_restarts=1)
    with pytest.raises(RestartLimitReached) as caught:
        async with world.tree([innocent.spec(), middle.as_child()], name="root", max_restarts=1):
            while True:
                kid.crash(own)
                await world.clock.sleep(0.01)
    assert kid.starts == 8  # two lives of each, at three levels
    root = caught.value
    assert (root.supervisor, root.child) == ("root", "middle")
    assert isinstance(root.__cause__, RestartLimitReached)
    assert (root.__cause__.supervisor, root.__cause__.child) == ("middle", "inner")
    assert root.root_cause is own
    assert (kid.alive, innocent.alive) == (0, 0)


async def test_children_added_to_an_inner_supervisor_are_gone_with_its_incarnation(
    world: World,
) -> None:
    a, added = world.kid("a"), world.kid("added")
    inner = world.tree([a], name="inner", max_restarts=0)
    async with world.tree([inner.as_child()]):
        await inner.start_child(added.spec())
        a.crash()
        await world.settle()
        assert states(inner) == {"a": "running"}
        assert added.alive == 0


async def test_an_inner_supervisor_has_as_long_to_stop_as_its_children_need(
    world: World,
) -> None:
    tidy = world.kid("tidy", stop_s=1000)
    inner = world.tree([tidy.spec(shutdown=2000.0)], name="inner")
    async with world.tree([inner.as_child()]):
        pass
    assert world.log == ["+tidy", "-tidy", "~tidy"]


async def test_an_inner_start_that_fails_surfaces_at_the_root_with_every_id(
    world: World,
) -> None:
    own = OSError("port taken")
    a, broken = world.kid("a"), world.kid("broken", failing=[own])
    inner = world.tree([broken], name="inner")
    with pytest.raises(OSError, match="port taken") as caught:
        async with world.tree([a.spec(), inner.as_child()], name="outer"):
            raise AssertionError
    assert caught.value is own
    assert own.__notes__ == [
        "child 'broken' of supervisor 'inner' failed to start",
        "child 'inner' of supervisor 'outer' failed to start",
    ]
    assert world.log == ["+a", "+broken", "-a"]


async def test_a_keyboard_interrupt_passes_every_level_unchanged(world: World) -> None:
    kid = world.kid("kid")
    error = KeyboardInterrupt()
    inner = world.tree([kid], name="inner")
    with pytest.raises(KeyboardInterrupt) as caught:
        async with world.tree([inner.as_child()]):
            kid.crash(error)
            await world.clock.sleep(10)
    assert caught.value is error
    assert kid.starts == 1


async def test_a_tree_that_runs_as_a_child_cannot_be_entered_as_well(world: World) -> None:
    inner = world.tree(world.kids("a"), name="inner")
    async with world.tree([inner.as_child()]):
        with pytest.raises(SupervisionError, match="already entered"):
            async with inner:
                raise AssertionError


async def test_group_restarts_include_inner_supervisors(world: World) -> None:
    a, b = world.kids("ab")
    inner = world.tree([b], name="inner")
    async with world.tree([a.spec(), inner.as_child()], strategy="one_for_all"):
        a.crash()
        await world.settle()
        assert world.log == ["+a", "+b", "-b", "+a", "+b"]


async def test_a_dynamic_supervisor_can_be_a_child(world: World) -> None:
    kids: list[Kid] = []

    async def serve(child: Child) -> None:
        kids.append(kid := world.kid(child.id))
        await kid.serve(child)

    workers = world.dynamic(ChildSpec(id="w", start=serve), name="workers", max_restarts=0)
    async with world.tree([workers.as_child()]) as outer:
        await workers.start_child()
        await workers.start_child()
        kids[0].crash()
        await world.settle()
        assert states(workers) == {}
        assert outer.which_children()[0].incarnation == 2
        assert kids[1].alive == 0
