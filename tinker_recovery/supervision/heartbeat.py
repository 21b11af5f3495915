"""Watching for missed heartbeats."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tinker_recovery.supervision.child import Child
from tinker_recovery.supervision.errors import HeartbeatMissed

LATE = 0.1
"""Waking later than this share of the deadline means that the event loop was blocked."""

SOON_S = 1e-6
"""Less than a clock's resolution."""


async def until_silent(
    child: Child,
    deadline_s: float,
    *,
    now: Callable[[], float],
    sleep: Callable[[float], Awaitable[object]],
) -> HeartbeatMissed:
    """Return once the child has been silent for ``deadline_s`` seconds."""
    wait_s = deadline_s
    while wait_s >= SOON_S:
        due = now() + wait_s
        await sleep(wait_s)
        woke = now()
        if woke - due > deadline_s * LATE:
            # While the loop was blocked, the child could not send a heartbeat either.
            child.last_beat_at = max(child.last_beat_at, woke)
        wait_s = deadline_s - (woke - child.last_beat_at)
    silent_s = now() - child.last_beat_at
    return HeartbeatMissed(
        f"child {child.id!r} was silent for {silent_s:.3g} s; "
        f"its heartbeat deadline is {deadline_s:g} s",
        silent_s=silent_s,
    )
