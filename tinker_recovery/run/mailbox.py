"""Thread-safe inbox for callbacks from the SDK's thread, called by a task of the event loop.

A callback scheduled from another thread runs outside every task, where anyio can neither cancel nor
spawn. So the SDK's thread posts here, and a task makes the calls.
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
        # The loop may be closed by now.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._posted.set)

    def deliver(self) -> None:
        """Make every call posted so far, now; from a task of the loop."""
        while self._calls:
            try:
                self._calls.popleft()()
            except Exception:
                # One call that fails must not keep the others from being made.
                logger.exception("a callback from the SDK's thread failed")

    async def serve(self) -> None:
        """Make calls as they are posted, until cancelled."""
        while True:
            await self._posted.wait()
            self._posted.clear()
            self.deliver()
