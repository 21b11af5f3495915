"""Administration of a running tree: OTP's calls, OTP's outcomes, and no wait for a sibling."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from virtual import World, states

from tinker_recovery.supervision import (
    Backoff,
    Child,
    ChildAlreadyPresent,
    ChildAlreadyStarted,
    ChildInfo,
    ChildNotFound,
    ChildRestarting,
    ChildRunning,
    ChildSpec,
    ChildTerminated,
    RestartLimitReached,
    SpecError,
    SupervisorStopped,
)

SLOW = Backoff(initial_s=10, max_s=10, jitter=0)
"""A backoff long enough to do something in."""


async def test_a_child_can_be_started_terminated_restarted_and_deleted(world: World) -> None:
    a, b = world.kids("ab")
    async with world.tree([a]) as tree:
        info = await tree.start_child(b.spec())
        assert (info.id, info.state, info.incarnation, info.value) == ("b", "running", 1, "b")
        await tree.terminate_child("b")
        assert states(tree) == {"a": "running", "b": "stopped"}
        assert (await tree.restart_child("b")).incarnation == 2
        await tree.terminate_child("b")
        await tree.delete_child("b")
        assert states(tree) == {"a": "running"}
        await tree.start_child(b.spec())
        assert world.cleared() == ["+a", "+b", "-b", "+b", "-b", "+b"]
    assert world.cleared() == ["-b", "-a"]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda tree: tree.terminate_child("nobody"), ChildNotFound),
        (lambda tree: tree.restart_child("nobody"), ChildNotFound),
        (lambda tree: tree.delete_child("nobody"), ChildNotFound),
    ],
)
async def test_a_child_that_is_not_there_is_not_found_and_the_error_names_those_that_are(
    world: World, call: Callable[[object], Awaitable[object]], error: type[Exception]
) -> None:
    async with world.tree(world.kids("ab")) as tree:
        with pytest.raises(error, match="has no child 'nobody'; its children: 'a', 'b'"):
            await call(tree)


async def test_starting_one_that_is_up_says_already_started(world: World) -> None:
    a = world.kid("a")
    async with world.tree([a.spec(backoff=SLOW)]) as tree:
        with pytest.raises(ChildAlreadyStarted, match="running"):
            await tree.start_child(a.spec())
        a.crash()
        await world.settle()
        with pytest.raises(ChildAlreadyStarted, match="restarting"):
            await tree.start_child(a.spec())


async def test_starting_one_that_is_down_says_already_present(world: World) -> None:
    a = world.kid("a")
    async with world.tree([a]) as tree:
        await tree.terminate_child("a")
        with pytest.raises(ChildAlreadyPresent):
            await tree.start_child(a.spec())


async def test_restarting_or_deleting_one_that_is_up_says_running(world: World) -> None:
    async with world.tree(world.kids("a")) as tree:
        with pytest.raises(ChildRunning):
            await tree.restart_child("a")
        with pytest.raises(ChildRunning):
            await tree.delete_child("a")


async def test_restarting_or_deleting_in_a_backoff_says_restarting_and_one_incarnation_comes(
    world: World,
) -> None:
    a = world.kid("a")
    async with world.tree([a.spec(backoff=SLOW)]) as tree:
        a.crash()
        await world.settle()
        assert states(tree) == {"a": "restarting"}
        with pytest.raises(ChildRestarting):
            await tree.restart_child("a")
        with pytest.raises(ChildRestarting):
            await tree.delete_child("a")
        await world.clock.sleep(1000)
        assert (a.starts, a.most_alive) == (2, 1)


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
async def test_a_child_terminated_in_its_backoff_is_never_resurrected(
    world: World, strategy: str
) -> None:
    a = world.kid("a")
    async with world.tree([a.spec(backoff=SLOW)], strategy=strategy) as tree:
        a.crash()
        await world.clock.sleep(5)
        await tree.terminate_child("a")
        assert world.clock.now == 5
        await world.clock.sleep(1000)
        assert (a.starts, states(tree)) == (1, {"a": "stopped"})


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
async def test_terminated_and_restarted_manually_in_its_backoff_there_is_one_incarnation(
    world: World, strategy: str
) -> None:
    a = world.kid("a")
    async with world.tree([a.spec(backoff=SLOW)], strategy=strategy) as tree:
        a.crash()
        await world.clock.sleep(5)
        await tree.terminate_child("a")
        await tree.restart_child("a")
        assert world.clock.now == 5
        await world.clock.sleep(1000)
        assert (a.starts, a.most_alive, states(tree)) == (2, 1, {"a": "running"})


async def test_a_child_terminated_while_its_restart_comes_up_stays_down(world: World) -> None:
    a = world.kid("a")
    async with world.tree([a]) as tree:
        a.start_s = 10
        a.crash()
        await world.clock.sleep(5)
        await tree.terminate_child("a")
        await world.clock.sleep(1000)
        assert (a.starts, a.alive, states(tree)) == (2, 0, {"a": "stopped"})


async def test_terminating_one_that_is_down_changes_nothing(world: World) -> None:
    async with world.tree(world.kids("a")) as tree:
        await tree.terminate_child("a")
        await tree.terminate_child("a")
        assert states(tree) == {"a": "stopped"}


async def test_a_temporary_child_is_forgotten_when_terminated(world: World) -> None:
    a = world.kid("a")
    async with world.tree([a.spec(restart="temporary")]) as tree:
        await tree.terminate_child("a")
        assert states(tree) == {}
        await tree.start_child(a.spec())


async def test_terminating_costs_no_restart(world: World) -> None:
    async with world.tree(world.kids("a"), max_restarts=0) as tree:
        for _ in range(5):
            await tree.terminate_child("a")
            await tree.restart_child("a")
        assert tree.which_children()[0].incarnation == 6


async def test_a_manual_start_that_fails_raises_the_childs_own_error_and_leaves_no_trace(
    world: World,
) -> None:
    own = OSError("port taken")
    a, broken = world.kid("a"), world.kid("broken", failing=[own])
    async with world.tree([a], max_restarts=0) as tree:
        with pytest.raises(OSError, match="port taken") as caught:
            await tree.start_child(broken.spec())
        assert caught.value is own
        assert states(tree) == {"a": "running"}
        await tree.start_child(broken.spec())


async def test_a_manual_restart_that_fails_leaves_the_child_down(world: World) -> None:
    a = world.kid("a", failing=[None, OSError("port taken")])
    async with world.tree([a], max_restarts=0) as tree:
        await tree.terminate_child("a")
        with pytest.raises(OSError, match="port taken"):
            await tree.restart_child("a")
        assert states(tree) == {"a": "stopped"}
        await tree.restart_child("a")


async def test_a_child_started_manually_may_call_ignore(world: World) -> None:
    a = world.kid("a", failing=["ignore"])
    async with world.tree([]) as tree:
        assert (await tree.start_child(a.spec())).state == "stopped"
        assert states(tree) == {"a": "stopped"}
        assert (await tree.restart_child("a")).state == "running"


async def test_a_manual_start_that_is_terminated_meanwhile_says_so(world: World) -> None:
    slow = world.kid("slow", start_s=100)
    async with world.tree([]) as tree:
        starting = asyncio.ensure_future(tree.start_child(slow.spec()))
        await world.settle()
        await tree.terminate_child("slow")
        with pytest.raises(ChildTerminated):
            await starting
        assert states(tree) == {}


async def test_cancelling_the_one_who_waits_for_a_start_leaves_the_start_alone(
    world: World,
) -> None:
    slow = world.kid("slow", start_s=100)
    async with world.tree([]) as tree:
        starting = asyncio.ensure_future(tree.start_child(slow.spec(start_timeout_s=None)))
        await world.settle()
        starting.cancel()
        await world.clock.sleep(200)
        assert states(tree) == {"slow": "running"}


async def test_cancelling_the_one_who_waits_for_a_stop_leaves_the_stop_alone(
    world: World,
) -> None:
    slow = world.kid("slow", stop_s=1000)
    async with world.tree([slow.spec(shutdown=10.0)]) as tree:
        stopping = asyncio.ensure_future(tree.terminate_child("slow"))
        await world.settle()
        stopping.cancel()
        await world.clock.sleep(20)
        assert states(tree) == {"slow": "stopped"}


async def test_a_child_may_terminate_itself(world: World) -> None:
    async with world.tree(world.kids("a")) as tree:

        async def serve(child: Child) -> None:
            child.started()
            await tree.terminate_child("b")

        await tree.start_child(ChildSpec(id="b", start=serve))
        await world.settle()
        assert states(tree) == {"a": "running", "b": "stopped"}


async def test_every_call_answers_at_once_while_another_child_ignores_its_stop(
    world: World,
) -> None:
    a, deaf = world.kid("a"), world.kid("deaf", stop_s=1000)
    async with world.tree([a, deaf.spec(shutdown=100.0)]) as tree:
        stopping = asyncio.ensure_future(tree.terminate_child("deaf"))
        await world.settle()
        assert states(tree) == {"a": "running", "deaf": "stopping"}
        await tree.terminate_child("a")
        await tree.restart_child("a")
        await tree.start_child(world.kid("c").spec())
        a.crash()
        await world.settle()
        assert (a.starts, tree.count_children().active) == (3, 3)
        with pytest.raises(ChildRunning):
            await tree.delete_child("deaf")
        assert world.clock.now == 0
        await stopping
        assert world.clock.now == 100


@pytest.mark.parametrize("strategy", ["one_for_one", "rest_for_one"])
async def test_every_call_answers_at_once_while_another_child_sits_in_a_backoff(
    world: World, strategy: str
) -> None:
    a, b = world.kid("a"), world.kid("b")
    async with world.tree([a, b.spec(backoff=SLOW)], strategy=strategy) as tree:
        b.crash()
        await world.settle()
        await tree.terminate_child("a")
        await tree.restart_child("a")
        await tree.start_child(world.kid("c").spec())
        assert world.clock.now == 0
        assert states(tree) == {"a": "running", "b": "restarting", "c": "running"}
        await world.clock.sleep(20)
        assert states(tree) == dict.fromkeys("abc", "running")


async def test_a_manual_restart_waits_for_the_stop_of_that_child(world: World) -> None:
    a = world.kid("a", stop_s=3)
    async with world.tree([a]) as tree:
        stopping = asyncio.ensure_future(tree.terminate_child("a"))
        await world.settle()
        assert (await tree.restart_child("a")).state == "running"
        await stopping
        assert (a.starts, a.most_alive) == (2, 1)
        assert world.clock.now == 3


async def test_two_who_terminate_one_child_both_wait_for_one_stop(world: World) -> None:
    a = world.kid("a", stop_s=3)
    async with world.tree([a]) as tree:
        await asyncio.gather(tree.terminate_child("a"), tree.terminate_child("a"))
        assert world.log == ["+a", "-a", "~a"]


async def test_which_children_lists_each_in_the_order_of_start(world: World) -> None:
    a, b = world.kids("ab")
    inner = world.tree([], name="inner")
    specs = [a.spec(restart="transient", significant=True), inner.as_child(), b.spec()]
    async with world.tree(specs, auto_shutdown="any_significant") as tree:
        assert tree.which_children() == [
            ChildInfo("a", "running", 1, "transient", "worker", True, "a"),  # noqa: FBT003 - positional for brevity
            ChildInfo("inner", "running", 1, "permanent", "supervisor", False, inner),  # noqa: FBT003 - positional for brevity
            ChildInfo("b", "running", 1, "permanent", "worker", False, "b"),  # noqa: FBT003 - positional for brevity
        ]


async def test_count_children_counts_specs_the_active_supervisors_and_workers(
    world: World,
) -> None:
    a, b = world.kids("ab")
    inner = world.tree([], name="inner")
    async with world.tree([a, inner.as_child(), b]) as tree:
        counts = tree.count_children()
        assert (counts.specs, counts.active, counts.supervisors, counts.workers) == (3, 3, 1, 2)
        await tree.terminate_child("inner")
        await tree.terminate_child("a")
        counts = tree.count_children()
        assert (counts.specs, counts.active, counts.supervisors, counts.workers) == (3, 1, 1, 2)


async def test_a_significant_child_is_refused_by_a_tree_without_auto_shutdown(
    world: World,
) -> None:
    a = world.kid("a")
    async with world.tree([]) as tree:
        with pytest.raises(SpecError, match=r"auto_shutdown='never' is not possible"):
            await tree.start_child(a.spec(restart="transient", significant=True))


async def test_calls_made_while_the_tree_stops_are_refused(world: World) -> None:
    kid, slow = world.kid("kid"), world.kid("slow", stop_s=3)
    with pytest.raises(RestartLimitReached):
        async with world.tree([kid, slow], max_restarts=0) as tree:
            kid.crash()
            try:
                await world.clock.sleep(10)
            finally:
                with pytest.raises(SupervisorStopped):
                    await tree.start_child(world.kid("new").spec())


async def test_a_manual_start_under_way_when_the_tree_gives_up_raises_why(world: World) -> None:
    kid, slow = world.kid("kid"), world.kid("slow", start_s=100)
    with pytest.raises(RestartLimitReached) as caught:
        async with world.tree([kid], max_restarts=0) as tree:
            starting = asyncio.ensure_future(tree.start_child(slow.spec()))
            await world.settle()
            kid.crash()
            await world.clock.sleep(10)
    with pytest.raises(RestartLimitReached) as raised:
        await starting
    assert raised.value is caught.value


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
async def test_a_restart_that_hangs_in_its_start_can_be_looked_at_and_terminated(
    world: World, strategy: str
) -> None:
    kid, other = world.kid("kid", failing=[None, "hang"]), world.kid("other")
    waiting = kid.spec(start_timeout_s=None)
    async with world.tree([other, waiting], strategy=strategy) as tree:
        kid.crash()
        await world.clock.sleep(1000)
        assert states(tree) == {"other": "running", "kid": "restarting"}
        assert tree.count_children().active == 2
        with pytest.raises(ChildRestarting):
            await tree.restart_child("kid")
        with pytest.raises(ChildRestarting):
            await tree.delete_child("kid")
        with pytest.raises(ChildAlreadyStarted):
            await tree.start_child(kid.spec())
        await tree.terminate_child("kid")
        assert states(tree) == {"other": "running", "kid": "stopped"}
        await tree.delete_child("kid")
        assert kid.alive == 0


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
async def test_a_tree_whose_restart_hangs_in_its_start_can_be_left(
    world: World, strategy: str
) -> None:
    kid, other = world.kid("kid", failing=[None, "hang"]), world.kid("other")
    async with world.tree([other, kid], strategy=strategy):
        kid.crash()
        await world.settle()
    assert (kid.alive, other.alive) == (0, 0)
    assert world.clock.now == 0
