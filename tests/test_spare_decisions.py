"""Which spare clients are made, taken and closed, and when: with a service made up here."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from tinker_recovery import RecoveryPolicy
from tinker_recovery.recovery.spares import Spares
from tinker_recovery.service import FromCheckpoint


class World:
    """A service that makes a client for each path, named by it and its number."""

    def __init__(self, **policy: Any) -> None:
        self.made: list[str] = []
        self.asked: list[tuple[str, bool, float]] = []
        self.closed: list[str] = []
        self.closings: list[tuple[object, ...]] = []
        self.waiting: list[Callable[[], Coroutine[object, object, None]]] = []
        self.on_connect: Callable[[str], object] = print
        self.before_connect: Callable[[], Coroutine[object, object, None]] | None = None
        given = {"standby": "loaded", "create_timeout_s": 7.0, "close_timeout_s": 3.0, **policy}
        backend: Any = SimpleNamespace(connect=self._connect, close=self._close)
        self.spares = Spares(backend, RecoveryPolicy(**given), self.waiting.append)

    async def _connect(self, origin: FromCheckpoint, *, patience: Any) -> Any:
        self.asked.append((origin.path, origin.optimizer, patience.silence_s))
        if self.before_connect is not None:
            await self.before_connect()
        self.on_connect(origin.path)
        self.made.append(origin.path)
        return f"{origin.path}{self.made.count(origin.path)}"

    async def _close(self, connection: Any, *how: str, deadline_s: float) -> None:
        self.closings.append((how[0], deadline_s))
        self.closed.append(connection)

    async def work(self) -> int:
        """Do what was to be done in the background; how much that was."""
        waiting, self.waiting[:] = list(self.waiting), []
        for each in waiting:
            await each()
        return len(waiting)

    def take(self, path: str, run: str = "r") -> str | None:
        return cast("str | None", self.spares.take(run, path))


@pytest.mark.parametrize("exact", [True, False])
async def test_a_spare_is_of_its_runs_newest_checkpoint_and_is_taken_once(*, exact: bool) -> None:
    world = World(restore_optimizer=exact)
    world.spares.load("r", "p")
    assert world.take("p") is None, "it is not loaded yet"
    assert await world.work() == 1
    assert world.asked == [("p", exact, 7.0)]
    assert (world.take("q"), world.take("p", "other")) == (None, None)
    assert world.take("p") == "p1"
    assert world.take("p") is None
    world.spares.load("r", "p")
    await world.work()
    assert world.take("p") == "p2"
    world.spares.drop("r")
    await world.work()
    assert world.closed == [], "both are the caller's"


async def test_it_is_loaded_once_from_a_checkpoint_and_the_older_one_is_closed() -> None:
    world = World()
    world.spares.load("r", "p")
    world.spares.load("r", "p")
    assert await world.work() == 1
    world.spares.load("r", "p")
    await world.work()
    assert (world.made, world.closed) == (["p"], [])
    world.spares.load("r", "q")
    await world.work()
    assert (world.made, world.closed) == (["p", "q"], ["p1"])
    assert world.closings == [("success", 3.0)]
    assert (world.take("p"), world.take("q")) == (None, "q1")


async def test_what_is_wanted_while_it_is_loaded_is_loaded_next_and_by_the_same_task() -> None:
    world = World()

    def newer(path: str) -> None:
        if path == "p":
            world.spares.load("r", "q")

    world.on_connect = newer
    world.spares.load("r", "p")
    assert await world.work() == 1
    assert (world.made, world.closed, world.waiting) == (["p", "q"], ["p1"], [])
    assert world.take("q") == "q1"


async def test_one_that_cannot_be_loaded_is_loaded_at_the_next_checkpoint() -> None:
    world = World()

    def fail(path: str) -> None:
        if path == "p":
            raise ValueError("no")

    world.on_connect = fail
    world.spares.load("r", "p")
    await world.work()
    assert world.take("p") is None
    assert len(world.asked) == 1, "it is not tried again and again"
    world.spares.load("r", "q")
    await world.work()
    assert world.take("q") == "q1"


async def test_one_that_cannot_be_loaded_closes_the_older_one_that_nobody_would_take() -> None:
    world = World()
    world.spares.load("r", "o")
    await world.work()

    def fail(path: str) -> None:
        raise ValueError(path)

    world.on_connect = fail
    world.spares.load("r", "p")
    await world.work()
    assert (world.closed, world.take("o")) == (["o1"], None)


async def test_what_was_wanted_meanwhile_is_loaded_though_the_one_before_failed() -> None:
    world = World()

    def fail(path: str) -> None:
        if path == "p":
            world.spares.load("r", "q")
            raise ValueError("no")

    world.on_connect = fail
    world.spares.load("r", "p")
    await world.work()
    assert world.take("q") == "q1"


async def test_one_that_is_distrusted_is_never_taken_and_closed_when_it_is_dropped() -> None:
    world = World()
    world.spares.load("r", "p")
    await world.work()
    assert world.spares.outages("r") == 0
    world.spares.distrust("r")
    assert (world.spares.outages("r"), world.spares.outages("other")) == (1, 0)
    assert (world.take("p"), world.closed, world.waiting) == (None, [], [])
    world.spares.load("r", "p")
    await world.work()
    assert world.made == ["p", "p"], "another one is loaded of the same checkpoint"
    world.spares.drop("r")
    assert world.spares.outages("r") == 2
    await world.work()
    assert sorted(world.closed) == ["p1", "p2"]
    world.spares.drop("r")
    assert await world.work() == 0


async def test_what_is_being_loaded_as_it_is_distrusted_is_closed_once_it_is_there() -> None:
    world = World()

    def distrust(path: str) -> None:
        if world.made == []:
            world.spares.drop("r")
            world.spares.load("r", path)

    world.on_connect = distrust
    world.spares.load("r", "p")
    await world.work()
    assert (world.made, world.closed) == (["p"], ["p1"])
    await world.work()
    assert world.take("p") == "p2"


async def test_at_the_end_all_are_closed_and_none_is_loaded_any_more() -> None:
    world = World()
    for run in ("r", "s", "t"):
        world.spares.load(run, run)
    await world.work()
    world.spares.distrust("t")
    await world.spares.aclose()
    assert sorted(world.closed) == ["r1", "s1", "t1"]
    world.spares.load("r", "p")
    world.spares.drop("r")
    assert world.waiting == []


async def test_at_the_end_what_is_being_loaded_closes_itself() -> None:
    world = World()
    under_way, goes_on = anyio.Event(), anyio.Event()

    async def slow() -> None:
        under_way.set()
        await goes_on.wait()

    world.before_connect = slow
    world.spares.load("r", "p")
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(world.work)
            await under_way.wait()
            await world.spares.aclose()
            assert world.closed == []
            goes_on.set()
    assert world.closed == ["p1"]


@pytest.mark.parametrize("policy", [{"standby": "session"}, {"enabled": False}])
async def test_none_is_made_unless_the_policy_asks_for_it(policy: dict[str, Any]) -> None:
    world = World(**policy)
    world.spares.load("r", "p")
    world.spares.drop("r")
    assert world.waiting == []
    assert world.take("p") is None
