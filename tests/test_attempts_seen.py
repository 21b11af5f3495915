"""An attempt as the loop uses it: what each word of it comes to, with a scope made up here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tinker.lib.public_interfaces.api_future import AwaitableConcurrentFuture

from tinker_recovery import Attempt
from tinker_recovery.run.attempt import Iteration, scope_of


class Scope:
    """The half of an attempt that the loop does not see; it notes what is asked of it."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.number, self.start_step, self.checkpoint = 2, 4, "a checkpoint"
        self.client = SimpleNamespace(
            **{
                name: self._notes(name)
                for name in ("begin_iteration", "end_iteration", "leave_iteration")
            }
        )
        self.service = "a service"
        self.run = SimpleNamespace(
            name="r", history=SimpleNamespace(once=SimpleNamespace(get=self._get))
        )
        self.recall = SimpleNamespace(get=self._get)
        self.sampling = SimpleNamespace(watch=self._notes("watch"))
        self.saver = SimpleNamespace(
            loop_state={"at": 3}, epoch=5, set_loop_state=self._notes("set_loop_state")
        )
        for name in ("report", "end_epoch", "enter"):
            setattr(self, name, self._notes(name))
        self.home = SimpleNamespace(is_here=True)
        self.swallows = True

    def _notes(self, name: str) -> Callable[..., None]:
        return lambda *given: self.log.append((name, *given))

    async def _get(self, *given: Any) -> str:
        self.log.append(given)
        return "what was made"

    def skip(self, step: int) -> bool:
        return step == 7

    async def leave(self, error: BaseException | None) -> bool:
        self.log.append(("leave", error))
        return self.swallows


def made() -> tuple[Scope, Attempt]:
    scope = Scope()
    return scope, Attempt(cast("Any", scope))


async def test_the_loop_sees_where_its_attempt_stands_and_sets_what_goes_with_a_step() -> None:
    scope, attempt = made()
    assert repr(attempt) == "<Attempt 2 of run 'r' from step 4>"
    assert (attempt.number, attempt.start_step, attempt.epoch) == (2, 4, 5)
    seen: list[object] = [attempt.checkpoint, attempt.service, attempt.client, attempt.loop_state]
    assert seen == ["a checkpoint", "a service", scope.client, {"at": 3}]
    assert cast("Any", scope_of(attempt)) is scope
    attempt.loop_state = {"at": 4}
    attempt.report(loss=0.5)
    attempt.end_epoch()
    asked = [("set_loop_state", {"at": 4}), ("report", {"loss": 0.5}), ("end_epoch",)]
    assert scope.log == asked
    assert (attempt.skip(7), attempt.skip(8)) == (True, False)


async def test_what_is_made_once_or_recalled_comes_back() -> None:
    scope, attempt = made()
    assert await attempt.once("key", print) == "what was made"
    assert await attempt.recall("key", print) == "what was made"
    assert scope.log == [(scope, "key", print), ("key", print)]


async def test_whatever_kind_of_future_is_watched_it_is_given_back() -> None:
    scope, attempt = made()
    future = asyncio.get_running_loop().create_future()
    assert attempt.watch(future) is future
    wrapped: Any = AwaitableConcurrentFuture(cast("Any", plain := asyncio.Future[int]()))
    assert attempt.watch(wrapped) is wrapped
    assert scope.log == [("watch", future), ("watch", plain)]


@pytest.mark.parametrize("error", [None, ValueError("no")])
@pytest.mark.parametrize("blocks", [True, False])
async def test_an_iteration_ends_with_its_block_unless_an_error_leaves_it(
    error: Exception | None, *, blocks: bool
) -> None:
    scope, attempt = made()
    iteration = attempt.iteration()
    ends = "end_iteration" if error is None else "leave_iteration"

    def body(entered: Iteration) -> None:
        assert entered is iteration
        assert scope.log == [("begin_iteration",)]
        if error is not None:
            raise error

    async def run() -> None:
        if blocks:
            with iteration as entered:
                body(entered)
        else:
            async with iteration as entered:
                body(entered)

    if error is None:
        await run()
    else:
        with pytest.raises(ValueError, match="no"):
            await run()
    assert scope.log == [("begin_iteration",), (ends,)]


@pytest.mark.parametrize("swallows", [True, False])
async def test_what_its_body_is_left_with_is_swallowed_if_it_is_recovered_from(
    *, swallows: bool
) -> None:
    scope, attempt = made()
    scope.swallows, error = swallows, ValueError("no")
    assert await attempt.__aenter__() is attempt
    assert await attempt.__aexit__(ValueError, error, None) is swallows
    assert scope.log == [("enter", repr(attempt)), ("leave", error)]


async def test_a_forked_child_that_leaves_a_body_leaves_the_run_to_its_parent() -> None:
    scope, attempt = made()
    scope.home.is_here = False
    assert not await attempt.__aexit__(None, None, None)
    assert scope.log == []
