"""A mailbox: calls posted from any thread, made by a task of the event loop.

A callback that the loop is handed from another thread runs outside every task, where anyio can
neither cancel nor spawn. So what the SDK's thread has to say is posted here, and a real task acts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable

logger = logging.getLogger("tinker_recovery")


class Mailbox:
    """Made on the event loop; :meth:`serve` has to run there as a task."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: deque[Callable[[], object]] = deque()
        self._posted = asyncio.Event()

    def post(self, call: Callable[[], object]) -> None:
        """Have a call made soon; from any thread, in the order of posting."""
        self._calls.append(call)
        # Once the loop is closed there is no one left to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._posted.set)

    def deliver(self) -> None:
        """Make every call posted so far, now; from a task of the loop."""
        while self._calls:
            try:
                self._calls.popleft()()
            except Exception:
                # One message nobody can read must not silence all the others.
                logger.exception("a message of a client could not be dealt with")

    async def serve(self) -> None:
        """Make calls as they come, for ever."""
        while True:
            await self._posted.wait()
            self._posted.clear()
            self.deliver()
