"""Restarts that take siblings along: one_for_all and rest_for_one.

One task at a time works in rounds: stop those affected in reverse, wait out the backoff, start
them in order, each once the one before is ready. Whatever dies meanwhile ends the round and begins
another, which takes along what the last one has not brought up yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Protocol

from tinker_recovery.supervision.life import Life, Record
from tinker_recovery.supervision.stopping import Stopper
from tinker_recovery.supervision.strategies import Strategy, affected


class Starter(Protocol):
    """What a group restart needs of its supervisor."""

    records: dict[str, Record]

    def spawn(self, record: Record) -> Life:
        """Begin the next incarnation."""
        ...

    async def until_up(self, life: Life) -> None:
        """Wait until it is ready, or gone."""
        ...

    def background(self, work: Coroutine[object, object, None], what: str) -> asyncio.Task[None]:
        """Run a task of the supervisor's own."""
        ...


class GroupRestart:
    """The restarts of one supervisor whose strategy is not one_for_one."""

    __slots__ = (
        "_crashed",
        "_delay_s",
        "_engine",
        "_sleep",
        "_starting",
        "_stopper",
        "_strategy",
        "_task",
    )

    def __init__(
        self,
        engine: Starter,
        strategy: Strategy,
        stopper: Stopper,
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        self._engine = engine
        self._strategy = strategy
        self._stopper = stopper
        self._sleep = sleep
        self._crashed: set[str] = set()
        self._delay_s = 0.0
        self._starting: Life | None = None
        self._task: asyncio.Task[None] | None = None

    def crashed(self, record: Record, delay_s: float) -> None:
        """A child has to be restarted, its siblings with it; :meth:`resume` sets that going."""
        self._crashed.add(record.spec.id)
        self._delay_s = max(self._delay_s, delay_s)
        if self._starting is not None:
            self._starting.settle()  # whoever is coming up now may have to go down again

    def resume(self) -> None:
        """Work off what has crashed, unless that is under way."""
        if self._crashed and self._task is None:
            self._task = self._engine.background(self._work(), "group restart")

    def cancel(self) -> None:
        """The supervisor is closing: start nothing any more."""
        if self._task is not None:
            self._task.cancel()

    async def _work(self) -> None:
        try:
            while self._crashed:
                await self._round()
        finally:
            self._task = None

    async def _round(self) -> None:
        records = self._engine.records
        ids = set(affected(self._strategy, list(records), self._crashed))
        # A child still being started for the first time belongs to whoever is starting it. What an
        # earlier round took down is still to be started, wherever in the order this crash was.
        batch = [
            record
            for record in records.values()
            if record.restarting or (record.spec.id in ids and not record.fresh)
        ]
        delay_s, self._delay_s = self._delay_s, 0.0
        self._crashed.clear()
        for record in batch:
            # A temporary child is never restarted, not even if it was a sibling that took it down.
            if record.spec.restart != "temporary" and not record.terminated:
                record.restarting = True
        for record in reversed(batch):
            if record.life is not None:
                await self._stopper.stop(record.life)
        if delay_s > 0:
            await self._sleep(delay_s)
        for record in batch:
            if self._crashed:
                return
            # It may have been terminated, or deleted, or even started by hand since.
            if record.restarting and record.life is None:
                self._starting = self._engine.spawn(record)
                try:
                    await self._engine.until_up(self._starting)
                finally:
                    self._starting = None
