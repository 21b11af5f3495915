"""What becomes of a client that is made ahead: it is taken or closed, or its error is raised."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from tinker_recovery import RecoveryPolicy
from tinker_recovery.recovery.ahead import Ahead
from tinker_recovery.recovery.collaborators import Collaborators, nothing_in_background

PATH = "tinker://a/weights/1"


class World:
    """A client being made ahead: the tests say when it is made, and answers the canary."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.made, self.asked = anyio.Event(), anyio.Event()
        self.error: BaseException | None = None
        self.ask_error: BaseException | None = None
        self.ahead = Ahead(cast("Any", self), self._spawn, self._close)

    def _spawn(self, work: Callable[[], Any]) -> None:
        self.tasks.append(asyncio.create_task(work()))

    async def _close(self, connection: object) -> None:
        self.log.append(("closed", connection))

    # The backend

    def open_ahead(self) -> Any:
        return "session"

    async def discard(self, session: object) -> None:
        self.log.append(("discarded", session))

    # What it makes

    async def make(self) -> Any:
        await self.made.wait()
        if self.error is not None:
            raise self.error
        return "client"

    async def ask(self, connection: object) -> Any:
        self.log.append(("asked", connection))
        await self.asked.wait()
        if self.ask_error is not None:
            raise self.ask_error
        return (-1.0,)

    def begin(self, *, asks: bool = True) -> None:
        self.ahead.make(PATH, self.make, cast("Any", self.ask) if asks else None)


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    """With a limit, and at whose end every task has ended."""
    with anyio.fail_after(5):
        made = World()
        yield made
        if made.tasks:
            await asyncio.wait(made.tasks)


async def test_a_client_is_taken_as_soon_as_it_is_made_and_its_answer_once_that_is_there() -> None:
    async with world() as of:
        assert await of.ahead.answer_of(cast("Any", "another")) is None
        before = of.ahead.path
        of.begin()
        assert (before, of.ahead.path) == (None, PATH)
        taking = asyncio.create_task(of.ahead.take())
        await anyio.wait_all_tasks_blocked()
        assert not taking.done()
        of.made.set()
        client = await taking
        assert (of.ahead.path, of.log) == (None, [("asked", client)])
        assert await of.ahead.answer_of(cast("Any", "another")) is None
        answering = asyncio.create_task(of.ahead.answer_of(client))
        await anyio.wait_all_tasks_blocked()
        assert not answering.done()
        of.asked.set()
        assert await answering == (-1.0,)
        assert await of.ahead.answer_of(client) is None, "it is said once"
        await of.ahead.discard()
        assert of.log == [("asked", "client")], "it is the caller's"


async def test_without_a_canary_nothing_is_asked() -> None:
    async with world() as of:
        of.begin(asks=False)
        of.made.set()
        client = await of.ahead.take()
        assert await of.ahead.answer_of(client) is None
        assert of.log == []


@pytest.mark.parametrize("error", [ValueError("no"), asyncio.CancelledError()])
async def test_what_making_it_ended_with_is_raised_to_who_takes_it(error: BaseException) -> None:
    """A cancellation that came from something underneath as well."""
    async with world() as of:
        of.error = error
        of.begin()
        of.made.set()
        with pytest.raises(type(error)):
            await of.ahead.take()
        assert not any(task.cancelled() for task in of.tasks)


async def test_what_asking_ended_with_is_raised_to_who_wants_the_answer() -> None:
    async with world() as of:
        of.ask_error = ValueError("no")
        of.begin()
        of.made.set()
        client = await of.ahead.take()
        of.asked.set()
        with pytest.raises(ValueError, match="no"):
            await of.ahead.answer_of(client)
        assert await of.ahead.answer_of(client) is None


@pytest.mark.parametrize("made", [True, False])
@pytest.mark.parametrize("how", ["drop", "discard"])
async def test_one_that_is_not_taken_is_closed_once_it_is_made_and_else_not_made(
    how: str, *, made: bool
) -> None:
    async with world() as of:
        of.begin()
        await anyio.wait_all_tasks_blocked()
        if made:
            of.made.set()
            await anyio.wait_all_tasks_blocked()
        for _ in range(2):
            if how == "drop":
                of.ahead.drop()
            else:
                await of.ahead.discard()
        await asyncio.wait(of.tasks)
        assert (("closed", "client") in of.log) == made
        assert of.log.count(("closed", "client")) <= 1
        assert of.ahead.path is None


async def test_what_is_dropped_after_it_was_taken_is_the_callers_and_asked_no_more() -> None:
    async with world() as of:
        of.begin()
        of.made.set()
        client = await of.ahead.take()
        of.ahead.drop()
        assert await of.ahead.answer_of(client) is None
        await asyncio.wait(of.tasks)
        assert of.log == [("asked", "client")]


async def test_who_waits_for_one_that_is_given_up_is_not_left_waiting() -> None:
    async with world() as of:
        of.begin()
        taking = asyncio.create_task(of.ahead.take())
        await anyio.wait_all_tasks_blocked()
        of.ahead.drop()
        with pytest.raises(RuntimeError, match="ahead was cancelled"):
            await taking


async def test_what_does_not_end_is_waited_for_once_and_closed_when_it_is_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tinker_recovery.recovery.ahead.END_S", 0.02)
    async with world() as of:

        async def stubborn() -> Any:
            with anyio.CancelScope(shield=True):
                await of.made.wait()
            return "client"

        of.ahead.make(PATH, stubborn, None)
        await anyio.wait_all_tasks_blocked()
        for _ in range(2):
            await of.ahead.discard()
        assert caplog.text.count("still being made 0.02 s after that was ended") == 1
        assert of.log == []
        of.made.set()
        await asyncio.wait(of.tasks)
        assert of.log == [("closed", "client")]


async def test_where_its_own_task_is_cancelled_that_is_no_error_of_making_it() -> None:
    async with world() as of:
        of.begin()
        await anyio.wait_all_tasks_blocked()
        (task,) = of.tasks
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        with pytest.raises(RuntimeError, match="ahead was cancelled"):
            await of.ahead.take()


async def test_a_session_that_is_not_used_is_given_back_and_nothing_if_none_was_opened() -> None:
    async with world() as of:
        of.ahead.drop()
        assert of.tasks == [], "nothing was begun"
        await of.ahead.discard()
        assert of.log == []
        of.ahead.open()
        assert list(map(str, (of.ahead.session(), of.ahead.session()))) == ["session", "None"]
        of.ahead.open()
        await of.ahead.discard()
        await of.ahead.discard()
        assert of.log == [("discarded", "session")]


# -- where there are no spares -------------------------------------------------------------------


class _Spares:
    def __init__(self) -> None:
        self.log: list[tuple[str, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *given: self.log.append((name, *given))


def test_a_spare_is_loaded_of_a_checkpoint_distrusted_and_dropped_where_there_are_any() -> None:
    for spares in (_Spares(), None):
        nothing: Any = None
        of = Collaborators(RecoveryPolicy(), nothing, nothing, nothing, spares=cast("Any", spares))
        of.load_spare("r", None)
        of.load_spare("r", "p")
        of.distrust_spare("r")
        of.drop_spare("r")
        if spares is not None:
            assert spares.log == [("load", "r", "p"), ("distrust", "r"), ("drop", "r")]


def test_where_there_is_no_supervisor_nothing_is_started_in_the_background() -> None:
    with pytest.raises(RuntimeError, match="needs a Supervisor"):
        nothing_in_background(cast("Any", print))
