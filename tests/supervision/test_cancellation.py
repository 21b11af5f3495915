"""Cancellation, the body's own exceptions, and those that no supervisor may swallow."""

from __future__ import annotations

import asyncio

import anyio
import pytest
from virtual import World, states

from tinker_recovery.supervision import (
    Backoff,
    Child,
    ChildSpec,
    RestartLimitReached,
    SupervisionTree,
)


async def test_a_cancelled_error_of_its_own_is_a_crash_and_is_restarted(
    world: World,
) -> None:
    kid = world.kid("kid")
    async with world.tree([kid.spec(restart="transient")]) as tree:
        kid.crash(asyncio.CancelledError("a library's"))
        await world.settle()
        assert (kid.starts, states(tree)) == (2, {"kid": "running"})


async def test_a_child_cancelled_from_outside_has_crashed_and_is_restarted(world: World) -> None:
    tasks: list[asyncio.Task[object]] = []

    async def serve(child: Child) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        child.started()
        await anyio.sleep_forever()

    async with world.tree([ChildSpec(id="a", start=serve)]) as tree:
        tasks[0].cancel()
        await world.settle()
        assert (len(tasks), states(tree)) == (2, {"a": "running"})
        assert tasks[1].cancelling() == 0


async def test_cancellations_of_its_own_exceed_the_limit_and_never_look_like_one(
    world: World,
) -> None:
    kid = world.kid("kid")
    with pytest.raises(RestartLimitReached) as caught:
        async with world.tree([kid], max_restarts=0):
            kid.crash(asyncio.CancelledError("a library's"))
            await world.clock.sleep(10)
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)


async def test_within_the_limit_a_crash_never_cancels_the_body(world: World) -> None:
    kid = world.kid("kid")
    async with world.tree([kid], max_restarts=100):
        task = asyncio.current_task()
        assert task is not None
        for _ in range(100):
            kid.crash()
            await world.clock.sleep(0.1)
        assert task.cancelling() == 0
        assert kid.starts == 101


async def test_after_giving_up_nothing_of_the_cancellation_is_left_on_the_host(
    world: World,
) -> None:
    kid = world.kid("kid")
    with pytest.raises(RestartLimitReached):
        async with world.tree([kid], max_restarts=0):
            kid.crash()
            await world.clock.sleep(10)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_the_bodys_own_exception_leaves_as_the_very_object_it_was(world: World) -> None:
    own = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        async with world.tree(world.kids("ab")):
            raise own
    assert caught.value is own
    assert (own.__cause__, own.__context__) == (None, None)
    assert world.log == ["+a", "+b", "-b", "-a"]


async def test_a_group_raised_by_the_body_is_not_wrapped_again(world: World) -> None:
    own = ExceptionGroup("mine", [ValueError()])
    with pytest.raises(ExceptionGroup) as caught:
        async with world.tree(world.kids("a")):
            raise own
    assert caught.value is own


async def test_cancelling_the_host_stops_the_children_in_their_limits_and_continues(
    world: World,
) -> None:
    a, tidy = world.kid("a"), world.kid("tidy", stop_s=4)
    with anyio.CancelScope() as scope:
        async with world.tree([a, tidy.spec(shutdown=5.0)]):
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert world.log == ["+a", "+tidy", "-tidy", "~tidy", "-a"]


async def test_the_wait_for_the_stop_is_shielded_against_asyncios_own_cancel_too(
    world: World,
) -> None:
    tidy = world.kid("tidy", stop_s=4)

    async def host() -> None:
        async with world.tree([tidy.spec(shutdown=5.0)]):
            await anyio.sleep_forever()

    hosting = asyncio.ensure_future(host())
    await world.settle()
    for _ in range(3):
        hosting.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not hosting.done()
    with pytest.raises(asyncio.CancelledError):
        await hosting
    assert world.log == ["+tidy", "-tidy", "~tidy"]
    assert world.clock.now == 4


async def test_a_host_cancelled_while_it_stops_after_a_normal_end_is_cancelled_after_it(
    world: World,
) -> None:
    tidy = world.kid("tidy", stop_s=4)

    async def host() -> None:
        async with world.tree([tidy.spec(shutdown=5.0)]):
            pass

    hosting = asyncio.ensure_future(host())
    for _ in range(8):  # up, through the empty body, and into the wait for the child's clean-up
        await asyncio.sleep(0)
    assert world.log == ["+tidy", "-tidy"]
    hosting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hosting
    assert world.log == ["+tidy", "-tidy", "~tidy"]


