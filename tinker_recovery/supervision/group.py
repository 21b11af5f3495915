"""Restarts that take siblings along: one_for_all and rest_for_one.

One task at a time works in rounds: stop those affected in reverse, wait out the backoff, start
them in order, each once the one before is ready. A child that dies meanwhile ends the round and
begins another, which also starts what the last one had not brought up yet.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tinker_recovery.supervision.life import Life, Record
from tinker_recovery.supervision.strategies import affected

if TYPE_CHECKING:
    from tinker_recovery.supervision.engine import Engine


class GroupRestart:
    """The restarts of one supervisor whose strategy is not one_for_one."""

    __slots__ = ("_crashed", "_delay_s", "_engine", "_starting", "_task")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._crashed: set[str] = set()
        self._delay_s = 0.0
        self._starting: Life | None = None
        self._task: asyncio.Task[None] | None = None

    def crashed(self, record: Record, delay_s: float) -> None:
        """Note that a child and its siblings are to be restarted; :meth:`resume` begins."""
        self._crashed.add(record.spec.id)
        self._delay_s = max(self._delay_s, delay_s)
        if self._starting is not None:
            self._starting.settle()  # the child that is coming up now may have to go down again

    def resume(self) -> None:
        """Restart what has crashed, unless that is under way."""
        if self._crashed and self._task is None:
            self._task = self._engine.background(self._work(), "group restart")

    def cancel(self) -> None:
        """The supervisor is closing: start nothing more."""
        if self._task is not None:
            self._task.cancel()

    async def _work(self) -> None:
        try:
            while self._crashed:
                await self._round()
        finally:
            self._task = None

    async def _round(self) -> None:
        engine = self._engine
        records = engine.records
        ids = set(affected(engine.settings.strategy, list(records), self._crashed))
        # A child in its very first start is left to whoever started it. What an earlier round
        # stopped is still to be started, wherever in the order this crash was.
        batch = [
            record
            for record in records.values()
            if record.restarting or (record.spec.id in ids and not record.fresh)
        ]
        delay_s, self._delay_s = self._delay_s, 0.0
        self._crashed.clear()
        for record in batch:
            # A temporary child is never restarted, even if a sibling's crash stopped it.
            if record.spec.restart != "temporary" and not record.terminated:
                record.restarting = True
        for record in reversed(batch):
            if record.life is not None:
                await engine.stopper.stop(record.life)
        if delay_s > 0:
            await engine.settings.sleep(delay_s)
        for record in batch:
            if self._crashed:
                return
            # Meanwhile it may have been terminated, deleted, or started manually.
            if record.restarting and record.life is None:
                self._starting = engine.spawn(record)
                try:
                    await engine.until_up(self._starting)
                finally:
                    self._starting = None
