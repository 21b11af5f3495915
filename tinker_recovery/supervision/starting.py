"""Watching for starts that hang."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tinker_recovery.supervision.child import Child
from tinker_recovery.supervision.errors import StartTimedOut
from tinker_recovery.supervision.heartbeat import LATE

WORD_S = 10.0
"""A start that takes longer is mentioned in the log; one with a short deadline, behind its half."""


async def until_overdue(
    child: Child,
    deadline_s: float | None,
    *,
    now: Callable[[], float],
    sleep: Callable[[float], Awaitable[object]],
    slow: Callable[[float], None],
) -> StartTimedOut | None:
    """Return once the start has taken ``deadline_s`` seconds; None where it has no deadline.

    ``slow`` is called once, with the seconds it has taken by then.
    """
    began = now()
    word_s = WORD_S if deadline_s is None else min(WORD_S, deadline_s / 2)
    await sleep(word_s)
    slow(now() - began)
    if deadline_s is None:
        return None
    left_s = began + deadline_s - now()
    while left_s > 0:
        due = now() + left_s
        await sleep(left_s)
        # While the event loop was blocked, the child could not start either.
        left_s = deadline_s if now() - due > deadline_s * LATE else 0.0
    return StartTimedOut(
        f"child {child.id!r} has called neither started() nor ignore() within {deadline_s:g} s "
        "(start_timeout_s): call started() once it is up, or allow it more",
        waited_s=now() - began,
    )
