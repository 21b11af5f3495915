"""One reading for all who ask for the same at about the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


class _Reading(Generic[_T]):
    """One reading, and how many wait for it."""

    def __init__(self, work: Coroutine[Any, Any, _T]) -> None:
        self.began = False
        self.waiting = 0
        self.task = asyncio.create_task(work)


class Shared(Generic[_T]):
    """A reading that all share who ask before it begins.

    Whoever asks gets what a reading gave that began afterwards, so that all that was there when it
    asked is in it. While one is under way, those who ask wait for the next, together: many at once
    cost two readings, and not one each. Used from one event loop.

    Args:
        read: Reads; raises what all who share it get.
    """

    def __init__(self, read: Callable[[], Coroutine[Any, Any, _T]]) -> None:
        self._read = read
        self._newest: _Reading[_T] | None = None

    async def get(self) -> _T:
        """What a reading gives that begins now or later; raises as it does.

        A reading that nobody waits for any more, as all were cancelled, is cancelled.
        """
        reading = self._newest
        if reading is None or reading.began:
            reading = self._newest = _Reading(self._after(reading))
        reading.waiting += 1
        try:
            await asyncio.wait([reading.task])
        finally:
            reading.waiting -= 1
            if not reading.waiting and not reading.task.done():
                reading.task.cancel()
                reading.began = True  # nobody else is to join it
        return reading.task.result()

    async def _after(self, before: _Reading[_T] | None) -> _T:
        own = self._newest
        if before is not None and not before.task.done():
            await asyncio.wait([before.task])
        assert own is not None  # noqa: S101 - it was made newest before its task could begin
        own.began = True
        return await self._read()
