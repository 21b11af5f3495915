"""What has to come to its end, whoever cancels the task that asked for it.

``anyio.CancelScope(shield=True)`` holds back cancellations by anyio's scopes alone. That of
``task.cancel()`` goes through it: Ctrl-C under ``asyncio.run``, ``Supervisor.stop()``, SIGTERM,
``asyncio.timeout`` and ``asyncio.TaskGroup`` all cancel like that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

import anyio

from tinker_recovery.clock import growing_intervals

logger = logging.getLogger("tinker_recovery")

_T = TypeVar("_T")

SAY_S = 30.0
"""What takes longer than this is reported, and again at growing intervals: it holds up Ctrl-C."""


def is_being_cancelled() -> bool:
    """Whether what a task has caught is its own cancellation, and not one of what it waited for."""
    return cast("asyncio.Task[object]", asyncio.current_task()).cancelling() > 0


async def to_the_end(
    work: Coroutine[Any, Any, _T],
    *,
    undo: Callable[[_T], Coroutine[Any, Any, object]] | None = None,
) -> _T:
    """Carry out ``work`` in a task of its own, and wait for its end even if cancelled meanwhile.

    The cancellation is raised once it has ended, so ``work`` needs a deadline of its own. Only an
    event loop that is being shut down (``asyncio.run``, which then cancels every task) ends it
    sooner.

    Args:
        work: What to do.
        undo: Called with its result if that is nobody's, as the caller was cancelled.

    Returns:
        What ``work`` returned.

    Raises:
        CancelledError: The caller was cancelled.
        Exception: What ``work`` raised.
    """
    working = asyncio.get_running_loop().create_task(work)
    cancelled = await _ended(working)
    if cancelled is None:
        return working.result()
    failed = working.cancelled() or working.exception() is not None
    if undo is not None and not failed:
        await to_the_end(undo(working.result()))
    raise cancelled


async def _ended(working: asyncio.Task[Any]) -> asyncio.CancelledError | None:
    """Wait until it is done; returns the cancellation that came meanwhile."""
    cancelled = None
    coroutine: Any = working.get_coro()
    intervals = growing_intervals(SAY_S)
    loop = asyncio.get_running_loop()
    began = loop.time()
    say_at = began + next(intervals)
    with anyio.CancelScope(shield=True):
        while not working.done():
            try:
                await asyncio.wait([working], timeout=max(0.0, say_at - loop.time()))
            except asyncio.CancelledError as error:
                cancelled = error
            if loop.time() >= say_at and not working.done():
                say_at += next(intervals)
                logger.warning(
                    "%s is carried out to its end, %s, and has taken %.0f s so far: it is at %s",
                    coroutine.__qualname__,
                    "though this was cancelled" if cancelled else "whatever is cancelled",
                    loop.time() - began,
                    _place(coroutine),
                )
    return cancelled


def _place(coroutine: Any) -> str:
    """The innermost function that a coroutine has come to."""
    place = "its beginning"
    while (code := getattr(coroutine, "cr_code", None)) is not None:
        frame = coroutine.cr_frame
        place = code.co_qualname + ("" if frame is None else f", line {frame.f_lineno}")
        coroutine = coroutine.cr_await
    return place
