"""The service's clock, as its replies tell it.

What the service dates (when a checkpoint was stored, when it expires) is compared with its own
clock, never with ours: one that is an hour off would expire what is sound, or renew nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from email.utils import parsedate_to_datetime


class ServiceClock:
    """What time it is at the service.

    A Date header is exact to a second, and of a moment between the request and its reply, so each
    reply bounds how far the two clocks are apart, and several narrow it down. As long as no
    difference cannot be excluded, there is none; otherwise the earliest time that is possible is
    taken, since to take what is stored for older than it is would be the graver mistake. A service
    that sends no Date is known by the newest time in its listings: its clock is not behind that.

    Args:
        wall: Our own clock: seconds since the epoch.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self.wall = wall
        self._least_s, self._most_s = -math.inf, math.inf
        self._dated = False

    @property
    def ahead_s(self) -> float:
        """How many seconds it is ahead of ours; below zero if it is behind."""
        return 0.0 if self._least_s <= 0.0 <= self._most_s else self._least_s

    def now(self) -> float:
        """The service's time, in seconds since the epoch."""
        return self.wall() + self.ahead_s

    def note_reply(self, date: str | None, *, sent_s: float) -> None:
        """A reply has come.

        Args:
            date: Its Date header, if it has one.
            sent_s: When it was asked for, by our clock.
        """
        try:
            dated_s = parsedate_to_datetime(date or "").timestamp()
        except (ValueError, TypeError, OverflowError):
            return
        least_s, most_s = dated_s - self.wall(), dated_s + 1.0 - sent_s
        if self._dated and max(least_s, self._least_s) <= min(most_s, self._most_s):
            least_s, most_s = max(least_s, self._least_s), min(most_s, self._most_s)
        # Else it is the first, or one of the two clocks was set.
        self._least_s, self._most_s, self._dated = least_s, most_s, True

    def note_listed(self, stored_s: float) -> None:
        """A listing has an entry that was stored at this time of the service's."""
        if not self._dated:
            self._least_s = max(self._least_s, stored_s - self.wall())
