"""The RetentionLoop: sees to the checkpoints of the runs while they train. It only keeps house.

It is asked after each save and each recovery, holds what is still owed when the Supervisor ends,
and looks by itself once something it has seen falls due: a lifetime to renew, a deletion to try
again. Nothing it does or fails to do disturbs the training.
"""

from __future__ import annotations

import math
from typing import Protocol

import anyio

from tinker_recovery.clock import Clock
from tinker_recovery.retention.collector import CollectedRun, Collector
from tinker_recovery.supervision import Child
from tinker_recovery.telemetry import EventSink, metrics, names

GAP_S = 1.0
"""Seconds between two rounds, so that a run that saves at every step is not listed at each."""

RETRY_S = 60.0
"""Seconds until a round that could not be held is held again."""


class Asking(CollectedRun, Protocol):
    """A run that can ask for a round."""

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        ...


class RetentionLoop:
    """Holds rounds of housekeeping.

    Args:
        house: How a round goes.
        look_every_s: Seconds between two looks at whether something has fallen due.
        events: Where a round that failed is told.
        clock: Time.
    """

    def __init__(
        self, house: Collector, *, look_every_s: float, events: EventSink, clock: Clock
    ) -> None:
        self._house = house
        self._look_every_s = look_every_s
        self._events = events
        self._clock = clock
        self._asked: dict[str, Asking] = {}
        self._next_at: dict[str, tuple[float, Asking]] = {}
        self._news = anyio.Event()
        self._turn = anyio.Lock()

    def ask(self, run: Asking) -> None:
        """Something has changed: hold a round for this run soon."""
        self._asked[run.name] = run
        self._news.set()

    async def serve(self, child: Child) -> None:
        """Hold rounds as they are asked for, for ever; a child of the supervision tree."""
        child.started()
        async with anyio.create_task_group() as group:
            group.start_soon(self._remind)
            while True:
                await self._news.wait()
                self._news = anyio.Event()
                await self._rounds()
                await self._clock.sleep(GAP_S)

    async def settle(self, limit_s: float) -> None:
        """Hold the rounds still owed, for so many seconds at most; before the Supervisor ends."""
        with anyio.move_on_after(limit_s):
            await self._rounds()

    async def _remind(self) -> None:
        while True:
            await self._clock.sleep(self._look_every_s)
            now = self._clock.wall()
            for at, run in list(self._next_at.values()):
                if at <= now and not run.ended:
                    self.ask(run)

    async def _rounds(self) -> None:
        async with self._turn:
            for name, run in list(self._asked.items()):
                # Struck off first: what is asked for while the round is held is owed again.
                del self._asked[name]
                if run.recovering:
                    continue  # it asks again once it has resumed
                finished = False
                try:
                    await self._round(run)
                    finished = True
                finally:
                    if not finished:
                        self._asked.setdefault(name, run)

    async def _round(self, run: Asking) -> None:
        next_at = math.inf
        try:
            done = await self._house.tidy(run)
            next_at = done.next_at
            metrics.kept(run.name, done.kept)
        except Exception as error:  # noqa: BLE001 - an unread listing, a full disk, the user's own predicate: training goes on, and nothing was deleted
            next_at = self._clock.wall() + RETRY_S
            self._events.emit(
                names.EVENT_RETENTION_FAILED,
                run.name,
                f"checkpoints were left as they are, until the next look: {error}",
                {names.ERROR_TYPE: type(error).__qualname__},
            )
        self._next_at[run.name] = (next_at, run)
