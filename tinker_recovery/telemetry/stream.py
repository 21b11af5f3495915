"""Events as an async stream: bounded, and never delaying a recovery."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self
from weakref import WeakSet

import anyio
import anyio.lowlevel

from tinker_recovery.supervision import SupervisionEvent
from tinker_recovery.telemetry.record import RecoveryEvent


@dataclass(frozen=True, slots=True)
class EventsDropped:
    """The consumer was too slow: this many events, the oldest of those waiting, were dropped.

    Attributes:
        count: How many, since the last event that was read.
    """

    count: int


Event = RecoveryEvent | SupervisionEvent | EventsDropped
"""What a stream yields: events of runs, of the supervision tree, and notes of dropped ones."""


class EventStream(AsyncIterator[Event]):
    """One consumer's events, oldest first; ends when the Supervisor is left.

    Nothing waits for it: when it is full the oldest event is dropped, and the next read returns how
    many were. Cancelling a read loses nothing. Belongs to the event loop's thread.
    """

    def __init__(self, size: int) -> None:
        self._waiting: deque[RecoveryEvent | SupervisionEvent] = deque()
        self._size = size
        self._dropped = 0
        self._ended = False
        self._news: anyio.Event | None = None

    def __repr__(self) -> str:
        state = "ended" if self._ended else "open"
        return f"<EventStream, {state}, {len(self._waiting)} of {self._size} waiting>"

    def put(self, event: RecoveryEvent | SupervisionEvent) -> None:
        """Add an event; never waits."""
        if self._ended:
            return
        if len(self._waiting) == self._size:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append(event)
        self._wake()

    def end(self) -> None:
        """Accept no more events; those waiting can still be read."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._news is not None:
            self._news.set()
            self._news = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        # Before anything is taken: a read that is cancelled has taken nothing.
        await anyio.lowlevel.checkpoint()
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            if self._news is None:
                self._news = anyio.Event()
            await self._news.wait()
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            return EventsDropped(dropped)
        return self._waiting.popleft()

    async def aclose(self) -> None:
        """Accept no more events, and drop those waiting."""
        self._waiting.clear()
        self._dropped = 0
        self.end()


class Streams:
    """Every stream still referenced; a context manager that ends them on exit."""

    def __init__(self) -> None:
        self._open: WeakSet[EventStream] = WeakSet()
        self._ended = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.end()

    def new(self, size: int) -> EventStream:
        """A stream of all events from now on."""
        stream = EventStream(size)
        if self._ended:
            stream.end()
        self._open.add(stream)
        return stream

    def put(self, event: RecoveryEvent | SupervisionEvent) -> None:
        """Add an event to every stream."""
        for stream in list(self._open):
            stream.put(event)

    def end(self) -> None:
        """End every stream, and those opened later."""
        self._ended = True
        for stream in list(self._open):
            stream.end()
