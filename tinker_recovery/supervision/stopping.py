"""How children are stopped: the exit signal, the shutdown limit, and abandonment.

The exit signal is one cancellation; the child's clean-up may then await for as long as its
``shutdown`` says. A child that has not ended by then is cancelled again, several times, which
interrupts the clean-up. One that ignores even this is abandoned: asyncio cannot kill a task, so it
runs on, and is listed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tinker_recovery.supervision.life import AbandonedChild, Life

if TYPE_CHECKING:
    from tinker_recovery.supervision.engine import Engine

PASSES = 5
"""Rounds of the event loop a child gets before a task is made for its limit: nearly every child
ends in the first."""

KILLS = 10
"""How often a child past its limit is cancelled ..."""

KILL_EVERY_S = 0.1
"""... and how long it gets after each."""

_ABANDONED: set[asyncio.Task[None]] = set()
"""The loop keeps only weak references, and a task must not vanish while its code still runs."""


class Stopper:
    """Stops the children of one supervisor."""

    __slots__ = ("_engine", "abandoned")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.abandoned: list[AbandonedChild] = []
        """Every incarnation that was abandoned, oldest first."""

    def signal(self, life: Life) -> None:
        """Send the exit signal, once."""
        if not life.stopping:
            life.stopping = True
            life.stopping_at = self._engine.now()
            if life.begun:
                life.task.cancel()
            # Otherwise its task sees `stopping` when it begins, and never calls the child's code.

    async def stop(self, *lives: Life) -> None:
        """Stop these, side by side, each within its own limit; returns once all are gone.

        Cancelling this call does not stop the limits that already run.
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
        """Make it end within its limit; cancelled when it has ended."""
        engine = self._engine
        limit = life.record.spec.shutdown
        if limit == "infinity":
            return
        if not isinstance(limit, str):
            await engine.settings.sleep(limit)
            engine.reporter.stop_timed_out(life, abandoned=False)
        for _ in range(KILLS):
            life.task.cancel()
            await engine.settings.sleep(KILL_EVERY_S)
        life.enforcer = None
        _ABANDONED.add(life.task)
        life.task.add_done_callback(_ABANDONED.discard)
        waited_s = engine.now() - life.stopping_at
        self.abandoned.append(AbandonedChild(life.id, life.incarnation, waited_s, life.task))
        engine.reporter.stop_timed_out(life, abandoned=True)
        engine.abandoned(life)