async def test_a_timeout_around_a_tree_is_a_timeout(world: World) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0), world.tree(world.kids("a")):
            await anyio.sleep_forever()
    with pytest.raises(TimeoutError):
        with anyio.fail_after(0):
            async with world.tree(world.kids("a")):
                await anyio.sleep_forever()
    assert world.log.count("+a") == world.log.count("-a")


async def test_a_cancelled_host_whose_tree_gives_up_meanwhile_is_cancelled(world: World) -> None:
    kid, slow = world.kid("kid"), world.kid("slow", stop_s=3)
    with anyio.CancelScope() as scope:
        async with world.tree([slow, kid], max_restarts=0):
            kid.crash()
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
async def test_keyboard_interrupt_and_system_exit_are_never_restarted(
    world: World, error: BaseException
) -> None:
    kid, other = world.kid("kid"), world.kid("other")
    with pytest.raises(type(error)) as caught:
        async with world.tree([other, kid]):
            kid.crash(error)
            await world.clock.sleep(10)
    assert caught.value is error
    assert (kid.starts, kid.alive, other.alive) == (1, 0, 0)
    assert world.log[-1] == "-other"


async def test_a_keyboard_interrupt_in_a_group_of_a_childs_is_never_restarted(
    world: World,
) -> None:
    error = BaseExceptionGroup("two", [ValueError(), KeyboardInterrupt()])
    kid = world.kid("kid")
    with pytest.raises(BaseExceptionGroup) as caught:
        async with world.tree([kid]):
            kid.crash(error)
            await world.clock.sleep(10)
    assert caught.value is error
    assert kid.starts == 1


async def test_a_keyboard_interrupt_while_starting_ends_the_start(world: World) -> None:
    a, kid = world.kid("a"), world.kid("kid", failing=[KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        async with world.tree([a, kid]):
            raise AssertionError
    assert world.log == ["+a", "+kid", "-a"]


async def test_a_system_exit_while_stopping_is_not_lost_even_behind_the_bodys_own_error(
    world: World,
) -> None:
    async def serve(child: Child) -> None:
        child.started()
        try:
            await anyio.sleep_forever()
        finally:
            raise SystemExit(3)

    with pytest.raises(SystemExit):
        async with world.tree([ChildSpec(id="a", start=serve)]):
            raise KeyError


async def test_a_supervisors_own_trouble_ends_it_and_is_not_hidden(world: World) -> None:
    async def broken_sleep(seconds: float) -> None:
        raise OSError(f"cannot wait {seconds:g} s")

    kid = world.kid("kid")
    with pytest.raises(OSError, match="cannot wait 1 s"):
        async with world.tree([kid], sleep=broken_sleep, backoff=Backoff(1, 1, jitter=0)):
            kid.crash()
            await anyio.sleep_forever()


@pytest.mark.parametrize("nested", [False, True], ids=["root", "nested"])
@pytest.mark.parametrize("initial_s", [0.0, 1.0], ids=["at-once", "backoff"])
def test_an_event_loop_that_cancels_all_its_tasks_has_no_child_logged_as_crashed(
    caplog: pytest.LogCaptureFixture, *, nested: bool, initial_s: float
) -> None:
    """As asyncio.run() does after a second Ctrl-C: an interrupt out of the loop itself."""
    starts: list[str] = []
    ended: list[str] = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    async def serve(child: Child) -> None:
        starts.append(child.id)
        child.started()
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(child.id)

    async def main() -> None:
        backoff = Backoff(initial_s=initial_s, max_s=initial_s)
        specs = [ChildSpec(id=each, start=serve) for each in ("a", "b")]
        tree = SupervisionTree(specs, name="inner", backoff=backoff, max_seconds=60)
        if nested:
            tree = SupervisionTree([tree.as_child()], name="outer", backoff=backoff, max_seconds=60)
        async with tree:
            asyncio.get_running_loop().call_soon(interrupt)
            await anyio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert sorted(ended) == sorted(starts)
    assert not [each.getMessage() for each in caplog.records if each.name != "asyncio"]


def test_a_start_that_is_cancelled_with_the_whole_event_loop_is_not_logged_as_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    async def start(_: Child) -> None:
        asyncio.get_running_loop().call_soon(interrupt)
        await anyio.sleep_forever()

    async def main() -> None:
        async with SupervisionTree([ChildSpec(id="a", start=start)]):
            pass

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert not [each.getMessage() for each in caplog.records if each.name != "asyncio"]
