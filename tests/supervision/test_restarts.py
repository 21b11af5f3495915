"""Which children are restarted after what: restart types, exits, strategies."""

from __future__ import annotations

import asyncio
import contextvars

import pytest
from virtual import Kid, World, states

from tinker_recovery.supervision import Backoff, Child, ChildSpec, RestartLimitReached

CRASH = ValueError("crash")


@pytest.mark.parametrize(
    ("restart", "exit_", "is_restarted"),
    [
        ("permanent", None, True),
        ("permanent", CRASH, True),
        ("transient", None, False),
        ("transient", CRASH, True),
        ("temporary", None, False),
        ("temporary", CRASH, False),
    ],
)
async def test_the_restart_type_decides_after_an_exit(
    world: World, restart: str, exit_: Exception | None, *, is_restarted: bool
) -> None:
    kid, other = world.kid("kid"), world.kid("other")
    async with world.tree([kid.spec(restart=restart), other]) as tree:
        if exit_ is None:
            kid.finish()
        else:
            kid.crash(exit_)
        await world.settle()
        assert kid.starts == 1 + is_restarted
        assert kid.alive == is_restarted
        expected = {"other": "running"}
        if is_restarted:
            expected["kid"] = "running"
        elif restart == "transient":
            expected["kid"] = "stopped"  # and its spec is kept; a temporary child's is not
        assert states(tree) == expected
        assert other.starts == 1


async def test_one_for_one_restarts_the_child_alone(world: World) -> None:
    a, b, c = world.kids("abc")
    async with world.tree([a, b, c]):
        world.cleared()
        b.crash()
        await world.settle()
        assert world.cleared() == ["+b"]


async def test_one_for_all_stops_all_in_reverse_and_starts_all_in_order(world: World) -> None:
    a, b, c = world.kids("abc")
    async with world.tree([a, b, c], strategy="one_for_all"):
        world.cleared()
        b.crash()
        await world.settle()
        assert world.cleared() == ["-c", "-a", "+a", "+b", "+c"]


async def test_rest_for_one_includes_those_started_after_it(world: World) -> None:
    a, b, c = world.kids("abc")
    async with world.tree([a, b, c], strategy="rest_for_one"):
        world.cleared()
        b.crash()
        await world.settle()
        assert world.cleared() == ["-c", "+b", "+c"]
        a.crash()
        await world.settle()
        assert world.cleared() == ["-c", "-b", "+a", "+b", "+c"]


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
@pytest.mark.parametrize(
    ("restart", "exit_"), [("transient", None), ("temporary", None), ("temporary", CRASH)]
)
async def test_an_exit_that_asks_for_no_restart_leaves_the_siblings_alone(
    world: World, strategy: str, restart: str, exit_: Exception | None
) -> None:
    a, b, c = world.kids("abc")
    async with world.tree([a, b.spec(restart=restart), c], strategy=strategy):
        world.cleared()
        if exit_ is None:
            b.finish()
        else:
            b.crash(exit_)
        await world.settle()
        assert world.cleared() == []
        assert (a.starts, c.starts) == (1, 1)


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
async def test_a_temporary_sibling_taken_down_by_a_group_restart_is_gone(
    world: World, strategy: str
) -> None:
    a, b, c = world.kids("abc")
    async with world.tree([a, b.spec(restart="temporary"), c], strategy=strategy) as tree:
        world.cleared()
        a.crash()
        await world.settle()
        assert world.cleared() == ["-c", "-b", "+a", "+c"]
        assert states(tree) == {"a": "running", "c": "running"}


async def test_a_group_restart_starts_a_transient_sibling_again_that_had_finished(
    world: World,
) -> None:
    """As OTP's: it is part of the group, and its work may be what the others need."""
    job, a = world.kid("job"), world.kid("a")
    async with world.tree([job.spec(restart="transient"), a], strategy="one_for_all"):
        job.finish()
        await world.settle()
        a.crash()
        await world.settle()
        assert job.starts == 2


async def test_a_group_restart_leaves_down_what_was_terminated(world: World) -> None:
    a, b = world.kids("ab")
    async with world.tree([a, b], strategy="one_for_all") as tree:
        await tree.terminate_child("b")
        a.crash()
        await world.settle()
        assert states(tree) == {"a": "running", "b": "stopped"}
        assert b.starts == 1


async def test_a_failed_start_in_a_one_for_all_restart_begins_it_again(world: World) -> None:
    a, b, c = world.kid("a"), world.kid("b", failing=[None, CRASH]), world.kid("c")
    async with world.tree([a, b, c], strategy="one_for_all"):
        world.cleared()
        a.crash()
        await world.settle()
        assert world.cleared() == ["-c", "-b", "+a", "+b", "-a", "+a", "+b", "+c"]


async def test_a_failed_start_in_a_rest_for_one_restart_continues_from_that_child(
    world: World,
) -> None:
    a, b, c = world.kid("a"), world.kid("b", failing=[None, CRASH]), world.kid("c")
    async with world.tree([a, b, c], strategy="rest_for_one"):
        world.cleared()
        a.crash()
        await world.settle()
        assert world.cleared() == ["-c", "-b", "+a", "+b", "+b", "+c"]


