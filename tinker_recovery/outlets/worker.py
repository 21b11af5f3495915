"""A daemon thread that hands things over to others, and that nothing has to wait for."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

import anyio
from opentelemetry import context
from opentelemetry.context import _SUPPRESS_HTTP_INSTRUMENTATION_KEY, _SUPPRESS_INSTRUMENTATION_KEY

from tinker_recovery.telemetry import names

logger = logging.getLogger(names.SCOPE)

_T = TypeVar("_T")

THREAD = "tinker-recovery-outlet"
"""The name of each such thread begins so."""


def in_worker() -> bool:
    """Whether the current thread is one of a worker."""
    return threading.current_thread().name.startswith(THREAD)


class Worker(Generic[_T]):
    """Handles what is put in, in order and in batches. Its thread starts with the first thing.

    What it raises is logged: as a warning the first time, and at DEBUG after that. Instrumentation
    by OpenTelemetry is off inside, since the addresses that it puts on spans are secrets here.

    Args:
        what: What it serves, in words: for the log.
        handle: Called in its thread with all that waits, oldest first.
        most: How many things may wait; of more, the oldest are dropped.
        every_s: Seconds between two calls at least; what comes meanwhile is gathered.
        at_end: Called in its thread when all is handled.
    """

    def __init__(
        self,
        what: str,
        handle: Callable[[Sequence[_T]], object],
        *,
        most: int,
        every_s: float = 0.0,
        at_end: Callable[[], object] | None = None,
    ) -> None:
        self._what = what
        self._handle = handle
        self._most = most
        self._every_s = every_s
        self._at_end = at_end
        self._waiting: deque[_T] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._warned = False
        self._over: Callable[[], object] = lambda: None

    def put(self, thing: _T) -> None:
        """Have something handled soon; from any thread, and returns at once."""
        with self._changed:
            if self._closing:
                return
            full = len(self._waiting) == self._most
            if full:
                self._waiting.popleft()
            self._waiting.append(thing)
            started = self._thread is not None or self._start()
            self._changed.notify()
        if not started:
            self._warn("is left out: no further thread can be started")
        elif full:
            self._warn("does not keep up: the oldest of what waits for it is dropped")

    def _start(self) -> bool:
        """Start the thread; without one nothing is taken any more, and the run goes on."""
        thread = threading.Thread(target=self._serve, name=f"{THREAD} {self._what}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._closing = True
            self._waiting.clear()
            return False
        self._thread = thread
        return True

    async def finish(self, deadline_s: float) -> None:
        """Have what waits handled, then end; what is not handled in time is given up.

        Call it on the event loop. After it, nothing more is taken.
        """
        over = asyncio.Event()
        loop = asyncio.get_running_loop()

        def tell() -> None:
            with suppress(RuntimeError):  # that loop is closed by now
                loop.call_soon_threadsafe(over.set)

        with self._changed:
            self._closing, self._over = True, tell
            if self._thread is None or not self._thread.is_alive():
                return
            self._changed.notify()
        with anyio.move_on_after(deadline_s) as waiting:
            await over.wait()
        if waiting.cancelled_caught:
            with self._changed:
                left = len(self._waiting)
                self._waiting.clear()
            more = f", and {left} more are given up" if left else ""
            self._warn(f"has not taken what was last sent within {deadline_s:g} s{more}")

    def close(self) -> None:
        """End without waiting: what waits is dropped."""
        with self._changed:
            self._closing = True
            self._waiting.clear()
            self._changed.notify()

    def _serve(self) -> None:
        context.attach(context.set_value(_SUPPRESS_INSTRUMENTATION_KEY, value=True))
        context.attach(context.set_value(_SUPPRESS_HTTP_INSTRUMENTATION_KEY, value=True))
        try:
            while things := self._take():
                self._try(functools.partial(self._handle, things))
                self._pause()
            if self._at_end is not None:
                self._try(self._at_end)
        finally:
            with self._changed:
                self._over()

    def _take(self) -> Sequence[_T]:
        """All that waits, once there is something; nothing at the end."""
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            things = list(self._waiting)
            self._waiting.clear()
            return things

    def _pause(self) -> None:
        until = time.monotonic() + self._every_s
        with self._changed:
            while not self._closing and (left_s := until - time.monotonic()) > 0:
                self._changed.wait(left_s)

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - SystemExit, too, would end this thread, and with it all that comes later, without a word
            self._warn(f"failed, and the run goes on: {type(error).__name__}: {error}")

    def _warn(self, message: str) -> None:
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        logger.log(level, "%s %s (further failures of it are logged at DEBUG)", self._what, message)
