"""Which task a Supervisor is used in and left by: each cell of a notebook is one of its own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tinker_recovery import UsageError
from tinker_recovery.run.home_task import HomeTask, LeftByItsTask

OWN = LookupError("the cell's own")


async def made_in_a_task_that_is_over() -> HomeTask:
    async def make() -> HomeTask:
        return HomeTask()

    return await asyncio.create_task(make())


async def test_what_a_task_has_made_is_at_home_in_it_until_it_ends() -> None:
    home = HomeTask()
    assert (home.is_current, home.is_over) == (True, False)
    home.check()

    async def elsewhere() -> tuple[bool, bool]:
        home.check()
        return home.is_current, home.is_over

    assert await asyncio.create_task(elsewhere()) == (False, False)
    over = await made_in_a_task_that_is_over()
    assert (over.is_current, over.is_over) == (False, True)
    with pytest.raises(UsageError, match=r"in a task that has ended.*asyncio\.create_task"):
        over.check()


def test_what_no_task_has_made_is_never_over() -> None:
    async def make() -> HomeTask:
        made: asyncio.Future[HomeTask] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: made.set_result(HomeTask()))
        return await made

    home = asyncio.run(make())
    assert home.is_over is False
    home.check()


class Inner:
    """What is entered; the log has what was asked of it."""

    def __init__(self) -> None:
        self.log: list[Any] = []

    async def __aenter__(self) -> str:
        self.log.append("entered")
        return "what was entered"

    async def __aexit__(self, *exc_info: object) -> bool:
        self.log.append(exc_info)
        return True

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.log.append("closed")


def kept(inner: Inner) -> LeftByItsTask[str]:
    return LeftByItsTask(inner, inner.close)


async def test_the_task_that_entered_it_leaves_it_with_what_it_was_left_by() -> None:
    inner = Inner()
    entry = kept(inner)
    assert await entry.__aenter__() == "what was entered"
    assert await entry.__aexit__(LookupError, OWN, None) is True, "it says what becomes of that"
    assert inner.log == ["entered", (LookupError, OWN, None)]


async def test_what_was_never_entered_is_left_as_it_is_without_us() -> None:
    inner = Inner()
    assert await kept(inner).__aexit__(None, None, None) is True
    assert inner.log == [(None, None, None)]


async def test_another_task_cannot_leave_it_and_closes_it_if_its_own_is_over() -> None:
    inner = Inner()
    entry = kept(inner)
    await entry.__aenter__()

    async def leave() -> None:
        await entry.__aexit__(None, None, None)

    with pytest.raises(UsageError, match="only be left by the task that entered it") as refused:
        await asyncio.create_task(leave())
    assert "were closed" not in str(refused.value)
    assert inner.log == ["entered"], "its own task may go on"

    over = Inner()
    entry = kept(over)
    await asyncio.create_task(entry.__aenter__())
    with pytest.raises(UsageError, match="its clients were closed, and it cannot be used any more"):
        await entry.__aexit__(None, None, None)
    assert over.log == ["entered", "closed"], "nobody else would"