async def test_a_crash_in_the_middle_of_a_group_restart_begins_another_round(
    world: World,
) -> None:
    a, slow, c = world.kid("a"), world.kid("slow"), world.kid("c")
    async with world.tree([a, slow, c], strategy="rest_for_one") as tree:
        world.cleared()
        slow.start_s = 10
        a.crash()
        await world.clock.sleep(5)  # a is up again, slow is coming up
        assert states(tree) == {"a": "running", "slow": "restarting", "c": "restarting"}
        a.crash()
        await world.clock.sleep(30)
        assert states(tree) == dict.fromkeys(["a", "slow", "c"], "running")
        assert world.cleared() == ["-c", "-slow", "+a", "+slow", "+a", "+slow", "+c"]
        assert all(kid.most_alive == 1 for kid in (a, slow, c))


async def test_two_children_of_a_group_that_die_together_are_one_restart(world: World) -> None:
    a, b = world.kids("ab")
    async with world.tree([a, b], strategy="one_for_all"):
        world.cleared()
        a.crash()
        b.crash()
        await world.settle()
        assert world.cleared() == ["+a", "+b"]


async def test_a_later_crash_does_not_forget_whom_an_earlier_round_took_down(
    world: World,
) -> None:
    """A child added meanwhile dies in a backoff of rest_for_one: those before it come back too."""
    a, b, late = [*world.kids("ab"), world.kid("late")]
    backoff = Backoff(initial_s=1, max_s=1, jitter=0)
    async with world.tree([a, b], strategy="rest_for_one", backoff=backoff) as tree:
        a.crash()
        await world.clock.sleep(0.5)
        await tree.start_child(late.spec())
        late.crash()
        await world.clock.sleep(10)
        assert states(tree) == dict.fromkeys(["a", "b", "late"], "running")


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
async def test_a_restart_whose_start_fails_is_tried_again_until_it_succeeds(
    world: World, strategy: str
) -> None:
    kid = world.kid("kid", failing=[None, CRASH, "return"])
    async with world.tree([kid], strategy=strategy) as tree:
        kid.crash()
        await world.settle()
        assert kid.starts == 4
        assert states(tree) == {"kid": "running"}


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
async def test_restarts_whose_starts_always_fail_exceed_the_limit(
    world: World, strategy: str
) -> None:
    kid = world.kid("kid", failing=[None, *[OSError("still no disk")] * 99])
    with pytest.raises(RestartLimitReached) as caught:
        async with world.tree([kid, world.kid("other")], strategy=strategy, max_restarts=3):
            kid.crash()
            await world.clock.sleep(1000)
    assert kid.starts == 4  # the first, and three restarts
    assert isinstance(caught.value.__cause__, OSError)


async def test_a_child_may_call_ignore_to_a_restart(world: World) -> None:
    kid = world.kid("kid", failing=[None, "ignore"])
    async with world.tree([kid]) as tree:
        kid.crash()
        await world.settle()
        assert states(tree) == {"kid": "stopped"}
        assert (await tree.restart_child("kid")).state == "running"


async def test_each_incarnation_has_its_number_and_a_context_of_its_own(world: World) -> None:
    inherited: contextvars.ContextVar[str] = contextvars.ContextVar("inherited", default="clean")
    seen: list[tuple[int, str]] = []
    crash = asyncio.Event()

    async def serve(child: Child) -> None:
        seen.append((child.incarnation, inherited.get()))
        inherited.set("dirty")
        child.started()
        await crash.wait()
        crash.clear()
        raise CRASH

    async with world.tree([ChildSpec(id="a", start=serve)]):
        crash.set()
        await world.settle()
    assert seen == [(1, "clean"), (2, "clean")]


async def test_a_handshake_of_an_incarnation_that_is_over_does_nothing(world: World) -> None:
    kid = world.kid("kid")
    async with world.tree([kid]) as tree:
        stale = kid.child
        assert stale is not None
        kid.start_s = 10
        kid.crash()
        await world.settle()
        stale.started("from the grave")
        stale.heartbeat()
        stale.ignore()
        assert states(tree) == {"kid": "restarting"}
        await world.clock.sleep(10)
        assert states(tree) == {"kid": "running"}
        assert tree.which_children()[0].value == "kid"


async def test_the_exit_of_an_abandoned_incarnation_is_ignored(world: World) -> None:
    kid = world.kid("kid", deaf=10**9)
    async with world.tree([kid.spec(shutdown=1.0)]) as tree:
        first = kid.order
        assert first is not None
        await tree.terminate_child("kid")
        await tree.restart_child("kid")
        first.set_exception(CRASH)
        await world.settle()
        assert (kid.starts, kid.most_alive, kid.alive) == (2, 2, 1)
        assert states(tree) == {"kid": "running"}
        assert [one.incarnation for one in tree.abandoned] == [1]
        kid.deaf = 0


async def test_started_twice_counts_once(world: World) -> None:
    async def serve(child: Child) -> None:
        child.started("first")
        child.started("second")
        await asyncio.get_running_loop().create_future()

    async with world.tree([ChildSpec(id="a", start=serve)]) as tree:
        assert tree.which_children()[0].value == "first"
    assert [event.name for event in world.events].count("supervision.child.ready") == 1


async def test_a_thousand_children_that_crash_at_once_are_all_back(world: World) -> None:
    kids: list[Kid] = [world.kid(f"kid-{n}") for n in range(1000)]
    async with world.tree(kids, max_restarts=1000) as tree:
        for kid in kids:
            kid.crash()
        await world.settle()
        assert all(kid.starts == 2 for kid in kids)
        assert tree.count_children().active == 1000
