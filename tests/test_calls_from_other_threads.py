"""What the SDK's thread has the event loop do, and what runs there in the background."""

from __future__ import annotations

import asyncio
import functools
import threading

import anyio
import anyio.lowlevel
import pytest
from inspection import under_way

from tinker_recovery.run.background import Background
from tinker_recovery.run.mailbox import Mailbox


async def test_calls_of_another_thread_are_made_on_the_event_loop_in_their_order() -> None:
    mailbox = Mailbox()
    made: list[tuple[int, bool]] = []
    done = asyncio.Event()

    def call(number: int) -> None:
        made.append((number, threading.current_thread() is threading.main_thread()))
        if number == 3:
            done.set()

    def post(*numbers: int) -> None:
        for number in numbers:
            mailbox.post(functools.partial(call, number))

    serving = asyncio.create_task(mailbox.serve())
    await asyncio.to_thread(post, 1, 2)
    await anyio.wait_all_tasks_blocked()
    assert [number for number, _ in made] == [1, 2]
    await asyncio.to_thread(post, 3)
    with anyio.fail_after(5):
        await done.wait()
    assert made == [(1, True), (2, True), (3, True)]
    assert not serving.done(), "it serves until it is cancelled"
    serving.cancel()


async def test_who_serves_rests_while_nothing_is_posted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it would use up the processor, and nothing else would run."""
    mailbox, looks = Mailbox(), 0
    deliver = mailbox.deliver

    def counted() -> None:
        nonlocal looks
        looks += 1
        assert looks < 9, "it goes round and round"
        deliver()

    monkeypatch.setattr(mailbox, "deliver", counted)
    serving = asyncio.create_task(mailbox.serve())
    for expected in (1, 2):
        mailbox.post(lambda: None)
        for _ in range(5):
            await asyncio.sleep(0)
        assert looks == expected
    serving.cancel()


async def test_what_was_posted_can_be_had_at_once_and_one_that_fails_holds_up_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mailbox = Mailbox()
    made: list[str] = []

    def fail() -> None:
        raise LookupError("its own")

    for call in (lambda: made.append("before"), fail, lambda: made.append("behind")):
        mailbox.post(call)
    assert made == [], "not by who posts, which may be any thread"
    mailbox.deliver()
    assert made == ["before", "behind"]
    assert "a callback from the SDK's thread failed" in caplog.text
    mailbox.deliver()
    assert made == ["before", "behind"], "once"


def test_what_comes_after_the_loop_was_closed_is_no_error_of_the_thread_it_comes_from() -> None:
    async def make() -> Mailbox:
        return Mailbox()

    mailbox = asyncio.run(make())
    made: list[str] = []
    mailbox.post(lambda: made.append("late"))
    mailbox.deliver()
    assert made == ["late"]


# -- in the background ----------------------------------------------------------------------------


async def test_what_is_done_in_the_background_is_ended_alone_and_not_its_group() -> None:
    ended: list[str] = []

    async def work(name: str) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(name)

    async def short() -> None:
        await anyio.lowlevel.checkpoint()
        ended.append("short")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            background = Background(group)
            background.spawn(short)
            await anyio.lowlevel.checkpoint()
            assert under_way(background) == 1
            while under_way(background):  # what has ended is not kept
                await anyio.lowlevel.checkpoint()
            assert ended == ["short"], "it runs to its end"
            background.spawn(lambda: work("under way"))
            await anyio.wait_all_tasks_blocked()
            assert ended == ["short"]
            background.spawn(lambda: work("not begun"))
            background.cancel()
            background.spawn(lambda: work("later"))
            assert not group.cancel_scope.cancel_called
    assert sorted(ended) == ["later", "not begun", "short", "under way"]
    assert not group.cancel_scope.cancel_called, "that would cancel the user's task"
