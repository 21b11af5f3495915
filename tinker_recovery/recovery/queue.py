"""The queue of faults: a fault stays in it until it is acknowledged."""

from __future__ import annotations

import anyio

from tinker_recovery.faults import Fault


class FaultQueue:
    """Faults on their way to the Executor, delivered again if it dies before acknowledging one.

    It outlives the Executor. All calls belong to the event loop's thread.
    """

    def __init__(self) -> None:
        self._waiting: list[Fault] = []
        self._taken: list[Fault] = []
        self._arrived = anyio.Event()
        self._settled = anyio.Event()

    def put(self, fault: Fault) -> None:
        """Add a fault."""
        self._waiting.append(fault)
        self._arrived.set()

    async def take(self) -> Fault:
        """Wait for the oldest fault that is not taken; cancelling the wait takes none."""
        while not self._waiting:
            self._arrived = anyio.Event()
            await self._arrived.wait()
        fault = self._waiting.pop(0)
        self._taken.append(fault)
        return fault

    def acknowledge(self, fault: Fault) -> None:
        """The fault has been dealt with for good."""
        self._taken.remove(fault)
        self._settled.set()
        self._settled = anyio.Event()

    async def settled(self, fault: Fault) -> None:
        """Wait until a fault that was put in has been dealt with."""
        while fault in self._waiting or fault in self._taken:
            await self._settled.wait()

    def deliver_again(self) -> int:
        """Put back what was taken and never acknowledged, oldest first; returns how many."""
        returned = len(self._taken)
        self._waiting[:0] = self._taken
        self._taken.clear()
        if self._waiting:
            self._arrived.set()
        return returned
