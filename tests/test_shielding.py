"""What has to come to its end does, however its caller is cancelled."""

from __future__ import annotations

import asyncio

import anyio
import pytest
from loops import until

from tinker_recovery.shielding import to_the_end


class _Work:
    """Something that takes until it is let on."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.begun = asyncio.Event()
        self.done = False
        self.undone: list[int] = []

    async def __call__(self) -> int:
        self.begun.set()
        await self.go.wait()
        self.done = True
        return 7

    async def undo(self, result: int) -> None:
        await asyncio.sleep(0)
        self.undone.append(result)


async def test_it_returns_what_the_work_returned_and_raises_what_it_raised() -> None:
    work = _Work()
    work.go.set()
    assert await to_the_end(work(), undo=work.undo) == 7
    assert work.undone == []

    async def failing() -> None:
        await asyncio.sleep(0)
        raise ValueError("of the work")

    with pytest.raises(ValueError, match="of the work"):
        await to_the_end(failing())


async def test_each_cancellation_of_a_task_waits_for_the_end_and_is_raised_then() -> None:
    work = _Work()
    task = asyncio.create_task(to_the_end(work(), undo=work.undo))
    await work.begun.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    work.go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.done
    assert work.undone == [7]


async def test_a_scope_that_is_cancelled_ends_behind_it() -> None:
    work = _Work()
    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().call_soon(scope.cancel)
        asyncio.get_running_loop().call_later(0.01, work.go.set)
        await to_the_end(work())
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert work.done


async def test_a_failure_behind_a_cancellation_is_not_left_unread() -> None:
    work = _Work()

    async def failing() -> int:
        await work()
        raise ValueError("of the work")

    task = asyncio.create_task(to_the_end(failing(), undo=work.undo))
    await work.begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    work.go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.undone == []


async def test_what_takes_long_says_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tinker_recovery.shielding.SAY_S", 0.02)
    work = _Work()
    task = asyncio.create_task(to_the_end(work()))
    await work.begun.wait()
    task.cancel()
    await until(lambda: bool(caplog.records))
    work.go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    said = caplog.messages[0]
    assert "_Work.__call__ is carried out to its end, though this was cancelled" in said
    assert "it is at Event.wait, line " in said


def test_an_event_loop_that_is_shut_down_ends_it() -> None:
    work: list[_Work] = []

    async def main() -> None:
        work.append(_Work())
        task = asyncio.create_task(to_the_end(work[0]()))
        await work[0].begun.wait()
        del task

    asyncio.run(main())
    assert not work[0].done
