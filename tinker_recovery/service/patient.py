"""Asking a service until it answers, and what is said of that meanwhile."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tinker_recovery.clock import Clock, Reminder
from tinker_recovery.errors import StatusError, StatusUnavailable
from tinker_recovery.service.contact import how_unreachable
from tinker_recovery.telemetry.names import SCOPE

logger = logging.getLogger(SCOPE)

_T = TypeVar("_T")

SAY_AFTER_S = 5.0
"""What waits for an answer says so after this time, and again at growing intervals."""

_UNITS = ((86400.0, 3600.0, "d", "h"), (3600.0, 60.0, "h", "min"), (60.0, 1.0, "min", "s"))


async def until_answered(
    name: str,
    ask: Callable[[], Awaitable[_T]],
    *,
    asked: str,
    clock: Clock,
    look_s: float,
    max_wait_s: float,
) -> _T:
    """Ask the service about a run until it answers; cancellable. Says so while it does not.

    Args:
        name: The run's name.
        ask: The question.
        asked: What the service does not say, if it answers with an error: "whether ...".
        clock: Time.
        look_s: Seconds between two tries.
        max_wait_s: For how long it is asked.

    Raises:
        StatusRefused: It refuses.
        StatusUnavailable: It has not answered by then.
    """
    reminder, began = Reminder(SAY_AFTER_S), clock.monotonic()
    while True:
        try:
            return await ask()
        except StatusUnavailable as error:
            waited_s = clock.monotonic() - began
            if waited_s > max_wait_s:
                raise
            if reminder.is_due(waited_s):
                said = still_waiting(
                    error, asked, waited_s=waited_s, max_wait_s=max_wait_s, now_s=clock.wall()
                )
                logger.warning("run %s waits: %s", name, said)
        await clock.sleep(look_s)


def still_waiting(
    error: StatusError, asked: str, *, waited_s: float, max_wait_s: float, now_s: float
) -> str:
    """What is said of a service that is waited for: how it is, since when, and for how long yet.

    Args:
        error: What the last try failed with.
        asked: What the service does not say, if it answers with an error: "whether ...".
        waited_s: How long it has been so.
        max_wait_s: For how long it is waited for in all.
        now_s: Seconds since the epoch.
    """
    how = how_unreachable(error)
    still = "still " * (waited_s >= 1)
    said = (
        f"the service {still}does not say {asked} ({error})"
        if how is None
        else f"the service {still}cannot be reached: {how}"
    )
    if waited_s >= 1:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now_s - waited_s))
        said += f"; so for {lasting(waited_s)}, since {since}"
    left = lasting(max(0.0, max_wait_s - waited_s))
    return f"{said}; waiting up to {left} more (max_wait_s={max_wait_s:g}); Ctrl-C stops it"


def lasting(seconds: float) -> str:
    """A duration in its two largest units, the smaller one only if there is anything of it."""
    for unit, low, large, small in _UNITS:
        if round(seconds) >= unit:
            whole = round(seconds / low)
            more, rest = divmod(whole, round(unit / low))
            return f"{more} {large}" + (f" {rest} {small}" if rest else "")
    return f"{seconds:.0f} s"
