"""How long work waits for its next progress, which says when a longer silence is none of that."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

MEMORY = 256
"""Roughly how many quicker waits it takes until a slow one counts no more."""


class Waits:
    """The slow ones among a run's waits, over all its attempts. Safe to call from any thread.

    Attributes:
        slow_s: Seconds that the slow ones of lately take; None before any was measured.
    """

    __slots__ = ("slow_s",)

    def __init__(self) -> None:
        self.slow_s: float | None = None

    def note(self, seconds: float) -> None:
        """Add a wait that ended in progress."""
        slow_s = self.slow_s
        if slow_s is None or seconds >= slow_s:
            self.slow_s = seconds
        else:
            self.slow_s = slow_s + (seconds - slow_s) / MEMORY


class Progress:
    """When the requests of one training client last made progress. Safe to call from any thread.

    Args:
        monotonic: The clock, in seconds.
        waits: Takes note of how long each progress was waited for.
    """

    __slots__ = ("_at", "_away", "_first_step_done", "_waits", "monotonic", "pauses")

    def __init__(
        self, monotonic: Callable[[], float] = time.monotonic, waits: Waits | None = None
    ) -> None:
        self.monotonic = monotonic
        self._waits = Waits() if waits is None else waits
        self._at = monotonic()
        self._first_step_done = False
        self._away = False
        self.pauses: list[tuple[float, float]] = []
        """When it was waited for what was no progress: a failure, or the end of an outage."""

    def read_pauses(self) -> Sequence[tuple[float, float]]:
        """Those until now."""
        return self.pauses

    def away(self) -> None:
        """The service is out of reach: the wait that is under way is not for its work."""
        self._away = True

    def begin(self) -> float:
        """Count from now: there was nothing to wait for, or the service has said why. The time."""
        self._at = now_s = self.monotonic()
        return now_s

    def made(self, *, sound: bool) -> float:
        """A request has ended, as it should or not. The time."""
        before_s = self._at
        self._at = now_s = self.monotonic()
        if self._away or not sound:
            self._away = False
            self.pauses.append((before_s, now_s))
        if sound and self._first_step_done:
            self._waits.note(now_s - before_s)
        return now_s

    def step_done(self) -> None:
        """A step is trained."""
        self._first_step_done = True

    @property
    def silent_s(self) -> float:
        """Seconds since then."""
        return self.monotonic() - self._at

    @property
    def slow_s(self) -> float | None:
        """Seconds that slow requests take; None during the first step, which may take longer."""
        return self._waits.slow_s if self._first_step_done else None
