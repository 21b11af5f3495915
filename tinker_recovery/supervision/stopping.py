"""How children are stopped: the exit signal, the limit, the second word, and being left behind.

The exit signal is one cancellation, as asyncio has it: the child's clean-up may then await as it
likes, for as long as its ``shutdown`` says. What has not ended by then is cancelled again, several
times, which interrupts that clean-up. And what even ignores this is abandoned: asyncio cannot kill
a task, so it runs on, and is listed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Protocol

from tinker_recovery.supervision.life import AbandonedChild, Life
from tinker_recovery.supervision.reporter import Reporter

PASSES = 5
"""Rounds of the event loop a child is given before anything with a timer is set up for it. Nearly
every child ends in the first."""

KILLS = 10
"""How often a child past its limit is cancelled ..."""

KILL_EVERY_S = 0.1
"""... and how long it is given after each."""

_LEFT_BEHIND: set[asyncio.Task[None]] = set()
"""The loop keeps only weak references, and a task must not vanish while its code still runs."""


class Stopped(Protocol):
    """Who wants to know of an abandoned child."""

    def now(self) -> float:
        """Monotonic seconds."""
        ...

    def background(self, work: Coroutine[object, object, None], what: str) -> asyncio.Task[None]:
        """Run a task of the supervisor's own."""
        ...

    def abandoned(self, life: Life) -> None:
        """This one will not be waited for any longer."""
        ...


class Stopper:
    """Stops the children of one supervisor."""

    __slots__ = ("_engine", "_reporter", "_sleep", "left_behind")

    def __init__(
        self, engine: Stopped, reporter: Reporter, sleep: Callable[[float], Awaitable[object]]
    ) -> None:
        self._engine = engine
        self._reporter = reporter
        self._sleep = sleep
        self.left_behind: list[AbandonedChild] = []
        """Every incarnation that was abandoned, oldest first."""

    def signal(self, life: Life) -> None:
        """Give the exit signal, once."""
        if not life.stopping:
            life.stopping = True
            life.stopping_at = self._engine.now()
            if life.begun:
                life.task.cancel()
            # Otherwise it sees the mark as soon as it begins, and never calls the child's code.

    async def stop(self, *lives: Life) -> None:
        """Stop these, side by side, each within its own limit; returns once all are gone.

        If the wait is cancelled, those already out of their first rounds are stopped all the same.
        """
        for life in lives:
            self.signal(life)
        left = [life for life in lives if not life.gone]
        for _ in range(PASSES):
            if not left:
                return
            await asyncio.sleep(0)
            left = [life for life in left if not life.gone]
        for life in left:
            if life.enforcer is None:
                life.enforcer = self._engine.background(self._enforce(life), f"stop of {life.id}")
        for life in left:
            await life.wait_gone()

    async def _enforce(self, life: Life) -> None:
        """See to it that it ends; the child's end cancels this."""
        limit = life.record.spec.shutdown
        if limit == "infinity":
            return
        if not isinstance(limit, str):
            await self._sleep(limit)
            self._reporter.stop_timed_out(life, abandoned=False)
        for _ in range(KILLS):
            life.task.cancel()
            await self._sleep(KILL_EVERY_S)
        life.enforcer = None
        _LEFT_BEHIND.add(life.task)
        life.task.add_done_callback(_LEFT_BEHIND.discard)
        waited_s = self._engine.now() - life.stopping_at
        self.left_behind.append(AbandonedChild(life.id, life.incarnation, waited_s, life.task))
        self._reporter.stop_timed_out(life, abandoned=True)
        self._engine.abandoned(life)
